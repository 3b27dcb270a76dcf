"""Publishing and building confidential versions: the same steps and answers, and ciphertext in the store."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelfleet.registry.build import build_variant
from modelfleet.registry.errors import KekError, StoreError
from modelfleet.registry.kek import FileKek
from modelfleet.registry.tables import DataKey, Variant, Version
from modelfleet.signer.errors import SignerUnavailableError
from modelfleet.signer.manifest import parse_manifest
from modelfleet.signer.names import sha256_of
from tests.unit.registry.conftest import Fleet

PROFILE = "linux-cpu-float"


@pytest.fixture
def secret(fleet: Fleet) -> Iterator[Fleet]:
    """A fleet with a key-encryption key."""
    kek = FileKek(fleet.folder / "kek.json")
    kek.make()
    fleet.registry = replace(fleet.registry, kek_uri=f"file:{kek.path}")
    fleet.app.state.registry = fleet.registry
    yield fleet


def publish(fleet: Fleet) -> int:
    publication = fleet.publication()
    publication.card = "confidential = true\n" + publication.card
    answer = fleet.publish(publication.parts())
    assert answer.status_code == 201, answer.text
    assert answer.json()["card"]["confidential"] is True
    return fleet.queue.waiting[-1]


def build(fleet: Fleet, version_id: int) -> None:
    """Build as far as it goes without a signer: everything but the signature."""
    with pytest.raises(SignerUnavailableError):
        build_variant(fleet.registry, version_id, PROFILE)


def variant(fleet: Fleet, version_id: int) -> Variant:
    with fleet.sessions() as session:
        return session.query(Variant).filter_by(version_id=version_id).one()


def test_the_manifest_names_ciphertext_and_plain_digests(secret: Fleet) -> None:
    version_id = publish(secret)
    build(secret, version_id)
    row = variant(secret, version_id)
    assert row.manifest_sha256 is not None
    with secret.registry.store.open(row.manifest_sha256) as blob:
        manifest = parse_manifest(blob.read())
    assert manifest.format == "2.0"
    for file in manifest.files:
        assert secret.registry.store.size(file.sha256) == file.length
        assert not secret.registry.store.exists(file.content_sha256)
    assert [file["plain_sha256"] for file in row.files or []] == [file.plain_sha256 for file in manifest.files]
    with secret.sessions() as session:
        scopes = {key.scope for key in session.query(DataKey)}
    assert scopes == {"version/ui/shapes@1.0.0", f"variant/ui/shapes@1.0.0/{PROFILE}"}


def test_publishing_the_same_bytes_again_is_the_same_version(secret: Fleet) -> None:
    publish(secret)
    publication = secret.publication()
    publication.card = "confidential = true\n" + publication.card
    again = secret.publish(publication.parts())
    assert again.status_code == 200, again.text
    assert secret.stored()[0] == 1


def test_a_build_that_was_cut_off_is_built_again_under_the_same_data_key(secret: Fleet) -> None:
    version_id = publish(secret)
    build(secret, version_id)
    first = variant(secret, version_id).files
    with secret.sessions.begin() as session:  # as if the process had died before it was recorded
        row = session.query(Variant).filter_by(version_id=version_id).one()
        row.manifest_sha256 = None
    build(secret, version_id)
    second = variant(secret, version_id).files
    assert first is not None and second is not None
    assert [file["plain_sha256"] for file in first if file["role"] == "model"] == [
        file["plain_sha256"] for file in second if file["role"] == "model"
    ]
    assert {file["sha256"] for file in first}.isdisjoint(file["sha256"] for file in second)
    with secret.sessions() as session:
        assert session.query(DataKey).count() == 2


def test_without_a_key_encryption_key_nothing_is_published(fleet: Fleet) -> None:
    publication = fleet.publication()
    publication.card = "confidential = true\n" + publication.card
    before = fleet.stored()
    answer = fleet.publish(publication.parts())
    assert answer.status_code == 503
    assert "log" in answer.json()["detail"]
    assert fleet.stored() == before


def test_a_lost_key_encryption_key_leaves_the_build_waiting(secret: Fleet) -> None:
    version_id = publish(secret)
    kek = Path(secret.registry.kek_uri.removeprefix("file:"))
    kept = kek.read_bytes()
    kek.unlink()
    with pytest.raises(KekError, match="restore it"):
        build_variant(secret.registry, version_id, PROFILE)
    kek.write_bytes(kept)
    build(secret, version_id)
    assert variant(secret, version_id).manifest_sha256 is not None


def test_a_source_blob_that_is_not_the_versions_own_is_refused(secret: Fleet) -> None:
    version_id = publish(secret)
    with secret.sessions.begin() as session:
        row = session.get_one(Version, version_id)
        row.source_blob, row.golden_blob = row.golden_blob, row.source_blob
    with pytest.raises(StoreError, match="expected ciphertext"):
        build_variant(secret.registry, version_id, PROFILE)


def test_a_card_says_confidential_with_a_boolean(fleet: Fleet) -> None:
    publication = fleet.publication()
    publication.card = 'confidential = "yes"\n' + publication.card
    answer = fleet.publish(publication.parts(model="ui/shapes"))
    assert answer.status_code == 422
    assert any(fault.startswith("confidential:") for fault in answer.json()["errors"])


def test_a_plain_version_lies_in_the_store_as_before(fleet: Fleet) -> None:
    publication = fleet.publication()
    assert fleet.publish(publication.parts()).status_code == 201
    with fleet.registry.store.open(sha256_of(publication.model)) as blob:
        assert io.BytesIO(blob.read()).getvalue() == publication.model
    with fleet.sessions() as session:
        row = session.query(Version).one()
        assert (row.source_blob, row.golden_blob) == (None, None)
        assert session.query(DataKey).count() == 0
