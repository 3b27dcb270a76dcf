"""A real service with DDI devices, and swupdate as it is run on a device: one folder for its files, nothing of this machine's."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from examples.demo.server import Server
from modelfleet.registry.card import parse_card
from modelfleet.registry.cli_publish import statement
from modelfleet.registry.client import ApiClient
from modelfleet.signer.keys import load_signer
from modelfleet.signer.parse import convert
from modelfleet.signer.sign import sign_approval, sign_source
from modelfleet.signer.statements import Approval
from tests.servers import program
from tests.unit.registry.samples import golden_of, small_model
from tests.waiting import until

TENANT, PROFILE, MODEL = "default", "linux-cpu-float", "ui/shapes"
CARD = """
name = "ui/shapes"
version = "{version}"
channel = "stable"
license = "Apache-2.0"
summary = "Tells three shapes apart."
intended_use = "Tests."
profiles = ["linux-cpu-float"]

[limits]
latency_ms = 500.0
"""
PLAN: dict[str, Any] = {
    "stages": [1.0],
    "bake_seconds": 0,
    "soak_seconds": 0,
    "min_canaries": 1,
    "accept_unsigned": True,
    "rollback_seconds": 60,
}
SECONDS = 60.0


class Hawkbit:
    """The service with a group, its approver, its key for containers, and versions of one small model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        users = {"root": "admin", "alice": "releaser", "bob": "approver", "ci": "publisher"}
        self.server = Server(folder / "fleet", tenant=TENANT, users=users, approvers=["bob"])
        self.certificate = Path(
            self.server.run("ddi", "keys", "init", "--data", str(self.server.data), user="root")["certificate"]
        )
        self.server.start()
        self.root, self.alice, self.bob, self.ci = (
            ApiClient(self.server.url, self.server.tokens[name]) for name in users
        )

    def publish(self, *versions: str) -> None:
        for number, version in enumerate(versions, start=1):
            self._publish(version, number)
        for version in versions:
            until(lambda version=version: self._is_ready(version), seconds=SECONDS, shown=self.log)

    def add_device(self, name: str, **more: str) -> str:
        """Register a device in a group of its own, whose slot has the same name, and return its target token."""
        self.root.post("/v1/groups", {"name": name})
        asked = {"name": name, "group": name, "profile": PROFILE, **more}
        self.root.post("/v1/ddi/devices", asked)
        return str(self.root.post("/v1/ddi/tokens", {"device": name})["token"])

    def gateway_token(self, group: str) -> str:
        return str(self.root.post("/v1/ddi/tokens", {"group": group})["token"])

    def launch(self, name: str, version: str, **plan: Any) -> str:
        """Draft, approve and start a rollout for a device's group; its id."""
        asked = {"model": MODEL, "version": version, "slot": name, "groups": [name], "plan": PLAN | plan}
        rollout = str(self.alice.post("/v1/rollouts", asked)["id"])
        approval = convert(self.bob.get(f"/v1/rollouts/{rollout}/approval-request"), Approval)
        envelope = sign_approval(approval, load_signer(f"file:{self._key('approver-bob')}"))
        self.bob.post(f"/v1/rollouts/{rollout}/approvals", {"envelope": msgspec.json.decode(envelope)})
        self.alice.post(f"/v1/rollouts/{rollout}/start")
        return rollout

    def act(self, rollout: str, verb: str) -> None:
        self.alice.post(f"/v1/rollouts/{rollout}/{verb}", {"reason": "a test"})

    def state(self, rollout: str) -> str:
        return str(self.alice.get(f"/v1/rollouts/{rollout}")["state"])

    def comes_to(self, rollout: str, state: str) -> None:
        until(
            lambda: self.state(rollout) == state, seconds=SECONDS, shown=lambda: f"{self.state(rollout)}\n{self.log()}"
        )

    def running(self, name: str) -> str | None:
        """The version that the slot's `current` link leads to."""
        manifest = self.folder / "slots" / name / "current" / "manifest.json"
        return json.loads(manifest.read_text())["version"] if manifest.exists() else None

    def actions(self, device: str) -> list[tuple[str, str]]:
        """The device's actions, the oldest first: version and state."""
        found = self.root.get(f"/v1/ddi/devices/{device}/actions")["actions"]
        return [(each["version"], each["state"]) for each in reversed(found)]

    def action_comes_to(self, device: str, *expected: tuple[str, str]) -> None:
        until(
            lambda: self.actions(device)[-len(expected) :] == list(expected),
            seconds=SECONDS,
            shown=lambda: f"{self.actions(device)}\n{self.log()}",
        )

    def log(self) -> str:
        return self.server.log_tail(60)

    def _publish(self, version: str, number: int) -> None:
        model, golden, card = (
            self.folder / "model.onnx",
            self.folder / "golden.npz",
            CARD.format(version=version).encode(),
        )
        model.write_bytes(small_model(1.0 + number / 100))
        golden.write_bytes(golden_of())
        source = statement(parse_card(card), TENANT, model, card, golden)
        envelope = sign_source(source, load_signer(f"file:{self._key('publisher')}"))
        self.ci.upload("/v1/versions", {"model": model, "card": card, "golden": golden, "statement": envelope})

    def _is_ready(self, version: str) -> bool:
        found = self.ci.get("/v1/variants", model=MODEL, version=version)["variants"]
        return [each["state"] for each in found] == ["READY"]

    def _key(self, name: str) -> Path:
        return self.server.data / "people" / f"{name}.pem"


class Swupdate:
    """One device with Debian's swupdate."""

    def __init__(
        self,
        folder: Path,
        hawkbit: Hawkbit,
        name: str,
        token: str,
        *,
        certificate: Path | None = None,
        flag: str = "-k",
    ) -> None:
        self.folder, self.hawkbit, self.name, self.token = folder, hawkbit, name, f"{flag} {token}"
        self.certificate = certificate or hawkbit.certificate
        self.log = folder / "swupdate.log"
        (folder / "tmp").mkdir(parents=True)

    @contextlib.contextmanager
    def running(self, *more: str) -> Iterator[None]:
        """Run swupdate until the block ends; `more` are suricatta's arguments, such as `-c 2`."""
        suricatta = f"-t {TENANT} -u {self.hawkbit.server.url} -i {self.name} {self.token} -p 1 {' '.join(more)}"
        command = [
            program("swupdate"),
            "-v",
            "-H",
            f"modelfleet:{PROFILE}",
            "-k",
            str(self.certificate),
            "-u",
            suricatta,
        ]
        environment = {**os.environ, "TMPDIR": str(self.folder / "tmp")}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder, start_new_session=True
            )
            try:
                yield
            finally:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)

    def said(self, text: str) -> int:
        """How often a text stands in the log."""
        return self.log.read_text(errors="replace").count(text) if self.log.exists() else 0
