"""A small fleet whose devices poll: the real controller, the real signer behind its socket, real manifests and statements."""

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from modelfleet.registry import problems
from modelfleet.registry.auth import make_token as make_user_token
from modelfleet.registry.tables import Group, User, Variant, Version
from modelfleet.rollout.ddi.devices import find_device, make_device
from modelfleet.rollout.ddi.retry import actions_since
from modelfleet.rollout.ddi.routes import router
from modelfleet.rollout.ddi.routes_fleet import router as fleet_router
from modelfleet.rollout.ddi.tables import DdiAction
from modelfleet.rollout.ddi.tokens import make_token
from modelfleet.signer.client import SignerClient
from modelfleet.signer.cms import self_signed
from modelfleet.signer.keys import generate_key, load_signer
from modelfleet.signer.manifest import encode_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.releases import ReleaseSigner
from modelfleet.signer.serve import SignerServer
from modelfleet.signer.sign import sign_gate, sign_source
from modelfleet.signer.state import SignerState
from modelfleet.signer.swu_release import SwuKey
from modelfleet.signer.trust import trusted_root
from tests.unit.rollout.conftest import FLOAT, SLOT, TENANT, Fleet
from tests.unit.signer.samples import FILES, gate, manifest, source

PLAN: dict[str, Any] = {
    "stages": [1.0],
    "bake_seconds": 0,
    "soak_seconds": 3600,
    "min_canaries": 1,
    "spread_seconds": 0,
}
ACCEPTING = PLAN | {"accept_unsigned": True}
TICK = timedelta(seconds=10)


@dataclass
class Polling:
    """One device that polls, with its token."""

    http: TestClient
    name: str
    id: str
    token: str
    scheme: str = "TargetToken"

    @property
    def path(self) -> str:
        return f"/{TENANT}/controller/v1/{self.name}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"{self.scheme} {self.token}"}

    def get(self, path: str = "", **headers: str) -> Response:
        return self.http.get(self.path + path, headers=self.headers | headers)

    def links(self) -> dict[str, str]:
        answer = self.get()
        assert answer.status_code == 200, answer.text
        return {name: link["href"] for name, link in answer.json()["_links"].items()}

    def offered(self) -> int | None:
        """The action that a poll offers to install."""
        href = self.links().get("deploymentBase")
        return None if href is None else int(href.rpartition("/")[2].partition("?")[0])

    def feedback(
        self,
        action: int,
        execution: str,
        finished: str = "none",
        details: Any = (),
        kind: str = "deploymentBase",
    ) -> int:
        """Say how it goes; the answer's status."""
        status = {"execution": execution, "result": {"finished": finished}, "details": details}
        body = {"id": str(action), "time": "20260301T120000", "status": status}
        content = json.dumps(body).encode()  # escapes, so that half a surrogate pair travels
        url = f"{self.path}/{kind}/{action}/feedback"
        return self.http.post(url, content=content, headers=self.headers).status_code

    def fetch(self, action: int) -> list[bytes]:
        """Take the action's artifacts whole."""
        found = self.get(f"/deploymentBase/{action}").json()["deployment"]["chunks"][0]["artifacts"]
        urls = [each["_links"]["download"]["href"] for each in found]
        answers = [self.http.get(url, headers=self.headers) for url in urls]
        assert [answer.status_code for answer in answers] == [200] * len(urls)
        return [answer.content for answer in answers]

    def install(self) -> int:
        """Do all of an update; its action."""
        action = self.offered()
        assert action is not None
        self.fetch(action)
        assert self.feedback(action, "closed", "success") == 200
        return action


