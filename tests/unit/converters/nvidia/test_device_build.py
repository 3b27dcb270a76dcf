"""A recipe executed as on a device, with TensorRT-RTX as its builder: real up to the engine's bytes, which need no GPU."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelfleet.agent_client.errors import BenchmarkError, LocalBuildError
from modelfleet.agent_client.local_build import build_here, is_built, reasons_against_build
from modelfleet.agent_client.storage import Disk
from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import load_golden
from modelfleet.benchmarks.runtimes import tensorrt
from modelfleet.benchmarks.runtimes.cuda import gpu_name
from modelfleet.benchmarks.runtimes.engine_builder import EngineBuildError, builder_version
from modelfleet.benchmarks.runtimes.local_build import BUILT_NAME, UNPROVED_NAME, open_built, refusal_path
from modelfleet.benchmarks.runtimes.recipe import encode_recipe, read_recipe
from modelfleet.benchmarks.runtimes.table import LOCAL_BUILDS
from modelfleet.benchmarks.runtimes.tensorrt import RECIPE_BUILD
from modelfleet.converters.nvidia.tensorrt import ToTensorRt
from modelfleet.hardware_profiles.profile import Precision
from modelfleet.signer.manifest import (
    CONFIDENTIAL_FORMAT,
    Manifest,
    ManifestFile,
    ManifestLimits,
    Tensor,
    Tolerance,
)
from modelfleet.signer.names import sha256_of
from modelfleet.signer.segments import ciphertext_length

DIGITS = Path(__file__).parents[4] / "examples" / "digits"
pytestmark = pytest.mark.skipif(not builder_version("tensorrt-rtx"), reason="tensorrt-rtx is not installed")


@pytest.fixture
def folder(tmp_path: Path, profiles) -> Path:
    """A slot's directory with a recipe for TensorRT-RTX and its network."""
    made = tmp_path / "slots" / "digits" / "a"
    made.mkdir(parents=True)
    golden = load_golden(DIGITS / "golden.npz")
    ToTensorRt().convert(DIGITS / "digits-1.0.0.onnx", made, Precision.FP16, golden, profiles["jetson-orin"])
    change(made, builder="tensorrt-rtx")
    return made


def change(folder: Path, **changes: Any) -> None:
    entry = folder / "recipe.json"
    entry.write_bytes(encode_recipe(msgspec.structs.replace(read_recipe(entry), **changes)))


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    files = {name: (folder / name).read_bytes() for name in ("recipe.json", "network.onnx")}
    values: dict[str, Any] = {
        "tenant": "acme",
        "model": "digits",
        "version": "1.0.0",
        "channel": "stable",
        "profile": "nvidia-rtx",
        "runtime": "tensorrt-rtx",
        "precision": "fp16",
        "counter": 1,
        "source_sha256": "0" * 64,
        "files": tuple(
            ManifestFile(name=name, sha256=sha256_of(data), length=len(data), role="model")
            for name, data in files.items()
        ),
        "entry": "recipe.json",
        "golden": "network.onnx",
        "inputs": (Tensor(name="image", dtype="float32", shape=(None, 1, 8, 8)),),
        "outputs": (Tensor(name="logits", dtype="float32", shape=(None, 10)),),
        "limits": ManifestLimits(latency_ms=100.0, memory_bytes=1),
        "tolerance": Tolerance(rtol=0, atol=0),
    }
    return Manifest(**{**values, **changes})


def build(folder: Path) -> None:
    build_here(RECIPE_BUILD, folder, manifest_of(folder), Disk(), lambda: None)


def test_the_engine_is_built_and_pinned_with_its_tools(folder: Path) -> None:
    build(folder)
    engine = (folder / BUILT_NAME).read_bytes()
    pin = json.loads((folder / UNPROVED_NAME).read_bytes())
    assert len(engine) > 10_000
    assert (pin["sha256"], pin["length"]) == (sha256_of(engine), len(engine))
    assert pin["order_sha256"] == sha256_of((folder / "recipe.json").read_bytes())
    assert pin["tools"] == {"builder": "tensorrt-rtx", "version": builder_version("tensorrt-rtx"), "gpu": gpu_name()}
    assert is_built(RECIPE_BUILD, folder, manifest_of(folder), proved=False)


