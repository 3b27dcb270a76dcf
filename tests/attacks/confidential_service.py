"""A whole confidential fleet: registry, signer process, builds and controller, real agents on loopback, one secret model.

The same model is published twice, as `ui/secret` (confidential) and as `ui/open`: what the second shows of the model's
bytes is what the first must not show.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.identity import Identity, device_token, load_key
from modelfleet.registry.build import build_variant, finish_version
from modelfleet.registry.kek import FileKek
from modelfleet.registry.tables import DataKey, Variant, Version
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.lifecycle import RolloutRequest
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.desired.device_keys import router as keys_router
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.rollout.routes import router
from modelfleet.service.signer_process import SignerProcess
from modelfleet.signer.keys import load_signer
from modelfleet.signer.manifest import Manifest, parse_manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import sign_approval
from tests.unit.agent_client.fleet import Device, now
from tests.unit.agent_client.fleet import Fleet as AgentFleet
from tests.unit.registry.conftest import CARD, Fleet, serve
from tests.unit.registry.samples import golden_of, small_model
from tests.waiting import until

SECRET, OPEN, PROFILE, SLOT = "ui/secret", "ui/open", "linux-cpu-float", "classifier"
PLAN: dict[str, Any] = {"stages": [1.0], "limits": {"probation_seconds": 0, "metrics_seconds": 1}}
RUN_BYTES = 64
SAMPLE = {"x": np.random.default_rng(5).normal(size=(1, 4)).astype(np.float32)}


@dataclass
class ConfidentialFleet:
    """What runs, and what of it an attacker may look at."""

    url: str
    registry: Fleet
    controller: Controller
    agents: dict[str, Device] = field(default_factory=dict)
    known: dict[str, bytes] = field(default_factory=dict)

    @property
    def kek(self) -> Path:
        return Path(self.registry.registry.kek_uri.removeprefix("file:"))

    def publish(self, model: str, version: str = "1.0.0", *, confidential: bool) -> int:
        """Publish the model and build its variant."""
        publication = self.registry.publication()
        publication.model, publication.golden = small_model(), golden_of()
        card = CARD.replace("ui/shapes", model).replace("1.0.0", version)
        publication.card = f"confidential = {str(confidential).lower()}\n{card}"
        answer = self.registry.publish(publication.parts())
        assert answer.status_code == 201, answer.text
        version_id = self.registry.queue.waiting[-1]
        build_variant(self.registry.registry, version_id, PROFILE)
        finish_version(self.registry.registry, version_id)
        return version_id

    def variant(self, model: str, version: str = "1.0.0") -> Variant:
        with self.registry.sessions() as session:
            return session.query(Variant).filter_by(model=model, version=version, profile=PROFILE).one()

    def manifest(self, model: str) -> Manifest:
        digest = self.variant(model).manifest_sha256
        assert digest is not None
        with self.registry.registry.store.open(digest) as blob:
            return parse_manifest(blob.read())

    def roll_out(self, model: str, group: str, version: str = "1.0.0") -> None:
        """Draft, approve and start a rollout of one stage; the devices of the group then have it as a candidate."""
        direction, moment = self.controller.direction, now()
        asked = RolloutRequest(model=model, version=version, slot=SLOT, groups=(group,), plan=PLAN)
        rollout = lifecycle.create(direction, asked, author="alice", now=moment)
        approval = lifecycle.approval_request(self.registry.registry, rollout, moment)
        envelope = sign_approval(approval, load_signer(self.registry.paths.approver_keys["bob"]))
        lifecycle.approve(direction, rollout, envelope, actor="bob", now=moment)
        lifecycle.start(direction, rollout, actor="alice", now=moment)
        self.controller.dispatch()

    def enrol(self, root: Path, group: str) -> Identity:
        admin = self.registry.as_("admin")
        admin.post("/v1/groups", json={"name": group})
        claim = admin.post("/v1/claim-tokens", json={"group": group, "uses": 1}).json()["token"]
        return enroll(root, self.url, claim, PROFILE)

    def run_agent(self, root: Path, group: str) -> Device:
        """Enrol a device in the group and run its agent, which polls."""
        self.enrol(root, group)
        # Of the agent tests' device, all that is used here is what steers its own agent.
        unused: AgentFleet = self  # pyright: ignore[reportAssignmentType]
        self.agents[group] = device = Device(fleet=unused, root=root)
        device.start()
        return device

    def asks_for_key(self, root: Path, identity: Identity, manifest_sha256: str) -> httpx.Response:
        """What the server answers a device that shows its own token."""
        headers = {"Authorization": f"Bearer {device_token(identity.device, load_key(root))}"}
        return httpx.get(f"{self.url}/v1/device/keys/{manifest_sha256}", headers=headers, timeout=20)

    def actions(self, subject: str) -> list[str]:
        records = self.registry.as_("admin").get("/v1/audit", params={"subject": subject}).json()["records"]
        return [row["action"] for row in records]

    def rows(self) -> list[DataKey]:
        with self.registry.sessions() as session:
            return list(session.query(DataKey).all())

    def version(self, model: str) -> Version:
        with self.registry.sessions() as session:
            return session.query(Version).filter_by(model=model).one()


@contextmanager
def confidential_fleet(folder: Path, template: Path) -> Iterator[ConfidentialFleet]:
    """Run everything; `ui/secret` and `ui/open` are built, the first rolled to a device of group `lab`, the second of `shop`."""
    registry = Fleet(folder / "service", template)
    kek = FileKek(folder / "service" / "data" / "service" / "kek.json")
    kek.make()
    hub = MemoryBroker()
    with ExitStack() as running:
        running.callback(registry.engine.dispose)
        registry.app.include_router(router)
        registry.app.include_router(keys_router)
        url = running.enter_context(serve(registry.app))
        registry.registry = replace(registry.registry, kek_uri=f"file:{kek.path}", public_url=url, mqtt_url="")
        signer = SignerProcess(registry.paths.data_dir, "acme")
        registry.use_signer(signer.socket)
        running.callback(signer.stop)
        signer.start()
        controller = Controller(registry.registry, hub.client(), load_signer(registry.paths.director_key), now)
        registry.app.state.controller = controller
        running.callback(controller.stop)
        controller.start()
        made = ConfidentialFleet(url=url, registry=registry, controller=controller)
        for model, group in ((SECRET, "lab"), (OPEN, "shop")):
            made.publish(model, confidential=model == SECRET)
            device = made.run_agent(folder / group, group)
            running.callback(device.stop)
            made.roll_out(model, group)
        for device in made.agents.values():
            until(lambda device=device: device.slot["state"] == "COMMITTED", 20.0, shown=device.agent.status)
        made.known = _runs(made)
        yield made


def shows(run: bytes, folder: Path) -> list[str]:
    """Return the files below the folder that hold the run of bytes."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path.relative_to(folder)) for path in found if run in path.read_bytes()]


def _runs(made: ConfidentialFleet) -> dict[str, bytes]:
    """Return a run of bytes from the middle of each plain file: model and golden set, as published and as built."""
    found = {"source": small_model(), "golden set": golden_of()}
    with made.registry.registry.store.open(sha256_of(small_model())) as blob:
        assert blob.read() == small_model()
    for file in made.manifest(OPEN).files:
        with made.registry.registry.store.open(file.sha256) as blob:
            found[f"built {file.name}"] = blob.read()
    return {name: data[len(data) // 2 :][:RUN_BYTES] for name, data in found.items()}