@dataclass
class Ddi:
    """The fleet, the app, and who polls; `fleet.now` is the real time, which the routes read."""

    fleet: Fleet
    app: FastAPI
    http: TestClient
    release_signer: ReleaseSigner
    certificate: bytes
    admin: dict[str, str]
    digests: dict[str, str] = field(default_factory=dict)

    def publish(self, version: str, counter: int) -> str:
        """Add a built version with a variant that the signer has signed; its manifest's digest."""
        fleet, store = self.fleet, self.fleet.registry.store
        of = manifest(version=version, counter=counter, parameters={"version": version}, profile=FLOAT)
        data = encode_manifest(of)
        statement = sign_source(source(version=version), load_signer(fleet.ceremony.publisher_key))
        attestation = sign_gate(gate(of), load_signer(fleet.ceremony.gate_key))
        chain = fleet.registry.repository.policy_chain()
        self.app.state.registry.signer.release(
            manifest=data, source_envelope=statement, gate_envelopes=[attestation], policy_chain=chain
        )
        for blob in (*FILES.values(), data):
            store.put(blob)
        with fleet.registry.sessions.begin() as session:
            row = Version(
                tenant=TENANT,
                model="digits",
                version=version,
                channel="stable",
                counter=counter,
                state="READY",
                card={},
                source_sha256="1" * 64,
                source_length=1,
                card_sha256="2" * 64,
                golden_sha256="3" * 64,
                statement_sha256=store.put(statement),
                published_by="ci",
                published_at=fleet.now,
            )
            session.add(row)
            session.flush()
            session.add(
                Variant(
                    version_id=row.id,
                    tenant=TENANT,
                    model="digits",
                    version=version,
                    profile=FLOAT,
                    state="READY",
                    precision="fp32",
                    counter=counter,
                    path=of.path,
                    manifest_sha256=sha256_of(data),
                    manifest_length=len(data),
                    attestation_sha256=store.put(attestation),
                    created_at=fleet.now,
                    ready_at=fleet.now,
                )
            )
        self.digests[version] = sha256_of(data)
        return self.digests[version]

    def device(self, name: str = "cam-1", *, group: str = "lab", artifacts: str = "files") -> Polling:
        with self.fleet.registry.sessions.begin() as session:
            row = make_device(
                session,
                TENANT,
                self.fleet.registry.profiles,
                controller_id=name,
                group=group,
                profile=FLOAT,
                artifacts=artifacts,
                actor="root",
                now=self.fleet.now,
            )
            token, _ = make_token(session, TENANT, device=row.device, actor="root", now=self.fleet.now)
            made = Polling(self.http, name, row.device, token)
        self.fleet.controller.ensure_assignment(made.id)
        return made

    def launch(self, version: str, plan: dict[str, Any] = ACCEPTING) -> str:
        return self.fleet.launch(version, plan=plan)

    def tick(self, count: int = 1) -> None:
        """Let the controller decide, as if time had passed."""
        for _ in range(count):
            self.fleet.now += TICK
            self.fleet.controller.tick(self.fleet.now)

    def complete(self, rollout: str) -> None:
        """Let a rollout whose device has committed become stable."""
        self.fleet.run_until(rollout, "SOAK")
        self.fleet.now += timedelta(hours=2)
        self.fleet.run_until(rollout, "COMPLETED")
        self.fleet.now = datetime.now(UTC)

    def actions(self, device: Polling) -> list[tuple[str, str]]:
        """Version and state of the device's actions, the oldest first."""
        with self.fleet.registry.sessions() as session:
            return [(row.version, row.state) for row in reversed(actions_since(session, device.id))]

    def action(self, number: int) -> DdiAction:
        with self.fleet.registry.sessions() as session:
            return session.get_one(DdiAction, number)

    def device_of(self, name: str) -> str:
        with self.fleet.registry.sessions() as session:
            return find_device(session, TENANT, name).device


@pytest.fixture
def ddi(fleet: Fleet, tmp_path: Path) -> Iterator[Ddi]:
    with polling(fleet, tmp_path) as made:
        yield made


@contextlib.contextmanager
def polling(fleet: Fleet, tmp_path: Path) -> Iterator[Ddi]:
    """Give the fleet a signer that has a key for containers, and an app with the DDI's routes."""
    fleet.now = datetime.now(UTC)
    key = load_signer(generate_key(tmp_path / "swu.pem"))
    certificate = tmp_path / "swu.crt.pem"
    certificate.write_bytes(self_signed(key, "a fleet", fleet.now))
    signer = ReleaseSigner(
        tenant=TENANT,
        root=trusted_root(fleet.ceremony.root_json.read_bytes()),
        releases=load_signer(fleet.ceremony.releases_key),
        state=SignerState(_copied_state(fleet, tmp_path)),
        swu=SwuKey(uri=f"file:{tmp_path / 'swu.pem'}", certificate=certificate, root="/var/lib/slots"),
    )
    with tempfile.TemporaryDirectory() as short, SignerServer(Path(short) / "s", signer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        token, digest = make_user_token()
        with fleet.registry.sessions.begin() as session:
            session.add(User(tenant=TENANT, name="root", role="admin", token_sha256=digest, created_at=fleet.now))
        app = FastAPI()
        problems.install(app)
        app.include_router(fleet_router)
        app.include_router(router)
        app.state.registry = replace(fleet.registry, signer=SignerClient(Path(short) / "s"))
        http = TestClient(app, base_url=fleet.registry.public_url)
        try:
            yield Ddi(fleet, app, http, signer, certificate.read_bytes(), {"Authorization": f"Bearer {token}"})
        finally:
            server.shutdown()
            thread.join(10)


def _copied_state(fleet: Fleet, folder: Path) -> Path:
    """The signer's bins as the ceremony made them: what one test signs is no other's."""
    target = folder / "signer-state"
    target.mkdir()
    for file in fleet.ceremony.signer_state.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return target


def problem(answer: Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    return json.loads(answer.content)


def another_group(fleet: Fleet) -> None:
    with fleet.registry.sessions.begin() as session:
        session.add(Group(tenant=TENANT, name="annex", created_at=fleet.now))


__all__ = ["ACCEPTING", "PLAN", "SLOT", "Ddi", "Polling", "another_group", "problem"]
