"""The demo's acts, in order; `run` is their table of contents and the exit status their judgement."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.demo.attacks import HostileNetwork, Outcome, Recorded, attack, record
from examples.demo.devices import SLOT, DemoDevice, Devices
from examples.demo.display import Display
from examples.demo.server import Server
from modelfleet.registry.client import ApiClient
from modelfleet.registry.errors import ServerUnreachableError

MODEL = "digits"
TENANT = "acme"
FLOAT, INT8 = "linux-cpu-float", "linux-cpu-int8"
PROFILES = (FLOAT, INT8)
GROUPS = ("line-a", "line-b")
USERS = {"alice": "releaser", "bob": "approver", "ci": "publisher", "root": "admin"}
DIGITS = Path(__file__).resolve().parent.parent / "digits"
PLAN = Path(__file__).resolve().parent / "plan.toml"
ROLLOUT_TIMEOUT_SECONDS = 180
ENDED = frozenset({"COMPLETED", "ROLLED_BACK", "ROLLBACK_INCOMPLETE", "REJECTED", "CANCELLED", "EXPIRED", "SUPERSEDED"})
COMPLETED, ROLLED_BACK = "COMPLETED", "ROLLED_BACK"

Verdicts = Mapping[str, str]
"""Hardware profile -> verdict."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens in one run of the demo, and what must come of it.

    Attributes:
        devices: how many, over both groups and both profiles.
        fault: whether the int8 devices' runtime computes 1.2.0 wrongly.
        model_of: version -> the ONNX file that is published as it.
        expected: version -> profile -> verdict.
    """

    devices: int = 24
    fault: bool = True
    attacks: bool = True
    traffic_per_second: float = 60.0
    model_of: Mapping[str, str] = field(
        default_factory=lambda: {v: f"digits-{v}.onnx" for v in ("1.0.0", "1.1.0", "1.2.0", "1.3.0")}
    )
    expected: Mapping[str, Verdicts] = field(
        default_factory=lambda: {
            "1.0.0": {FLOAT: COMPLETED, INT8: COMPLETED},
            "1.1.0": {FLOAT: COMPLETED, INT8: COMPLETED},
            "1.2.0": {FLOAT: COMPLETED, INT8: ROLLED_BACK},
            "1.3.0": {FLOAT: ROLLED_BACK, INT8: ROLLED_BACK},
        }
    )


EXPECTED_REFUSALS = {
    "an old document, replayed": "ReplayError",
    "an unsigned desired state": "SignatureError",
    "a release without approvals (director's key stolen)": "ApprovalError",
    "tampered bytes (director's key stolen too)": "DigestError",
}


class Story:
    """One run: the fleet, the versions, the attacks, and what came of them."""

    def __init__(self, folder: Path, scenario: Scenario, display: Display) -> None:
        self.scenario, self.display, self._folder = scenario, display, folder
        self.server: Server
        self.devices: Devices
        self.rollouts: dict[str, str] = {}
        self.outcomes: list[Outcome] = []
        self._recorded: dict[str, Recorded] = {}

    def run(self) -> bool:
        """Tell the whole story; whether every verdict and every refusal was the expected one."""
        self.create_fleet()
        for version in self.scenario.model_of:
            self.publish(version)
            self.roll_out(version)
        if self.scenario.attacks:
            self.attack()
        return self.judge()

    def create_fleet(self) -> None:
        """Keys, service, two groups, the devices."""
        self.display.act("1. A fleet: keys, a service, two groups, real agents")
        with self.display.working("making keys and signed metadata, starting the service"):
            self.server = Server(self._folder / "fleet", tenant=TENANT, users=USERS, approvers=["bob"])
            self.server.start()
        self.display.note(
            f"service at {self.server.url}, MQTT at {self.server.mqtt_url}, signer in a process of its own"
        )
        self.admin = ApiClient(self.server.url, self.server.tokens["root"])
        with self.display.working("enrolling devices"):
            self._enrol()
        self.display.note(f"{len(self.devices.all)} devices enrolled in {' and '.join(GROUPS)}: {', '.join(PROFILES)}")

    def _enrol(self) -> None:
        scenario = self.scenario
        tokens: dict[str, str] = {}
        for group in GROUPS:
            self.admin.post("/v1/groups", {"name": group})
            asked = {"group": group, "uses": scenario.devices, "hours": 1}
            tokens[group] = self.admin.post("/v1/claim-tokens", asked)["token"]
        plan = [
            (group, PROFILES[number % 2], tokens[group])
            for number, group in enumerate(GROUPS[n * len(GROUPS) // scenario.devices] for n in range(scenario.devices))
        ]
        self.devices = Devices(self._folder / "devices", DIGITS / "traffic.npz", per_second=scenario.traffic_per_second)
        self.devices.enrol(self.server.url, plan, broken_profile=INT8 if scenario.fault else None)
        self.devices.start()

    def publish(self, version: str) -> None:
        """CI publishes; the registry scans, builds, proves, measures, judges and signs one variant per profile."""
        self.display.act(f"{MODEL} {version}: publish → scan → convert → prove → gates → sign")
        with self.display.working(f"building {MODEL} {version} for {', '.join(PROFILES)}"):
            self.server.run(
                *("publish", "--model", str(DIGITS / self.scenario.model_of[version])),
                *("--card", str(DIGITS / f"card-{version}.toml"), "--golden", str(DIGITS / "golden.npz")),
                *("--key", self._key("publisher"), "--wait"),
                user="ci",
            )
        self._show_variants(version)
        if self.scenario.fault and version == "1.2.0":
            self._break_int8_devices(version)

    def roll_out(self, version: str) -> None:
        """Start a rollout, and show it until the controller has decided on every profile."""
        self.start_rollout(version)
        self.follow(version)

    def start_rollout(self, version: str) -> None:
        """Alice drafts, bob approves with a key of his own, alice starts."""
        server = self.server
        groups = [argument for group in GROUPS for argument in ("--group", group)]
        drafted = server.run(
            *("rollout", "create", MODEL, version, "--slot", SLOT, *groups, "--plan", str(PLAN)),
            user="alice",
        )
        self.rollouts[version] = drafted["id"]
        server.run("rollout", "approve", drafted["id"], "--key", self._key("approver-bob"), "--yes", user="bob")
        server.run("rollout", "start", drafted["id"], user="alice")
        self.display.note(f"rollout {drafted['id'][:8]} drafted by alice, approved by bob, started")

    def follow(self, version: str) -> None:
        """Show a started rollout until the controller has decided on every profile."""
        self._watch(version)
        self._record(version)

    def attack(self) -> None:
        """A hostile broker and a hostile mirror take one device's network."""
        self.display.act("A hostile broker and a hostile registry")
        victim = next(device for device in reversed(self.devices.all) if device.profile == FLOAT)
        network = HostileNetwork(self.server.url, TENANT)
        network.start()
        self.devices.without_traffic(victim)
        try:
            now = record(self.server.url, victim)
            with network.captured(victim):
                network.publish(victim, group=now.group, assignment=now.assignment)
                self._await_connection(victim)
                director = f"file:{(self.server.data / 'service' / 'director.pem').absolute()}"
                for outcome in attack(network, victim, old=self._recorded["1.0.0"], now=now, director_uri=director):
                    self.outcomes.append(outcome)
                    self.display.note(f"{outcome.attack}: refused with {outcome.refused_with or 'NOTHING'}")
        finally:
            network.stop()

    def judge(self) -> bool:
        """Read the verdicts from the API, show the tables, and say whether all is as expected."""
        self.display.act("What came of it, read from the API")
        wrong = self._show_verdicts()
        if self.scenario.attacks:
            wrong += self._show_refusals()
        self._show_audit("1.2.0" if "1.2.0" in self.rollouts else next(iter(self.rollouts)))
        for line in wrong:
            self.display.console.print(f"[red]UNEXPECTED[/red] {line}")
        if not wrong:
            self.display.console.print("[green]every verdict is the expected one[/green]")
        return not wrong

    def stop(self) -> None:
        """Stop the devices, then the service."""
        if hasattr(self, "devices"):
            self.devices.stop()
        if hasattr(self, "server"):
            self.server.stop()

    def log_tail(self) -> str:
        """Return the end of the server's log, for a failure's message."""
        return self.server.log_tail() if hasattr(self, "server") else ""

    def rollout(self, version: str) -> dict[str, Any]:
        """Return the rollout of a version as the API gives it."""
        return self.admin.get(f"/v1/rollouts/{self.rollouts[version]}")

    def _watch(self, version: str) -> None:
        until = time.monotonic() + ROLLOUT_TIMEOUT_SECONDS
        found: dict[str, Any] = {"profiles": []}
        with self.display.rollout(f"{MODEL} {version}") as view:
            while time.monotonic() < until:
                try:
                    found = self.rollout(version)
                except ServerUnreachableError:  # it is being restarted: the rollout goes on from where it was
                    continue
                view.update(found["profiles"])
                if found["profiles"] and all(row["verdict"] in ENDED for row in found["profiles"]):
                    break
                time.sleep(0.2)
        for row in found["profiles"]:
            seconds = row["trial_seconds"] or 0.0
            self.display.note(
                f"{version} on {row['profile']}: {row['verdict']} after {seconds:.0f} s ({row['reason']})"
            )

    def _record(self, version: str) -> None:
        """The attacker listens from the start: it keeps what every version's end looked like on the wire."""
        victim = next(device for device in reversed(self.devices.all) if device.profile == FLOAT)
        self._recorded[version] = record(self.server.url, victim)

    def _await_connection(self, victim: DemoDevice) -> None:
        until = time.monotonic() + 15
        while not victim.status()["online"] and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)  # the retained documents come right after the subscription

    def _break_int8_devices(self, version: str) -> None:
        rows = self.admin.get("/v1/variants", model=MODEL, version=version, profile=INT8)["variants"]
        self.devices.fault.digests = {
            file["sha256"] for row in rows for file in row["files"] if file["role"] == "model"
        }
        self.display.note(f"fault: the runtime of the {INT8} devices computes {version} wrongly from now on")

    def _show_variants(self, version: str) -> None:
        rows = self.admin.get("/v1/variants", model=MODEL, version=version)["variants"]
        shown = [
            (
                row["profile"],
                row["precision"],
                f"{row['size_bytes']:,}",
                f"{row['evidence']['gate']['accuracy']:.4f}",
                f"{row['evidence']['gate']['max_error']:.2g}",
                f"{row['evidence']['gate']['latency_p95_ms']:.3f}",
                row["state"],
                row["manifest_sha256"][:12],
            )
            for row in rows
        ]
        columns = ("profile", "precision", "bytes", "accuracy", "max error", "p95 ms", "state", "manifest")
        self.display.table(f"variants of {MODEL} {version}", columns, shown)

    def _show_verdicts(self) -> list[str]:
        shown: list[Sequence[object]] = []
        wrong: list[str] = []
        for version, expected in self.scenario.expected.items():
            rows = {row["profile"]: row for row in self.rollout(version)["profiles"]}
            for profile, verdict in expected.items():
                row = rows[profile]
                counts, median = row["devices"], row["median_seconds"]
                devices = f"{counts['started']} of {counts['total']}"
                deployed = "" if median is None else f"{median:.1f}"
                seconds = f"{row['trial_seconds'] or 0:.1f}"
                shown.append((version, profile, row["verdict"], devices, seconds, deployed, row["reason"]))
                if row["verdict"] != verdict:
                    wrong.append(f"{version} on {profile}: expected {verdict}, got {row['verdict']}")
        columns = ("version", "profile", "verdict", "devices", "seconds", "per device", "why")
        self.display.table("version × profile", columns, shown)
        return wrong

    def _show_refusals(self) -> list[str]:
        shown = [
            (o.attack, "REFUSED" if o.refused_with else "ACCEPTED", o.refused_with, o.still_runs) for o in self.outcomes
        ]
        self.display.table("attacks on one device", ("attack", "verdict", "error class", "device still runs"), shown)
        got = {outcome.attack: outcome.refused_with for outcome in self.outcomes}
        wrong = [
            f"{name}: expected {kind}, got {got.get(name) or 'no refusal'}"
            for name, kind in EXPECTED_REFUSALS.items()
            if got.get(name) != kind
        ]
        return wrong + [f"{o.attack}: the model {o.still_runs}" for o in self.outcomes if "CHANGED" in o.still_runs]

    def _show_audit(self, version: str) -> None:
        rows = self.admin.get("/v1/audit", subject=f"rollout/{self.rollouts[version]}")["records"]
        shown = [(row["at"][11:19], row["actor"], row["action"], _brief(row["detail"])) for row in rows]
        self.display.table(
            f"audit trail of the rollout of {version}", ("at (UTC)", "actor", "action", "evidence"), shown
        )

    def _key(self, name: str) -> str:
        return f"file:{(self.server.data / 'people' / f'{name}.pem').absolute()}"


def _brief(detail: Mapping[str, Any]) -> str:
    hidden = ("model", "version", "slot", "revision")
    facts = {key: value for key, value in detail.items() if key not in hidden and not isinstance(value, dict | list)}
    return ", ".join(f"{key}={value}" for key, value in facts.items() if value not in (None, ""))[:110]
