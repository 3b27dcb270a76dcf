"""ONNX -> a TFLite flatbuffer of floats, by onnx2tf's `flatbuffer_direct`."""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from onnx import ModelProto

from modelfleet.converters.graphs import write_model
from modelfleet.converters.tflite.builders import own_builders


class OnnxToTfError(Exception):
    """onnx2tf refused the model, or ended without a file."""


def to_flatbuffer(model: ModelProto, keep: list[str]) -> bytes:
    """Return the model as a flatbuffer of floats.

    Args:
        model: with names that onnx2tf does not change.
        keep: inputs whose layout stays.

    Raises:
        OnnxToTfError: with what the library said last.
    """
    import onnx2tf as _onnx2tf

    onnx2tf: Any = _onnx2tf
    with tempfile.TemporaryDirectory(prefix="tflite-") as folder:
        source, out = Path(folder) / "model.onnx", Path(folder) / "out"
        write_model(model, source)  # onnx2tf overwrites what it reads
        with _hushed(Path(folder)) as said, own_builders():
            try:
                onnx2tf.convert(
                    input_onnx_file_path=str(source),
                    output_folder_path=str(out),
                    tflite_backend="flatbuffer_direct",
                    keep_shape_absolutely_input_names=keep or None,
                    not_use_onnxsim=True,
                    non_verbose=True,
                )
            except (MemoryError, KeyboardInterrupt):
                raise
            except BaseException as error:  # it ends the process where it refuses
                raise OnnxToTfError(_last(said.getvalue(), error)) from error
        made = out / "model_float32.tflite"
        if not made.exists():
            raise OnnxToTfError(_last(said.getvalue(), None))
        return made.read_bytes()


def _last(said: str, error: BaseException | None) -> str:
    if error is not None and not isinstance(error, SystemExit) and str(error):
        return str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join(lines[-3:])[-400:] or "no file was written"


@contextlib.contextmanager
def _hushed(folder: Path) -> Generator[io.StringIO]:
    # It prints progress bars, and warns and logs; it also writes into the folder where it stands.
    said, there, disabled = io.StringIO(), Path.cwd(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        os.chdir(there)
        logging.disable(disabled)
