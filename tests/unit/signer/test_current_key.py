"""An online key is rotated under a running service: the next signature is the new key's."""

from datetime import datetime

import pytest

from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.current_key import CurrentSigner
from modelfleet.signer.errors import KeyUriError
from modelfleet.signer.key_book import book_path, locate
from modelfleet.signer.keys import key_id, public_key
from modelfleet.signer.metadata import Timestamp, parse_metadata, require_signed
from modelfleet.signer.repository import OnlineRepository
from modelfleet.signer.trust import trusted_root
from tests.unit.signer.samples import DAY, TENANT
from tests.unit.signer.test_rotate import rotate


def test_signs_with_the_key_of_the_moment(fleet: CeremonyResult, now: datetime) -> None:
    signer = CurrentSigner(fleet.data_dir, "timestamp")
    assert signer.public_key.keyid == key_id(public_key(fleet.timestamp_key))
    after = rotate(fleet, now, "timestamp")
    assert signer.public_key.keyid == key_id(public_key(after.timestamp_key))
    signer.public_key.verify_signature(signer.sign(b"payload"), b"payload")


def test_a_running_repository_goes_on_after_a_rotation(fleet: CeremonyResult, now: datetime) -> None:
    running = OnlineRepository(
        fleet.metadata_dir,
        fleet.targets_dir,
        CurrentSigner(fleet.data_dir, "snapshot"),
        CurrentSigner(fleet.data_dir, "timestamp"),
    )
    running.refresh(now)
    assert running.policy().epoch == 1
    rotate(fleet, now, "snapshot", "timestamp", "director")
    assert running.policy().epoch == 2
    before = running.versions()["timestamp"]
    running.refresh(now + DAY)
    timestamp = parse_metadata((fleet.metadata_dir / "timestamp.json").read_bytes(), Timestamp)
    assert timestamp.signed.version == before + 1
    require_signed(trusted_root(running.policy_chain().roots[-1]), Timestamp.type, timestamp)


def test_works_on_a_fleet_that_was_made_before_there_was_a_book(fleet: CeremonyResult) -> None:
    book_path(fleet.data_dir).unlink()
    assert CurrentSigner(fleet.data_dir, "director").public_key.keyid == key_id(public_key(fleet.director_key))
    assert locate(fleet.data_dir, TENANT) == fleet


def test_is_not_named_by_a_uri(fleet: CeremonyResult) -> None:
    signer = CurrentSigner(fleet.data_dir, "director")
    with pytest.raises(KeyUriError, match="a data folder and a role"):
        CurrentSigner.from_priv_key_uri("file:/a.pem", signer.public_key)
