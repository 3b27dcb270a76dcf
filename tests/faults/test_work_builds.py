"""A service is killed (SIGKILL) at its commits from publish to READY, or a worker amid a conversion: each effect happens once."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from modelfleet.policies.roles import Role
from modelfleet.registry import audit
from modelfleet.registry.bootstrap import bootstrap
from modelfleet.registry.card import parse_card
from modelfleet.registry.cli_publish import statement
from modelfleet.registry.store import FolderStore
from modelfleet.registry.tables import AuditRecord, Variant, Version
from modelfleet.service.database import open_database, prepare_database, session_factory
from modelfleet.service.initialise import initialise
from modelfleet.service.settings import Settings
from modelfleet.signer.ceremony import CeremonyPlan
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.key_book import locate
from modelfleet.signer.keys import load_signer
from modelfleet.signer.statements import SOURCE_PAYLOAD_TYPE
from tests.postgresql import PostgreSql
from tests.unit.registry.conftest import CARD
from tests.unit.registry.samples import golden_of, small_model

TENANT = "acme"
ALL = os.environ.get("MODELFLEET_ALL") == "1"
COMMITS = 24
"""About as many commits does one life take from the first start to READY; CI kills before some of them."""
pytestmark = pytest.mark.timeout(1800 if ALL else 240)


@dataclass
class Place:
    """A data folder with its databases, in which services live one after the other."""

    data: Path
    parts: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, ends_before: int = 0) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "tests.faults.killed_service",
            str(self.data),
            str(self.parts),
            str(ends_before),
        ]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)

    @property
    def url(self) -> str:
        return self.environment.get("MODELFLEET_DATABASE_URL") or f"sqlite:///{self.data / 'modelfleet.db'}"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's folder and a signed publication, made once."""
    folder, now = tmp_path_factory.mktemp("template"), datetime.now(UTC)
    settings = Settings(data=folder / "data", tenant=TENANT)
    plan = CeremonyPlan(tenant=TENANT, bits=1, approvers={"bob": ""}, approvals_required=1)
    initialise(settings, plan, users={"admin": Role.ADMIN}, now=now)
    sign_publication(folder, folder / "parts" / "1")
    return folder


def sign_publication(folder: Path, parts: Path) -> None:
    """Write the four parts of a publication."""
    parts.mkdir(parents=True)
    (parts / "model").write_bytes(small_model())
    (parts / "golden").write_bytes(golden_of())
    card = CARD.encode()
    (parts / "card").write_bytes(card)
    source = statement(parse_card(card), TENANT, parts / "model", card, parts / "golden")
    signer = load_signer(locate(folder / "data", TENANT).publisher_key)
    (parts / "statement").write_bytes(sign_envelope(msgspec.json.encode(source), SOURCE_PAYLOAD_TYPE, signer))


@pytest.fixture
def places(template: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator["Places"]:
    yield Places(template, tmp_path, request)


@dataclass
class Places:
    """Makes fresh places; PostgreSQL is started when it is asked for."""

    template: Path
    folder: Path
    request: pytest.FixtureRequest

    def new(self, kind: str, name: str) -> Place:
        data = self.folder / f"{kind}-{name}"
        shutil.copytree(self.template / "data", data)
        place = Place(data, self.template / "parts")
        if kind == "postgresql":
            server: PostgreSql = self.request.getfixturevalue("postgresql_of_worker")
            place.environment["MODELFLEET_DATABASE_URL"] = server.new_database()
            engine = prepare_database(place.url)
            bootstrap(session_factory(engine), tenant=TENANT, users={"admin": Role.ADMIN}, now=datetime.now(UTC))
            engine.dispose()
        return place


def commits_to_die_before(kind: str) -> Sequence[int]:
    """Return every commit's number; in CI a seeded sample of them."""
    if ALL:
        return range(1, COMMITS + 8)
    return random.Random(f"work {kind}").sample(range(1, COMMITS), 1)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"] if ALL else ["sqlite"])
def test_killed_at_a_commit_from_publish_to_ready(places: Places, kind: str) -> None:
    died = 0
    for number in commits_to_die_before(kind):
        place = places.new(kind, str(number))
        first = place.run(number)
        assert first.returncode in (0, -9), first.stderr
        died += first.returncode == -9
        again = place.run()
        assert again.returncode == 0, f"after a death before commit {number}: {again.stderr}"
        require_each_effect_once(place, number)
        shutil.rmtree(place.data)
    print(f"{kind}: killed {died} times")
    assert died >= (COMMITS - 8 if ALL else 1)


def require_each_effect_once(place: Place, number: int) -> None:
    """Count what there is: records, rows, signed targets, published metadata, blobs, workflows, leftovers."""
    engine = open_database(place.url)
    with session_factory(engine)() as session:
        (version,) = session.scalars(select(Version)).all()
        (variant,) = session.scalars(select(Variant)).all()
        rows = session.scalars(select(AuditRecord).order_by(AuditRecord.id)).all()
        assert audit.altered(session, TENANT) == []
    engine.dispose()
    told = Counter((row.action, row.subject) for row in rows if row.subject.startswith(("version/", "variant/")))
    name, subject = (
        f"version/{version.model}@{version.version}",
        f"variant/{version.model}@{version.version}/{variant.profile}",
    )
    expected = [("version.publish", name), *((f"variant.{verb}", subject) for verb in ("begin", "built", "ready"))]
    assert told == Counter([*expected, ("version.ready", name)]), number
    assert (version.state, variant.state, variant.stage) == ("READY", "READY", None)
    repository = locate(place.data, TENANT).repository()
    versions = repository.versions()
    assert sum(count - 1 for role, count in versions.items() if role.startswith("bin")) <= 1 < sum(versions.values())
    signed = list((place.data / "trust" / TENANT / "targets").rglob("*manifest.json"))
    assert len(signed) == 1, "one manifest is published"
    store = FolderStore(place.data / "blobs")
    kept = [variant.manifest_sha256, variant.attestation_sha256, variant.bundle_sha256]
    kept += [file["sha256"] for file in variant.files or []]
    assert all(store.exists(str(sha256)) for sha256 in (*kept, version.source_sha256, version.statement_sha256))
    assert list((place.data / "blobs" / "incoming").iterdir()) == []


def test_a_worker_killed_amid_a_conversion_is_replaced_by_another(places: Places) -> None:
    """Two workers on PostgreSQL: the one that converts dies, the other finishes, and the variant is built once."""
    place = places.new("postgresql", "workers")
    command = [sys.executable, "-m", "tests.faults.two_workers", str(place.data), str(place.parts)]
    environment = {**os.environ, **place.environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] != told["finished_by"]
    assert told["waited"] == ["waits for a worker of hw-cpu: no live one offers it"]
    require_each_effect_once(place, 0)
