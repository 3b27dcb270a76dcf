"""A MIL program as the flat files of a variant; equal programs give equal bytes."""

import json
import tempfile
from pathlib import Path
from typing import Any, Final

import coremltools as _coremltools
import msgspec

from modelfleet.benchmarks.runtimes.coreml import ENTRY, INTERFACE, MANIFEST, WEIGHTS, Interface, take_package

coremltools: Any = _coremltools
# coremltools gives new ones for each package; they name the two items within one package only.
_MODEL_ID: Final = "00000000-0000-4000-8000-000000000001"
_WEIGHTS_ID: Final = "00000000-0000-4000-8000-000000000002"
_DATE: Final = "com.github.apple.coremltools.conversion_date"


def to_model(program: Any, target: str, *, half: bool) -> Any:
    """Return coremltools' model of a MIL program, computed in fp16 if `half`; it is not loaded."""
    passes = coremltools.PassPipeline()
    # It takes a reshape whose *shape* is another reshape's result for two in a row, and merges them wrongly.
    # And division by a constant as a product with its reciprocal: 49 / 49 is 0.99999994 then, whose floor is 0.
    passes.remove_passes({"common::merge_consecutive_reshapes", "common::divide_to_multiply"})
    precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
    return coremltools.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target[target],
        compute_precision=precision,
        pass_pipeline=passes,
        skip_model_load=True,
    )


def write_files(model: Any, interface: Interface, out_dir: Path) -> tuple[str, ...]:
    """Write a model's flat files into `out_dir` and return their names."""
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        package = Path(folder) / "model.mlpackage"
        model.save(str(package))
        names = take_package(package, out_dir)
    _drop_date(out_dir / ENTRY)
    (out_dir / MANIFEST).write_text(json.dumps(_manifest(WEIGHTS in names), indent=2) + "\n", encoding="utf-8")
    (out_dir / INTERFACE).write_bytes(msgspec.json.format(msgspec.json.encode(interface)) + b"\n")
    return tuple(sorted((*names, INTERFACE)))


def _drop_date(path: Path) -> None:
    spec: Any = coremltools.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    spec.description.metadata.userDefined.pop(_DATE, None)
    path.write_bytes(spec.SerializeToString(deterministic=True))


def _manifest(weights: bool) -> dict[str, object]:
    author = "com.apple.CoreML"
    items = {
        _MODEL_ID: {
            "author": author,
            "description": "CoreML Model Specification",
            "name": ENTRY,
            "path": f"{author}/{ENTRY}",
        }
    }
    if weights:
        items[_WEIGHTS_ID] = {
            "author": author,
            "description": "CoreML Model Weights",
            "name": "weights",
            "path": f"{author}/weights",
        }
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": _MODEL_ID}
