"""ONNX Runtime Web in Node: every type there and back, deadlines, crashes, limits, and clear errors."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.runtimes.table import open_session
from modelfleet.converters.browser.node import FOLDER, Node, node_missing
from modelfleet.converters.browser.session import BrowserSession
from modelfleet.converters.child import ChildLimits, run_child
from modelfleet.converters.graphs import write_model

pytestmark = pytest.mark.skipif(node_missing() != "", reason=node_missing())
IMAGES = Path(__file__).parents[4] / "examples" / "mlperf_tiny" / "ic_f32.onnx"
TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16, "int32": TensorProto.INT32,
    "uint32": TensorProto.UINT32, "int64": TensorProto.INT64, "uint64": TensorProto.UINT64, "bool": TensorProto.BOOL,
}  # fmt: skip


def written(tmp_path: Path, nodes, x: tuple[int, list], y: tuple[int, list], weights=None) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    write_model(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def slow(tmp_path: Path) -> Path:
    """A model whose answer takes minutes."""
    body = helper.make_graph(
        [helper.make_node("Sin", ["a"], ["b"]), helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N"]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N"]),
        ],
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)
    kind = (TensorProto.FLOAT, ["N"])
    return written(tmp_path, [node], kind, kind, {"trips": np.array(10**9, np.int64)})


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_of_every_type_travel_there_and_back(dtype: str, tmp_path: Path):
    kind = (TYPES[dtype], ["N", None])
    session = BrowserSession(written(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], kind, kind))
    assert [(t.name, t.dtype, t.shape) for t in session.inputs] == [("x", dtype, (None, None))]
    assert [(t.name, t.dtype, t.shape) for t in session.outputs] == [("y", dtype, (None, None))]
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    values = (
        [limits.min, limits.max, 1, 0] if limits else [0, 1, 1, 0] if dtype == "bool" else [-0.0, np.inf, np.nan, 1 / 3]
    )
    for x in (np.array([values], dtype), np.array(values, dtype).reshape(2, 2).T, np.zeros((0, 3), dtype)):
        got = session.run({"x": x})["y"]
        assert (got.dtype, got.shape) == (x.dtype, x.shape)
        assert got.tobytes() == np.ascontiguousarray(x).tobytes()


def test_a_network_answers_as_on_the_cpu():
    session, native = BrowserSession(IMAGES), OnnxRuntimeSession(IMAGES, optimise=False)
    assert (session.inputs, session.outputs) == (native.inputs, native.outputs)
    x = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    got, expected = session.run({"input_1": x})["Identity"], native.run({"input_1": x})["Identity"]
    assert np.abs(got - expected).max() <= 1e-6
    assert session.peak_memory_bytes > IMAGES.stat().st_size


def test_past_its_deadline_node_is_ended_and_the_next_answer_comes_from_another(tmp_path: Path):
    node = Node()
    good = BrowserSession(IMAGES, node=node)
    session = BrowserSession(slow(tmp_path), node=node, timeout_seconds=2)
    with pytest.raises(MeasureError, match="run: expected an answer within 2 s, got none: stopped"):
        session.run({"x": np.ones(64, np.float32)})
    assert good.run({"input_1": np.ones((1, 32, 32, 3), np.float32)})["Identity"].shape == (1, 10)
    assert node.generation == 2
    node.end()


def test_a_crash_is_an_error_and_the_session_goes_on_afterwards(tmp_path: Path):
    node = Node()
    session = BrowserSession(slow(tmp_path), node=node)
    pid = node.start().pid

    def crash(*_: object) -> None:
        os.kill(pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, crash)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(MeasureError, match=r"run: Node.js ended"):
            session.run({"x": np.ones(64, np.float32)})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert BrowserSession(IMAGES, node=node).outputs[0].shape == (1, 10)
    node.end()


def test_what_is_no_model_or_no_fitting_input_is_an_error_and_the_process_goes_on(tmp_path: Path):
    (tmp_path / "none.onnx").write_bytes(b"none")
    with pytest.raises(MeasureError, match="open: onnxruntime-web: "):
        BrowserSession(tmp_path / "none.onnx")
    with pytest.raises(MeasureError, match=r"open: onnxruntime-web: .*absent.onnx"):
        BrowserSession(tmp_path / "absent.onnx")
    session = BrowserSession(IMAGES)
    with pytest.raises(MeasureError, match="input 'input_1': expected float32, got float64"):
        session.run({"input_1": np.ones((1, 32, 32, 3))})
    with pytest.raises(MeasureError, match="input 'input_1': expected float32, got none"):
        session.run({})
    with pytest.raises(MeasureError, match=r"run: onnxruntime-web: .*[Ii]nvalid dimensions"):
        session.run({"input_1": np.ones((1, 31, 32, 3), np.float32)})
    assert session.run({"input_1": np.ones((1, 32, 32, 3), np.float32)})["Identity"].shape == (1, 10)


def test_texts_are_refused(tmp_path: Path):
    kind = (TensorProto.STRING, ["N"])
    with pytest.raises(MeasureError, match=r"'x': expected a tensor of .*, got string"):
        BrowserSession(written(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], kind, kind))


def test_without_node_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match="apt-get install nodejs npm"):
        BrowserSession(IMAGES, node=Node())


def test_no_python_device_opens_it():
    with pytest.raises(RuntimeMissingError, match=r"expected a browser to open ic_f32.onnx"):
        open_session(IMAGES, "onnxruntime-web")


def test_it_runs_within_the_limits_of_a_build(tmp_path: Path, profiles):
    import msgspec

    from modelfleet.benchmarks.golden import GoldenSet, save_golden

    x = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    save_golden(GoldenSet(inputs={"input_1": x}, expected={}, labels=np.zeros(8, np.int64)), tmp_path / "golden.npz")
    request = {
        "source": str(IMAGES),
        "entry": str(IMAGES),
        "golden": str(tmp_path / "golden.npz"),
        "precision": "float",
    }
    request |= {"profile": msgspec.to_builtins(profiles["browser-wasm"]), "device_golden": str(tmp_path / "device.npz")}
    limits = ChildLimits(timeout_seconds=60, memory_bytes=4 * 1024**3)
    assert run_child("prove", request, limits, "browser-wasm")["parity"]["mismatch_share"] == 0


def test_nothing_of_it_outlives_its_parent(tmp_path: Path):
    node = Node()
    process = node.start()
    assert process.stdin is not None
    process.stdin.close()  # what the kernel does when the parent ends
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() == 0


def test_the_package_is_pinned_with_every_file_that_it_needs():
    told = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    locked = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    assert locked["node_modules/onnxruntime-web"]["version"] == told["onnxruntime-web"]
    assert all(each["integrity"].startswith("sha512-") for name, each in locked.items() if name)
