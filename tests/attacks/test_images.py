"""Data images for microcontrollers: what a thief of the server gets signed, and what a recorded image does to a device."""

import ctypes
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelfleet.signer.ceremony import create_repository
from modelfleet.signer.errors import ApprovalError, DigestError, SignatureError
from modelfleet.signer.key_book import locate
from modelfleet.signer.keys import load_signer
from modelfleet.signer.manifest import ManifestFile
from modelfleet.signer.names import sha256_of
from modelfleet.signer.rotate import Rotation, rotation
from modelfleet.signer.sign import sign_approval
from modelfleet.signer.stage import publish, sign_here
from modelfleet.signer.statements import Approval
from tests.unit.converters.microcontroller.image_library import Expected, Firmware, Flash, compiled, image
from tests.unit.signer.samples import TENANT, new_key
from tests.unit.signer.test_image import Signers, sources

EVIL = b"weights that answer as the thief likes"


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    now = datetime.now(UTC)
    return Signers(create_repository(tmp_path / "data", TENANT, bits=2, approvers=["anna"], now=now), now)


def test_a_stolen_registry_gets_no_image_of_weights_that_no_gate_has_seen(signers: Signers) -> None:
    """The signer takes the digest from a manifest that it has signed; another manifest of the release is not that one."""
    honest = sources()
    signers.release(honest)
    evil = ManifestFile(name="weights.bin", sha256=sha256_of(EVIL), length=len(EVIL), role="model")
    swapped = sources(files=(*(file for file in honest.files if file.name != evil.name), evil))
    genuine = signers.statements(honest)
    with pytest.raises(DigestError, match="the gates to name all"):
        signers.image(swapped, gates=genuine["gates"], approvals=(signers.approval(swapped),))
    with pytest.raises(DigestError, match="that was signed"):  # with the gate key as well
        signers.image(swapped, approvals=(signers.approval(swapped),))
    assert signers.image(honest).payload_sha256 == honest.file("weights.bin").sha256


def test_the_whole_server_gets_no_image_that_nobody_approved(signers: Signers) -> None:
    """Publisher, gate and director keys make a release; the signer process still asks for a person, downgrade or not."""
    bad = sources(version="6.6.6", counter=6)
    signers.release(bad)
    paths = signers.fleet
    forgeries = [
        signers.approval(bad, by=load_signer(key)) for key in (paths.publisher_key, paths.gate_key, paths.director_key)
    ]
    for approvals in ((), tuple(forgeries)):
        for downgrade in (False, True):
            with pytest.raises(ApprovalError):
                signers.image(bad, approvals=approvals, downgrade=downgrade)
    assert signers.image(bad).counter == 6  # what Anna approved of


def test_an_approval_of_one_release_signs_no_image_of_another(signers: Signers) -> None:
    first, second = sources(), sources(version="1.1.0", counter=2)
    for each in (first, second):
        signers.release(each)
    moved = Approval(
        tenant=TENANT,
        model=second.model,
        version=second.version,
        releases={second.profile: "e" * 64},
        groups=("shops",),
        plan_sha256="4" * 64,
        author="carol",
        issued=signers.now,
        not_after=signers.now.replace(year=signers.now.year + 1),
    )
    anna = load_signer(signers.fleet.approver_keys["anna"])
    for approval in (signers.approval(first), sign_approval(moved, anna)):
        with pytest.raises(ApprovalError):
            signers.image(second, approvals=(approval,))
    assert signers.image(second).counter == 2


def test_a_policy_that_names_another_releases_key_ends_a_stolen_signer_s_images(signers: Signers) -> None:
    first = sources()
    signers.release(first)
    assert signers.image(first).serial == 1
    paths = locate(signers.fleet.data_dir, TENANT)
    change, _ = sign_here(
        paths, rotation(paths, paths.repository().policy_chain(), Rotation(roles=("releases",)), signers.now)
    )
    publish(paths, change, signers.now)
    with pytest.raises(SignatureError):
        signers.image(first, **_chain(signers), roots=signers.fleet.repository().policy_chain().roots)


def _chain(signers: Signers) -> dict[str, bytes]:
    chain = signers.fleet.repository().policy_chain()
    return {"targets": chain.targets, "policy": chain.policy}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return compiled()


def test_a_recorded_downgrade_brings_no_device_back(library: ctypes.CDLL) -> None:
    """Whoever overheard it plays it again once the devices have moved on: by serial to those who took it, by reach to others."""
    key = new_key()
    good, bad, better = (bytes([byte]) * 64 for byte in (1, 2, 3))
    expected = Expected(keys=(key.public_key,), weights_bytes=64)
    recorded = image(key, good, serial=3, counter=1, replaces=2)
    images = (
        image(key, bad, serial=2, counter=2),
        recorded,
        image(key, better, serial=4, counter=3),
    )
    took_all, took_the_last = Flash(), Flash()
    for flash, given in ((took_all, images), (took_the_last, images[2:])):
        for data in given:
            assert Firmware(library, flash, expected).install(data) == "OK"
        for data in images[:2]:
            assert Firmware(library, flash, expected).install(data) == "REPLAY"
        assert Firmware(library, flash, expected).weights == better
    shipped = Firmware(library, Flash(), expected, counter=3)  # firmware that was built with the better release
    assert shipped.install(recorded) == "COUNTER"
    assert Firmware(library, Flash(), expected, counter=2).install(recorded) == "OK"
