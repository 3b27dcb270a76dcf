"""Containers for swupdate: what they say, who may have them signed, and that OpenSSL believes the signature."""

import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.cms import read_certificate, self_signed, sign_detached
from modelfleet.signer.errors import (
    ApprovalError,
    DigestError,
    FormatError,
    GateFailedError,
    PlanError,
    ScopeError,
    UntrustedError,
)
from modelfleet.signer.keys import generate_key, load_signer
from modelfleet.signer.manifest import Manifest, ManifestFile, encode_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.releases import ReleaseSigner
from modelfleet.signer.swu import plan_swu, require_root
from modelfleet.signer.swu_release import SwuKey
from modelfleet.signer.trust import trusted_root
from modelfleet.signer.wire import SwuReply, SwuRequest
from tests.servers import program
from tests.unit.signer.samples import GROUP, manifest, new_key
from tests.unit.signer.test_image import Signers

ROOT = "/var/lib/slots"


class SwuSigners(Signers):
    """A signer that has a key for containers."""

    def __init__(self, fleet: CeremonyResult, now: datetime, folder: Path) -> None:
        super().__init__(fleet, now)
        self.swu = SwuKey(uri=generate_key(folder / "swu.pem"), certificate=folder / "swu.crt.pem", root=ROOT)
        self.swu.certificate.write_bytes(self_signed(load_signer(self.swu.uri), "a fleet", now))
        self.signer = ReleaseSigner(
            tenant="acme",
            root=trusted_root(fleet.root_json.read_bytes()),
            releases=self.key,
            state=self.state,
            clock=lambda: now,
            swu=self.swu,
        )

    def container(self, of: Manifest, **changes: object) -> SwuReply:
        passed = bool(changes.pop("passed", True))
        asked = {"slot": "detector", "group": GROUP, "approvals": (self.approval(of),)}
        return self.signer.swu(SwuRequest(**{**asked, **self.statements(of, passed=passed), **changes}))  # type: ignore[arg-type]


@pytest.fixture
def signers(fleet: CeremonyResult, now: datetime, tmp_path: Path) -> SwuSigners:
    return SwuSigners(fleet, now, tmp_path)


def openssl_believes(folder: Path, content: bytes, signature: bytes, certificate: bytes) -> bool:
    for name, data in (("content", content), ("signature", signature), ("ca.pem", certificate)):
        (folder / name).write_bytes(data)
    command = [program("openssl"), "cms", "-verify", "-binary", "-inform", "DER", "-in", "signature"]
    command += ["-content", "content", "-CAfile", "ca.pem", "-purpose", "smimesign", "-out", "/dev/null"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def test_openssl_believes_the_signature_over_these_bytes_by_this_key_and_no_other(
    signers: SwuSigners, now: datetime, tmp_path: Path
) -> None:
    of = manifest()
    signers.release(of)
    reply = signers.container(of)
    certificate = signers.swu.certificate.read_bytes()
    assert openssl_believes(tmp_path, reply.description, reply.signature, certificate)
    assert not openssl_believes(tmp_path, reply.description + b"\n", reply.signature, certificate)
    assert not openssl_believes(tmp_path, reply.description, reply.signature, self_signed(new_key(), "a fleet", now))
    for place in (-1, -20, -70):  # in the signature proper
        changed = bytearray(reply.signature)
        changed[place] ^= 1
        assert not openssl_believes(tmp_path, reply.description, bytes(changed), certificate)


def test_a_certificate_is_its_own_keys_and_signs_only_for_it(now: datetime) -> None:
    key, other = new_key(), new_key()
    certificate = self_signed(key, "a fleet", now)
    issued = read_certificate(certificate)
    issued.verify_directly_issued_by(issued)
    with pytest.raises(FormatError, match="another key's"):
        sign_detached(b"content", other, certificate)
    with pytest.raises(FormatError):
        read_certificate(b"-----BEGIN CERTIFICATE-----")


def test_the_same_release_is_described_alike_and_a_slot_and_a_version_tell_apart(signers: SwuSigners) -> None:
    of, newer = manifest(), manifest(version="1.1.0", counter=2)
    signers.release(of)
    signers.release(newer)
    reply = signers.container(of)
    assert (reply.description, reply.script) == (
        signers.container(of).description,
        signers.container(of).script,
    )
    assert reply.description != signers.container(of, slot="second").description
    assert reply.description != signers.container(newer).description
    text = reply.description.decode()
    folder = f"{ROOT}/detector/{sha256_of(encode_manifest(of))[:16]}"
    for file in of.files:
        assert f'path = "{folder}/{file.name}"; sha256 = "{file.sha256}"' in text
    assert f'hardware-compatibility: [ "{of.profile}" ]' in text
    assert sha256_of(reply.script) in text


def test_nothing_is_signed_that_was_not_released_gated_and_approved(signers: SwuSigners) -> None:
    of = manifest()
    with pytest.raises(ScopeError, match="has signed"):
        signers.container(of)
    signers.release(of)
    with pytest.raises(ApprovalError):
        signers.container(of, approvals=())
    with pytest.raises(ApprovalError):
        signers.container(of, group="elsewhere")
    with pytest.raises(GateFailedError):
        signers.container(of, passed=False)
    with pytest.raises(ApprovalError):
        signers.container(of, approvals=(signers.approval(manifest(version="1.1.0")),))
    other = manifest(parameters={"threshold": 9})
    with pytest.raises((DigestError, UntrustedError)):
        signers.container(other)
    signers.container(of)


def test_without_a_key_nothing_is_signed_and_the_error_says_what_to_do(signers: SwuSigners) -> None:
    of = manifest()
    signers.release(of)
    signers.swu.certificate.unlink()
    with pytest.raises(PlanError, match="ddi keys init"):
        signers.container(of)


@pytest.mark.parametrize(
    "root", ["", "/", "relative", "/a/../b", "/a b", "/a;rm", "/$HOME", '/"', "/a\n", "/" + "x" * 200]
)
def test_a_root_that_a_shell_would_read_otherwise_is_refused(root: str) -> None:
    with pytest.raises(PlanError):
        require_root(root)


def test_slots_and_files_that_do_not_fit_are_refused() -> None:
    of = manifest()
    with pytest.raises(FormatError):
        plan_swu(of, encode_manifest(of), "../x", ROOT)
    huge = ManifestFile(name="model.onnx", sha256="5" * 64, length=2**32, role="model")
    big = manifest(files=(huge, of.files[1]))
    with pytest.raises(PlanError, match="4 GiB"):
        plan_swu(big, encode_manifest(big), "detector", ROOT)


def test_the_script_switches_by_a_rename_keeps_the_one_before_and_removes_older_ones(tmp_path: Path) -> None:
    folders: list[str] = []
    for number in range(3):
        of = manifest(version=f"1.{number}.0", counter=number + 1)
        plan = plan_swu(of, encode_manifest(of), "detector", str(tmp_path))
        folders.append(sha256_of(encode_manifest(of))[:16])
        (tmp_path / "detector" / folders[-1]).mkdir(parents=True)
        (tmp_path / "activate.sh").write_bytes(plan.script)
        for _ in range(2):  # also when swupdate installs it again
            subprocess.run(["sh", str(tmp_path / "activate.sh")], check=True)
    slot = tmp_path / "detector"
    assert str((slot / "current").readlink()) == folders[2]
    assert str((slot / "previous").readlink()) == folders[1]
    assert sorted(path.name for path in slot.iterdir() if not path.is_symlink()) == sorted(folders[1:])
