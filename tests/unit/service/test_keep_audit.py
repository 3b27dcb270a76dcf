"""The service's part in the audit log: its key, what changed outside of the database, checkpoints that come by themselves."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelfleet.registry import audit
from modelfleet.registry.cli_audit import audit as command
from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.registry.tables import Base
from modelfleet.service.database import open_database, session_factory
from modelfleet.service.keep_audit import keep_audit, make_audit_key, note_metadata, open_audit_log, sign_audit
from modelfleet.service.settings import Settings
from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.checkpoint import verify_checkpoint
from modelfleet.signer.keys import load_signer, public_key_of_pem

NOW = datetime.now(UTC)


@pytest.fixture
def paths(tmp_path: Path) -> CeremonyResult:
    return create_repository(tmp_path / "fleet", "acme", bits=1, approvers=["bob"], now=NOW)


@pytest.fixture
def registry(paths: CeremonyResult) -> Iterator[object]:
    settings = Settings(data=paths.data_dir, tenant="acme")
    engine = open_database(settings.sqlalchemy_url)
    Base.metadata.create_all(engine)
    sessions = session_factory(engine)
    made = registry_without_builds(paths.data_dir / "work", paths, sessions)
    yield replace(made, audit_log=open_audit_log(settings, sessions))
    engine.dispose()


def recorded(registry) -> list[str]:
    with registry.sessions() as session:
        return [record.action for record in audit.records(session, "acme")]


def size(registry) -> int:
    kept = registry.audit_log._kept
    return verify_checkpoint(kept.read_bytes(), registry.audit_log._signer.public_key).size


def test_the_key_is_made_once_and_its_public_half_is_for_verifiers(tmp_path: Path) -> None:
    uri = make_audit_key(tmp_path)
    assert make_audit_key(tmp_path) == uri
    assert public_key_of_pem((tmp_path / "audit.pub").read_text()).keyid == load_signer(uri).public_key.keyid
    assert (tmp_path / "service" / "audit.pem").stat().st_mode & 0o777 == 0o600


def test_published_metadata_and_policy_are_recorded_when_they_change_and_only_then(registry, paths) -> None:
    for _ in range(2):
        note_metadata(registry, NOW)
    assert recorded(registry) == ["metadata.publish", "policy.publish"]
    registry.repository.refresh(NOW + timedelta(hours=20))
    note_metadata(registry, NOW)
    assert recorded(registry) == ["metadata.publish", "policy.publish", "metadata.publish"]


def test_checkpoints_come_by_themselves_and_a_last_one_at_the_end(registry) -> None:
    keep_audit(registry, NOW)
    assert size(registry) == 2
    registry.repository.refresh(NOW + timedelta(hours=20))
    keep_audit(registry, NOW + timedelta(seconds=1))
    assert size(registry) == 2
    sign_audit(registry, NOW + timedelta(seconds=2))
    assert size(registry) == 3


def test_a_log_that_cannot_be_signed_is_told_and_does_not_stop_the_service(registry, caplog) -> None:
    keep_audit(registry, NOW)
    registry.audit_log._kept.write_text("damaged")
    with caplog.at_level(logging.ERROR):
        keep_audit(registry, NOW + timedelta(minutes=1))
        sign_audit(registry, NOW)
    assert caplog.messages == ["the audit log could not be signed"] * 2


def test_a_new_key_goes_on_where_the_former_one_ended(registry, paths: CeremonyResult) -> None:
    keep_audit(registry, NOW)
    service = paths.data_dir / "service"
    (paths.data_dir / "audit.pub").rename(service / "audit-former-1.pub")
    (service / "audit.pem").unlink()
    log = open_audit_log(Settings(data=paths.data_dir, tenant="acme"), registry.sessions)
    (service / "note").write_text(log.checkpoint(NOW))
    words = ["verify", str(service / "note"), "--key", str(paths.data_dir / "audit.pub")]
    assert CliRunner().invoke(command, words).exit_code == 0
