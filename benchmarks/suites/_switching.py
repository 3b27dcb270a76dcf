"""What `device` measures: variants of a size, and an agent that does nothing but switch between them."""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx.helper as onnx_helper
from onnx import TensorProto

from modelfleet.agent_client.slots import Pointer, SlotStore, slot_folder
from modelfleet.agent_client.storage import Disk
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.suites._report import seconds_of
from modelfleet.signer.manifest import Manifest, ManifestFile, ManifestLimits, Tolerance, encode_manifest
from modelfleet.signer.names import sha256_of

SLOT = "classifier"
TABLE_ROWS, TABLE_COLUMNS = 262_144, 64  # of float32: 64 MiB


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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
