"""`make bench SUITE=device`: what the device's own work costs, beside what cannot be avoided.

1. Verify and switch, as `reconcile` does it once the files are there: `SlotStore.complete`, `SlotStore.holds`,
   `SlotStore.activate`, on a variant of 64 MiB. The peer is `sha256sum` of the same files.
2. No downtime: an application calls `Model.run` without a pause while the slot is switched again and again.
3. `Model.run` beside the bare onnxruntime session, on examples/digits.
"""

import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modelfleet.agent_client import Model, open_model
from modelfleet.benchmarks.golden import load_golden
from modelfleet.benchmarks.suites._report import Target, alternate, bar, percentile, seconds_of, show, verdict
from modelfleet.benchmarks.suites._switching import (
    SLOT,
    SwitchingAgent,
    Variant,
    embedding_golden,
    embedding_model,
    variant_of,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SWITCHES_TIMED = 7
SWITCHES_IN_USE = 8
CALLS = 2000
FOLLOW_SECONDS = 10.0

TARGET_RATIO = 1.2
TARGET_ADDED_US = 100.0


def main() -> int:
    """Run the three measurements and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        root = Path(folder)
        variants = [variant_of(f"1.{seed}.0", embedding_model(seed), embedding_golden()) for seed in (0, 1)]
        targets = [*measure_switch(root / "switch", variants), *measure_downtime(root / "use", variants)]
        targets += measure_overhead(root / "digits")
    return verdict("device", targets)


def measure_switch(root: Path, variants: list[Variant]) -> list[Target]:
    """Time verification and switch beside `sha256sum` of the same files."""
    agent = SwitchingAgent(root, variants)
    pair = alternate(agent.timed_switch, agent.timed_sha256sum, rounds=SWITCHES_TIMED)
    library = alternate(agent.timed_switch, agent.timed_hashlib, rounds=SWITCHES_TIMED)
    sizes = sum(entry.length for entry in variants[0].manifest.files)
    rows = {
        "agent: verify, fsync, verify again, switch": percentile([*pair.ours, *library.ours], 0.5),
        "  of this: complete (verify, read-only, fsync)": percentile(agent.parts["complete"], 0.5),
        "  of this: holds (verify before the switch)": percentile(agent.parts["holds"], 0.5),
        "  of this: activate (one rename, fsynced)": percentile(agent.parts["activate"], 0.5),
        "sha256sum (coreutils)": percentile(pair.peer, 0.5),
        "hashlib.file_digest, one pass": percentile(library.peer, 0.5),
    }
    longest = max(rows.values())
    show(
        f"verify and switch, {sizes / 2**20:.1f} MiB, medians of {SWITCHES_TIMED} rounds in turn with each peer",
        ("what", "ms", ""),
        [(name, f"{seconds * 1000:.2f}", bar(seconds, longest)) for name, seconds in rows.items()],
    )
    print(
        f"ratio to sha256sum {pair.ratio:.2f}; to one pass of hashlib {library.ratio:.2f} (no target: the agent makes two,"
        " and coreutils' sha256sum may lack the CPU's SHA instructions)"
    )
    return [Target(what="verify and switch over sha256sum", got=pair.ratio, limit=TARGET_RATIO)]


def measure_downtime(root: Path, variants: list[Variant]) -> list[Target]:
    """Switch under an application that never pauses; it must fail no call and must follow every switch."""
    agent = SwitchingAgent(root, variants)
    agent.install_next()
    with open_model(SLOT, root=root) as model:
        application = Application(model, {"ids": np.arange(8, dtype=np.int64).reshape(1, 8)})
        thread = threading.Thread(target=application.work)
        thread.start()
        try:
            followed = sum(application.follows(agent.install_next()) for _ in range(SWITCHES_IN_USE))
        finally:
            application.stop.set()
            thread.join()
    calls = application.seconds
    show(
        f"an application that calls without a pause, {SWITCHES_IN_USE} switches of 64 MiB",
        ("calls", "failed", "switches followed", "median ms", "p99 ms", "longest ms"),
        [
            (
                f"{len(calls):,}",
                len(application.failures),
                followed,
                *(f"{seconds * 1000:.2f}" for seconds in (percentile(calls, 0.5), percentile(calls, 0.99), max(calls))),
            )
        ],
    )
    print(
        f"the first call that the new model answers, opened by a thread meanwhile: median"
        f" {percentile(application.first_seconds, 0.5) * 1000:.0f} ms, longest {max(application.first_seconds) * 1000:.0f} ms"
    )
    return [
        Target(what="calls failed during switches", got=len(application.failures), limit=0),
        Target(what="switches followed", got=followed, limit=SWITCHES_IN_USE, at_most=False),
    ]


def measure_overhead(root: Path) -> list[Target]:
    """Time `Model.run` beside the session of onnxruntime that it holds, call by call in turn."""
    model_path, golden = EXAMPLES / "digits" / "digits-1.2.0.onnx", EXAMPLES / "digits" / "golden.npz"
    agent = SwitchingAgent(root, [variant_of("1.2.0", model_path.read_bytes(), golden.read_bytes())])
    agent.install_next()
    sample = load_golden(golden).sample(0)
    session = bare_session(model_path)
    with open_model(SLOT, root=root) as model:
        pair = alternate(
            lambda: seconds_of(lambda: model.run(sample)),
            lambda: seconds_of(lambda: session.run(None, sample)),
            rounds=CALLS,
        )
    us = {
        name: [second * 1e6 for second in seconds]
        for name, seconds in (("open_model().run", pair.ours), ("onnxruntime", pair.peer))
    }
    rows = [
        (
            name,
            *(f"{percentile(values, share):.1f}" for share in (0.5, 0.95)),
            bar(percentile(values, 0.5), percentile(us["open_model().run"], 0.5)),
        )
        for name, values in us.items()
    ]
    added = percentile(us["open_model().run"], 0.5) - percentile(us["onnxruntime"], 0.5)
    show(f"one inference of digits 1.2.0, {CALLS} calls in turn", ("what", "median µs", "p95 µs", ""), rows)
    print(f"added per call: {added:.1f} µs (counted, checked, followed)")
    return [Target(what="time that run adds per call, median", got=added, limit=TARGET_ADDED_US, unit="µs")]


@dataclass
class Application:
    """Calls a model until it is stopped.

    Attributes:
        seconds: of every call that was answered; `first_seconds` of those during which it took up another version.
        failures: what was raised by the others.
    """

    model: Model
    inputs: dict[str, Any]
    stop: threading.Event = field(default_factory=threading.Event)
    seconds: list[float] = field(default_factory=list[float])
    first_seconds: list[float] = field(default_factory=list[float])
    failures: list[Exception] = field(default_factory=list[Exception])

    def work(self) -> None:
        """Call without a pause."""
        version = self.model.version
        while not self.stop.is_set():
            try:
                self.seconds.append(seconds_of(lambda: self.model.run(self.inputs)))
            except Exception as error:  # noqa: BLE001 - whatever a call raises is what is counted
                self.failures.append(error)
            if self.model.version != version:
                version = self.model.version
                self.first_seconds.append(self.seconds[-1])

    def follows(self, version: str) -> bool:
        """Return whether the application runs `version` before long."""
        until = time.monotonic() + FOLLOW_SECONDS
        while self.model.version != version and time.monotonic() < until:
            time.sleep(0.002)
        return self.model.version == version


def bare_session(path: Path) -> Any:
    """Return onnxruntime's own session, with the options that the agent's runtime sets."""
    import onnxruntime as _onnxruntime

    onnxruntime: Any = _onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
