"""What the browser gets is what was proved: float and int8 variants answer in WebAssembly as on the CPU."""

from pathlib import Path

import numpy as np
import pytest

from modelfleet.benchmarks.golden import GoldenSet, load_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.browser.converter import PRECISIONS, ToBrowser
from modelfleet.converters.browser.node import node_missing
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model, write_model
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import Precision, load_profiles

pytestmark = pytest.mark.skipif(node_missing() != "", reason=node_missing())
DIGITS = Path(__file__).parents[4] / "examples" / "digits"
PROFILE = load_profiles()["browser-wasm"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_variants_answer_in_webassembly_as_on_the_cpu(precision: Precision, tmp_path: Path):
    golden = load_golden(DIGITS / "golden.npz")
    write_model(normalise(read_model(DIGITS / "digits-1.1.0.onnx"), tmp_path, PROFILE), tmp_path / "normal.onnx")
    (tmp_path / "out").mkdir()
    made = ToBrowser().convert(tmp_path / "normal.onnx", tmp_path / "out", precision, golden, PROFILE)
    entry = tmp_path / "out" / made.entry
    few = GoldenSet(inputs=golden.inputs, expected={}, labels=golden.labels).head(64)
    got, native = answers(ToBrowser().open(entry), few)["logits"], answers(OnnxRuntimeSession(entry), few)["logits"]
    scale = float(np.abs(native).max())
    assert np.abs(got - native).max() <= (1e-5 if precision is Precision.FLOAT else 0.02) * scale
    assert (got.argmax(1) == native.argmax(1)).all()


def test_refuses_a_precision_that_browsers_do_not_have(tmp_path: Path):
    golden = load_golden(DIGITS / "golden.npz")
    with pytest.raises(ConversionError, match=r"browser-wasm: .*got fp16"):
        ToBrowser().convert(DIGITS / "digits-1.1.0.onnx", tmp_path, Precision.FP16, golden, PROFILE)
