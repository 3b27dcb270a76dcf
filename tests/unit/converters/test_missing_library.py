"""A worker that lacks one target's libraries builds for the others, and says what to install for that one."""

import os
from pathlib import Path

import pytest

from modelfleet.converters.build import BuildRequest, run_build
from modelfleet.converters.errors import BuildFailedError
from modelfleet.converters.local import LocalRequest, convert_here
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision
from modelfleet.signer.keys import generate_key

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
MODEL, GOLDEN = DIGITS / "digits-1.0.0.onnx", DIGITS / "golden.npz"
# What modelfleet[server] does not bring. Python imports `sitecustomize` as it starts, in every child process.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ai_edge_litert", "ai_edge_quantizer", "coremltools", "mlx", "onnx2tf", "tensorrt_rtx"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(autouse=True)
def without_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


def here(profile: HardwareProfile, out: Path) -> LocalRequest:
    return LocalRequest(model=MODEL, profile=profile, golden=GOLDEN, out=out, precisions=[Precision.FLOAT], runs=5)


def test_a_target_whose_libraries_are_there_is_built(tmp_path: Path, profiles: dict[str, HardwareProfile]):
    convert_here(here(profiles["linux-cpu-float"], tmp_path / "out"), lambda step: None)
    assert (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("mac-mlx", r"mac-mlx: expected the library mlx .* pip install 'modelfleet\[server,converters\]'"),
        ("android-arm64", r"android-arm64: expected the library onnx2tf .* --no-deps .* -r /\S+/tflite/onnx2tf.txt"),
    ],
)
def test_a_target_without_its_library_says_how_to_get_it(
    tmp_path: Path, profiles: dict[str, HardwareProfile], profile: str, said: str
):
    with pytest.raises(BuildFailedError, match=said):
        convert_here(here(profiles[profile], tmp_path / "folder" / "out"), lambda step: None)
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_registrys_worker_says_the_same(tmp_path: Path, profiles: dict[str, HardwareProfile]):
    request = BuildRequest(
        tenant="acme",
        model="digits",
        version="1.0.0",
        profile=profiles["mac-mlx"],
        source=MODEL,
        golden=GOLDEN,
        gate_key_uri=generate_key(tmp_path / "gate.pem"),
        runs=5,
    )
    with pytest.raises(
        BuildFailedError, match=r"^mac-mlx: expected the library mlx on the worker, got none: pip install"
    ):
        run_build(request, tmp_path / "out")
    assert not (tmp_path / "out").exists()
