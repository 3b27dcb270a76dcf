"""What to install where a worker lacks a library of a target: its own fault, never the model's."""

from pathlib import Path
from typing import Final

_ONNX2TF: Final = Path(__file__).parent / "tflite" / "onnx2tf.txt"


def missing_library(module: str) -> str:
    """Return what a build says that could not import `module`: what is missing, and the command that installs it."""
    found = module.partition(".")[0]
    if found == "onnx2tf":
        options = "--no-deps --ignore-requires-python --require-hashes"
        return f"expected the library onnx2tf on the worker, got none: pip install {options} -r {_ONNX2TF}"
    return f"expected the library {found} on the worker, got none: pip install 'modelfleet[server,converters]'"