@pytest.mark.skipif(bool(gpu_name()), reason="there is a GPU: the engine opens")
def test_an_engine_without_a_gpu_is_refused_by_name(folder: Path) -> None:
    build(folder)
    with pytest.raises(MeasureError, match="expected NVIDIA's driver"):
        open_built(RECIPE_BUILD, folder / "recipe.json", pin_name=UNPROVED_NAME)


def test_a_network_that_is_not_the_recipes_is_not_built(folder: Path) -> None:
    (folder / "network.onnx").write_bytes((DIGITS / "digits-1.1.0.onnx").read_bytes())
    with pytest.raises(BenchmarkError, match=r"network\.onnx: expected sha256 .* not the recipe's"):
        build(folder)
    assert not (folder / BUILT_NAME).exists()


def test_a_network_that_the_devices_builder_refuses_is_rejected_with_its_reason(folder: Path) -> None:
    network = b"no model at all"
    (folder / "network.onnx").write_bytes(network)
    change(folder, network_sha256=sha256_of(network))
    with pytest.raises(BenchmarkError, match=r"digits 1\.0\.0 on this device: building: "):
        build(folder)


def test_a_recipe_of_a_builder_that_is_not_installed_is_rejected_with_what_to_install(folder: Path) -> None:
    if builder_version("tensorrt"):
        pytest.skip("tensorrt is installed here")
    change(folder, builder="tensorrt")
    with pytest.raises(BenchmarkError, match="tensorrt is not installed: install JetPack's TensorRT"):
        build(folder)


def test_a_build_within_too_little_memory_is_stopped(folder: Path) -> None:
    change(folder, memory_bytes=2**20)
    with pytest.raises(LocalBuildError, match="expected at most 1048576 bytes of memory"):
        build(folder)


def test_the_builder_imports_nothing_from_the_folder_that_the_agent_was_started_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: another local user leaves a module of a well-known name where the agent is started."""
    anybodys = tmp_path / "anybodys"
    anybodys.mkdir()
    for name in ("json.py", "modelfleet.py"):
        (anybodys / name).write_text(f"open({str(tmp_path / 'taken')!r}, 'w')\n")
    monkeypatch.chdir(anybodys)
    (folder / "network.onnx").write_bytes(b"")  # refused before the builder is even loaded
    with pytest.raises((BenchmarkError, LocalBuildError)) as refused:
        build(folder)
    assert not (tmp_path / "taken").exists()
    assert "network.onnx: expected sha256" in str(refused.value)


def test_a_failure_without_a_gpu_is_no_verdict_on_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise EngineBuildError("no CUDA-capable device is detected")

    out = folder / "out"
    monkeypatch.setattr(tensorrt, "build_engine", fails)
    monkeypatch.setattr(sys, "argv", ["tensorrt", str(folder / "recipe.json"), str(out)])
    for builder, gpu, status in (("tensorrt", "", 2), ("tensorrt", "Toy (1.0)", 1), ("tensorrt-rtx", "", 1)):
        change(folder, builder=builder)
        monkeypatch.setattr(tensorrt, "gpu_name", lambda gpu=gpu: gpu)
        assert (tensorrt.main(), refusal_path(out).exists()) == (status, status == 1)
        refusal_path(out).unlink(missing_ok=True)


def test_a_confidential_variant_is_never_built_on_a_disk(folder: Path) -> None:
    files = tuple(
        ManifestFile(
            name=entry.name,
            sha256=entry.sha256,
            length=ciphertext_length(entry.length),
            role=entry.role,
            plain_sha256=entry.sha256,
            plain_length=entry.length,
        )
        for entry in manifest_of(folder).files
    )
    confidential = manifest_of(folder, format=CONFIDENTIAL_FORMAT, files=files)
    assert "built on disk" in reasons_against_build(LOCAL_BUILDS, confidential)[0]
    assert reasons_against_build(LOCAL_BUILDS, manifest_of(folder)) == []
