"""Data images: the format, and what the signer refuses to sign one of."""

from dataclasses import replace
from datetime import datetime

import msgspec
import pytest

from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.errors import (
    ApprovalError,
    DigestError,
    FormatError,
    GateFailedError,
    PlanError,
    ReplayError,
    RevokedError,
    ScopeError,
    SignatureError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.image import (
    DOWNGRADE,
    HEADER_BYTES,
    SIGNED_BYTES,
    ImageHeader,
    parse_header,
    sign_image,
    verify_header,
    verify_image,
)
from modelfleet.signer.keys import Signer, load_signer
from modelfleet.signer.manifest import CONFIDENTIAL_FORMAT, Manifest, ManifestFile, encode_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.releases import ReleaseSigner
from modelfleet.signer.rotate import Revocation, revocation
from modelfleet.signer.segments import ciphertext_length
from modelfleet.signer.sign import sign_approval, sign_gate, sign_source
from modelfleet.signer.stage import publish, sign_here
from modelfleet.signer.state import SignerState
from modelfleet.signer.statements import Approval
from modelfleet.signer.trust import trusted_root
from modelfleet.signer.wire import ImageRequest, ReleaseRequest
from tests.unit.signer.samples import GROUP, Keys, gate, manifest, new_key, source

PAYLOAD = bytes(range(256)) * 3
HEADER = ImageHeader(
    tenant="acme",
    group="shops",
    profile="cortex-m4",
    model="ui/digits",
    version="1.2.0-rc.1",
    serial=7,
    counter=2**40,
    payload_bytes=len(PAYLOAD),
    payload_sha256=sha256_of(PAYLOAD),
    shapes_sha256="5" * 64,
    manifest_sha256="6" * 64,
)
KEY = new_key()
SIGNED = sign_image(HEADER, KEY)


def sources(**changes: object) -> Manifest:
    """Return a manifest of what the microcontroller converter makes."""
    version = str(changes.pop("version", "1.0.0"))
    files = {
        "model.c": b"int model_run(void);",
        "weights.bin": b"weights of " + version.encode(),
        "model.json": b"{}",
        "golden.npz": b"g" * 50,
    }
    described = tuple(
        ManifestFile(name=name, sha256=sha256_of(data), length=len(data), role="model") for name, data in files.items()
    )
    valid = {"profile": "cortex-m4", "runtime": "c99", "files": described, "entry": "model.json"}
    return manifest(version=version, **{**valid, **changes})


class Signers:
    """A signer in this process, and everybody whose word it asks for."""

    def __init__(self, fleet: CeremonyResult, now: datetime) -> None:
        self.fleet = fleet
        self.now = now
        self.state = SignerState(fleet.signer_state)
        self.key: Signer = load_signer(fleet.releases_key)
        self.signer = ReleaseSigner(
            tenant="acme",
            root=trusted_root(fleet.root_json.read_bytes()),
            releases=self.key,
            state=self.state,
            clock=lambda: now,
        )

    def statements(self, of: Manifest, *, passed: bool = True) -> dict[str, object]:
        chain = self.fleet.repository().policy_chain()
        said = source(version=of.version, model=of.model)
        return {
            "manifest": encode_manifest(of),
            "source": sign_source(said, load_signer(self.fleet.publisher_key)),
            "gates": (sign_gate(gate(of, passed=passed), load_signer(self.fleet.gate_key)),),
            "targets": chain.targets,
            "policy": chain.policy,
        }

    def release(self, of: Manifest) -> None:
        self.signer.release(ReleaseRequest(**self.statements(of)))  # type: ignore[arg-type]

    def approval(self, of: Manifest, **changes: object) -> bytes:
        valid = {
            "tenant": "acme",
            "model": of.model,
            "version": of.version,
            "releases": {of.profile: sha256_of(encode_manifest(of))},
            "groups": (GROUP,),
            "plan_sha256": "4" * 64,
            "author": "carol",
            "issued": self.now,
            "not_after": self.now.replace(year=self.now.year + 1),
        }
        signer = changes.pop("by", None) or load_signer(self.fleet.approver_keys["anna"])
        return sign_approval(Approval(**{**valid, **changes}), signer)  # type: ignore[arg-type]

    def image(self, of: Manifest, *, passed: bool = True, **changes: object) -> ImageHeader:
        asked = {"group": GROUP, "approvals": (self.approval(of),), **self.statements(of, passed=passed), **changes}
        reply = self.signer.image(ImageRequest(**asked))  # type: ignore[arg-type]
        return verify_header(reply.header, self.key.public_key)


@pytest.fixture
def signers(fleet: CeremonyResult, now: datetime) -> Signers:
    return Signers(fleet, now)


def test_an_image_says_what_was_signed() -> None:
    assert (len(SIGNED), SIGNED_BYTES) == (HEADER_BYTES, 704)
    assert verify_image(SIGNED + PAYLOAD, KEY.public_key) == HEADER
    assert parse_header(SIGNED) == HEADER
    back = replace(HEADER, replaces=2**40 + 1)
    assert verify_header(sign_image(back, KEY), KEY.public_key) == back


def test_every_bit_of_a_header_is_signed_or_refused() -> None:
    for place in range(HEADER_BYTES):
        for bit in (0x01, 0x80):
            changed = bytearray(SIGNED)
            changed[place] ^= bit
            with pytest.raises(UntrustedError):
                verify_header(bytes(changed), KEY.public_key)


def test_an_image_by_another_key_or_cut_off_is_refused() -> None:
    other = new_key()
    with pytest.raises(UnknownKeyError):
        verify_header(SIGNED, other.public_key)
    forged = bytearray(sign_image(HEADER, other))
    forged[SIGNED_BYTES - 32 : SIGNED_BYTES] = bytes.fromhex(KEY.public_key.keyid)
    with pytest.raises(SignatureError):
        verify_header(bytes(forged), KEY.public_key)
    for length in (0, 15, SIGNED_BYTES, HEADER_BYTES - 1):
        with pytest.raises(FormatError):
            parse_header(SIGNED[:length])
    for payload in (PAYLOAD[:-1], PAYLOAD + b"\0", b"x" + PAYLOAD[1:]):
        with pytest.raises(DigestError):
            verify_image(SIGNED + payload, KEY.public_key)


@pytest.mark.parametrize(
    "changes",
    [
        {"serial": 0},
        {"serial": 2**53},
        {"counter": -1},
        {"replaces": 2**53},
        {"payload_bytes": 0},
        {"payload_bytes": 2**31},
        {"tenant": "Acme"},
        {"model": "a/../b"},
        {"version": "1.0"},
        {"group": ""},
    ],
)
def test_a_header_that_the_format_cannot_hold_is_not_signed(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        sign_image(replace(HEADER, **changes), KEY)  # type: ignore[arg-type]


def test_the_signer_makes_the_header_of_what_it_has_released(signers: Signers) -> None:
    first = sources()
    signers.release(first)
    header = signers.image(first)
    assert header == ImageHeader(
        tenant="acme",
        group=GROUP,
        profile="cortex-m4",
        model="digits",
        version="1.0.0",
        serial=1,
        counter=1,
        payload_bytes=first.file("weights.bin").length,
        payload_sha256=first.file("weights.bin").sha256,
        shapes_sha256=first.file("model.c").sha256,
        manifest_sha256=sha256_of(encode_manifest(first)),
    )


def test_the_same_image_again_keeps_its_serial_also_after_a_restart(signers: Signers, fleet: CeremonyResult) -> None:
    first, second = sources(), sources(version="1.1.0", counter=2)
    for each in (first, second):
        signers.release(each)
    assert signers.image(first).serial == signers.image(first).serial == 1
    again = Signers(fleet, signers.now)
    assert again.image(first).serial == 1
    assert again.image(second).serial == 2
    assert Signers(fleet, signers.now).image(second, downgrade=True).serial == 3


def test_no_image_of_a_release_that_this_signer_has_not_signed(signers: Signers) -> None:
    first = sources()
    with pytest.raises(ScopeError, match="that this signer has signed"):
        signers.image(first)
    signers.release(first)
    weights = ManifestFile(name="weights.bin", sha256="e" * 64, length=5, role="model")
    swapped = sources(files=(*(file for file in first.files if file.name != "weights.bin"), weights))
    with pytest.raises(DigestError, match="expected the manifest that was signed"):
        signers.image(swapped)


def test_no_image_without_publisher_and_gate(signers: Signers, keys: Keys) -> None:
    first = sources()
    signers.release(first)
    with pytest.raises(GateFailedError):
        signers.image(first, passed=False)
    with pytest.raises(UnknownKeyError):
        signers.image(first, gates=(sign_gate(gate(first), keys.stranger),))
    with pytest.raises(UnknownKeyError):
        signers.image(first, source=sign_source(source(), keys.stranger))
    assert signers.image(first).serial == 1  # a refusal uses up nothing


def test_no_image_that_too_few_people_have_approved_of(signers: Signers, keys: Keys) -> None:
    first, second = sources(), sources(version="1.1.0", counter=2)
    for each in (first, second):
        signers.release(each)
    past = signers.now.replace(year=signers.now.year - 1)
    for approvals in (
        (),
        (signers.approval(first, by=keys.stranger),),
        (signers.approval(first, author="anna"),),
        (signers.approval(first, not_after=past),),
        (signers.approval(first, groups=("others",)),),
        (signers.approval(second),),
    ):
        for downgrade in (False, True):
            with pytest.raises(ApprovalError):
                signers.image(first, approvals=approvals, downgrade=downgrade)
    with pytest.raises(ApprovalError):
        signers.image(first, group="others")


def test_a_lower_release_counter_only_where_a_downgrade_is_asked_for(signers: Signers) -> None:
    first, second = sources(), sources(version="1.1.0", counter=2)
    for each in (first, second):
        signers.release(each)
    assert signers.image(second).serial == 1
    with pytest.raises(ReplayError, match="release counter >= 2, got 1"):
        signers.image(first)
    back = signers.image(first, downgrade=True)
    assert (back.replaces, back.counter, back.serial) == (2, 1, 2)
    with pytest.raises(ReplayError):  # going back lowers nothing
        signers.image(first)
    assert signers.image(second).serial == 3


def test_groups_have_their_own_counters_and_share_the_serials(signers: Signers) -> None:
    first, second = sources(), sources(version="1.1.0", counter=2)
    for each in (first, second):
        signers.release(each)
    assert signers.image(second).serial == 1
    stores = {"group": "stores", "approvals": (signers.approval(first, groups=("stores",)),)}
    assert signers.image(first, **stores).serial == 2
    assert signers.image(second).serial == 3


def test_no_image_of_what_is_no_microcontrollers_or_confidential(signers: Signers) -> None:
    secret = tuple(
        msgspec.structs.replace(
            file, length=ciphertext_length(file.length), plain_sha256=file.sha256, plain_length=file.length
        )
        for file in sources().files
    )
    for of, reason in (
        (sources(runtime="onnxruntime"), "runtime c99"),
        (sources(version="1.1.0", counter=2, files=sources().files[1:]), "model.c"),
        (sources(version="1.2.0", counter=3, files=secret, format=CONFIDENTIAL_FORMAT), "confidential"),
    ):
        signers.release(of)
        with pytest.raises(PlanError, match=reason):
            signers.image(of)


def test_no_image_of_what_the_policy_revokes_since(signers: Signers, fleet: CeremonyResult, now: datetime) -> None:
    first = sources()
    signers.release(first)
    assert signers.image(first).serial == 1
    wanted = Revocation(manifests=(sha256_of(encode_manifest(first)),))
    change, _ = sign_here(fleet, revocation(fleet, fleet.repository().policy_chain(), wanted, now))
    publish(fleet, change, now)
    with pytest.raises(RevokedError):
        signers.image(first)


def test_a_downgrade_goes_back_from_the_newest_release_there_is_and_no_other(signers: Signers) -> None:
    first, second, third = (sources(version=f"1.{minor}.0", counter=minor + 1) for minor in range(3))
    for each in (first, second):
        signers.release(each)
    assert signers.image(first, downgrade=True).replaces == 2
    signers.release(third)
    again = signers.image(first, downgrade=True)
    assert (again.replaces, again.serial) == (3, 2)


def test_the_downgrade_flag_and_what_it_may_replace_agree() -> None:
    back = sign_image(replace(HEADER, replaces=2**40 + 1), KEY)
    assert (SIGNED[20], back[20]) == (0, DOWNGRADE)
    for place, value in ((20, 0), (20, 3), (52, 1)):
        changed = bytearray(back)
        changed[place] = value
        with pytest.raises(FormatError):
            parse_header(bytes(changed))
