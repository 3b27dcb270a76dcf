"""`make bench SUITE=device`: what the device's own work costs, beside what cannot be avoided.

1. Verify and switch, as `reconcile` does it once the files are there: `SlotStore.complete`, `SlotStore.holds`,
   `SlotStore.activate`, on a variant of 64 MiB. The peer is `sha256sum` of the same files.
2. No downtime: an application calls `Model.run` without a pause while the slot is switched again and again.
3. `Model.run` beside the bare onnxruntime session, on examples/digits.
"""

import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper as onnx_helper
from onnx import TensorProto

from modelfleet.agent_client import Model, open_model
from modelfleet.agent_client.slots import Pointer, SlotStore, slot_folder
from modelfleet.agent_client.storage import Disk
from modelfleet.benchmarks.golden import load_golden
from modelfleet.benchmarks.session import open_onnxruntime
from modelfleet.benchmarks.suites._report import Target, alternate, bar, percentile, seconds_of, show, verdict
from modelfleet.signer.manifest import Manifest, ManifestFile, ManifestLimits, Tolerance, encode_manifest
from modelfleet.signer.names import sha256_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SLOT = "classifier"
TABLE_ROWS, TABLE_COLUMNS = 262_144, 64  # of float32: 64 MiB
SWITCHES_TIMED = 7
SWITCHES_IN_USE = 8
CALLS = 2000
FOLLOW_SECONDS = 10.0

TARGET_RATIO = 1.2
TARGET_ADDED_US = 100.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant whose files lie in a folder as `fetch` left them."""

    manifest: Manifest
    model: bytes
    golden: bytes

    @property
    def data(self) -> bytes:
        """The manifest's bytes."""
        return encode_manifest(self.manifest)

    @property
    def sha256(self) -> str:
        """The manifest's digest."""
        return sha256_of(self.data)


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
        f"verify and switch, {sizes / 2**20:.1f} MiB, median of {SWITCHES_TIMED} rounds in turn",
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
        f"the first call after a switch verifies and opens the new model: median"
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


class SwitchingAgent:
    """Installs variants into a slot in turn, by the agent's own functions, as `reconcile` calls them.

    Args:
        variants: two or fewer, so that after the first switches the idle directory holds what comes next, and only
            verification and the switch are left to do.
    """

    def __init__(self, root: Path, variants: list[Variant]) -> None:
        self._disk = Disk()
        self._store = SlotStore(slot_folder(root, SLOT), self._disk)
        self._variants = variants
        self._activation = 0
        self.parts: dict[str, list[float]] = {"complete": [], "holds": [], "activate": []}

    def install_next(self) -> str:
        """Make the next variant active and return its version."""
        variant, folder = self._receive_next()
        self._switch(variant, folder)
        return variant.manifest.version

    def timed_switch(self) -> float:
        """Make the next variant active; return the seconds from complete files to the switch."""
        variant, folder = self._receive_next()
        return seconds_of(lambda: self._switch(variant, folder))

    def timed_sha256sum(self) -> float:
        """Return the seconds of `sha256sum` on the files that run."""
        return seconds_of(lambda: subprocess.run(["sha256sum", *self._files()], check=True, capture_output=True))

    def timed_hashlib(self) -> float:
        """Return the seconds of one pass of hashlib over the files that run."""
        return seconds_of(lambda: [_digest(path) for path in self._files()])

    def _receive_next(self) -> tuple[Variant, Path]:
        """Have the files in the idle directory, on the disk, as `install.fetch` leaves them."""
        variant = self._variants[self._activation % len(self._variants)]
        folder = self._store.prepare(variant.manifest)
        for entry in self._store.missing(variant.manifest, folder):
            (folder / entry.name).write_bytes(variant.model if entry.role == "model" else variant.golden)
            self._disk.sync_file(folder / entry.name)
        return variant, folder

    def _switch(self, variant: Variant, folder: Path) -> None:
        self._activation += 1
        self._part("complete", lambda: self._store.complete(folder, variant.data))
        self._part("holds", lambda: self._require_held(variant))
        pointer = Pointer(
            directory=self._store.idle(),
            activation=self._activation,
            sha256=variant.sha256,
            version=variant.manifest.version,
            latency_ms=1000.0,
        )
        self._part("activate", lambda: self._store.activate(pointer))

    def _require_held(self, variant: Variant) -> None:
        if self._store.holds(variant.sha256) is None:
            raise AssertionError(f"{variant.manifest.version}: expected it whole in the idle directory, it is not")

    def _part(self, name: str, act: Callable[[], object]) -> None:
        self.parts[name].append(seconds_of(act))

    def _files(self) -> list[Path]:
        pointer = self._store.pointer()
        assert pointer is not None
        folder = self._store.path(pointer.directory)
        return [folder / entry.name for entry in self._variants[0].manifest.files]


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


def variant_of(version: str, model: bytes, golden: bytes) -> Variant:
    """Return a variant of these files, its manifest as a converter worker would write it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        session = open_onnxruntime(path)
    manifest = Manifest(
        tenant="bench",
        model="bench",
        version=version,
        channel="stable",
        profile="linux-cpu-float",
        runtime="onnxruntime",
        precision="float",
        counter=1,
        source_sha256=sha256_of(model),
        files=(
            ManifestFile(name="model.onnx", sha256=sha256_of(model), length=len(model), role="model"),
            ManifestFile(name="golden.npz", sha256=sha256_of(golden), length=len(golden), role="golden"),
        ),
        entry="model.onnx",
        golden="golden.npz",
        inputs=session.inputs,
        outputs=session.outputs,
        limits=ManifestLimits(latency_ms=1000.0, memory_bytes=2**30),
        tolerance=Tolerance(rtol=0, atol=0),
    )
    return Variant(manifest=manifest, model=model, golden=golden)


def embedding_model(seed: int) -> bytes:
    """Return a classifier of 8 ids by an embedding table of 64 MiB: large to verify, quick to run."""
    random = np.random.default_rng(seed)
    table = random.standard_normal((TABLE_ROWS, TABLE_COLUMNS), dtype=np.float32)
    weights = random.standard_normal((TABLE_COLUMNS, 10), dtype=np.float32)
    graph = onnx_helper.make_graph(
        [
            onnx_helper.make_node("Gather", ["table", "ids"], ["rows"]),
            onnx_helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
            onnx_helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
        ],
        "embedding",
        [onnx_helper.make_tensor_value_info("ids", TensorProto.INT64, [None, 8])],
        [onnx_helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 10])],
        [
            onnx_helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.tobytes(), raw=True)
            for name, value in (("table", table), ("weights", weights))
        ],
    )
    return onnx_helper.make_model(
        graph, opset_imports=[onnx_helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()


def embedding_golden() -> bytes:
    """Return bytes in the place of a golden set; nothing here opens them."""
    return np.random.default_rng(1).bytes(4096)


def bare_session(path: Path) -> Any:
    """Return onnxruntime's own session, with the options that the agent's runtime sets."""
    import onnxruntime as _onnxruntime

    onnxruntime: Any = _onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
