"""What a device refuses to open: a graph or a safetensors file that is not what a converter writes."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.mlx.graph import parse_graph
from modelfleet.benchmarks.runtimes.mlx.session import MlxSession
from modelfleet.benchmarks.runtimes.mlx.tensors import read_tensors, write_tensors
from modelfleet.benchmarks.runtimes.table import open_session

Edit = Callable[[dict[str, Any]], None]
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def write(folder: Path, edit: Edit = lambda _: None) -> Path:
    graph: dict[str, Any] = {
        "format": "modelfleet-mlx-1",
        "weights": "weights.safetensors",
        "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 3]}],
        "small": {"b": {"dtype": "float32", "shape": [1], "data": base64.b64encode(np.float32(2).tobytes()).decode()}},
        "stored": {"w": {"dtype": "float32", "shape": [4, 3]}},
        "nodes": [
            {"name": "product", "op": "matmul", "inputs": ["x", "w"], "outputs": ["h"]},
            {"name": "sum", "op": "add", "inputs": ["h", "b"], "outputs": ["s"]},
            {"name": "soft", "op": "leaky_relu", "inputs": ["s"], "outputs": ["y"], "attributes": {"alpha": 0.5}},
        ],
    }
    edit(graph)
    write_tensors({"w": WEIGHT}, folder / "weights.safetensors")
    path = folder / "graph.json"
    path.write_text(json.dumps(graph))
    return path


def test_opens_and_runs_what_it_should(tmp_path: Path) -> None:
    session = open_session(write(tmp_path), "mlx")
    x = np.array([[1, 2, 3, -4]], np.float32)
    expected = x @ WEIGHT + 2
    np.testing.assert_allclose(session.run({"x": x})["y"], np.where(expected < 0, expected / 2, expected))


def set_node(place: int, **values: Any) -> Edit:
    return lambda graph: graph["nodes"][place].update(values)


def nested(depth: int) -> dict[str, Any]:
    inner = [nested(depth - 1)] if depth else []
    branch = {"inputs": [], "outputs": [], "nodes": inner}
    return {"name": "deep", "op": "if", "inputs": ["x"], "outputs": [], "bodies": {"then": branch}}


HOSTILE: dict[str, tuple[Edit, str]] = {
    "an operation outside the vocabulary": (set_node(0, op="eval"), "operation of the vocabulary, got 'eval'"),
    "a name of Python's": (set_node(0, op="__class__"), "operation of the vocabulary"),
    "an attribute that the operation has not": (set_node(2, attributes={"alpha": 1.0, "path": "/"}), "path"),
    "an attribute of another type": (set_node(2, attributes={"alpha": "1"}), "alpha"),
    "an attribute left out": (set_node(2, attributes={}), "alpha"),
    "a value nobody writes": (set_node(1, inputs=["h", "nothing"]), "written before, got 'nothing'"),
    "a value read before it is written": (set_node(0, inputs=["s", "w"]), "written before, got 's'"),
    "a value written twice": (set_node(1, outputs=["h"]), "new name, got 'h'"),
    "an input overwritten": (set_node(1, outputs=["x"]), "new name, got 'x'"),
    "an output nobody writes": (lambda graph: graph["nodes"].pop(), "written before, got 'y'"),
    "too few inputs": (set_node(0, inputs=["x"]), "inputs"),
    "too many inputs": (set_node(0, inputs=["x", "w", "w"]), "inputs"),
    "a needed input left out": (set_node(0, inputs=["x", None]), "inputs"),
    "a body where none belongs": (
        set_node(0, bodies={"body": {"inputs": [], "outputs": [], "nodes": []}}), "expected no bodies",
    ),
    "bodies without end": (lambda graph: graph["nodes"].insert(0, nested(40)), "deep"),
    "a branch without its bodies": (set_node(0, op="if", inputs=["x"]), "expected bodies"),
    "a loop of another arity": (
        set_node(0, op="loop", inputs=["x", None, "w"], bodies={"body": {"inputs": ["a"], "outputs": [], "nodes": []}}),
        "loop: expected a body",
    ),
    "an unknown field": (lambda graph: graph.update(code="print(1)"), "code"),
    "another format": (lambda graph: graph.update(format="modelfleet-mlx-2"), "modelfleet-mlx-1"),
    "weights in another folder": (lambda graph: graph.update(weights="../../etc/passwd"), "weights"),
    "a tensor that is not in the file": (
        lambda graph: graph["stored"].update(v={"dtype": "float32", "shape": [1]}), "got others: \\['v'\\]",
    ),
    "a tensor of another shape": (lambda graph: graph["stored"]["w"].update(shape=[3, 4]), "expected float32\\[3, 4\\]"),
    "a tensor of another dtype": (lambda graph: graph["stored"]["w"].update(dtype="int32"), "expected int32"),
    "a constant of too few bytes": (lambda graph: graph["small"]["b"].update(shape=[2]), "8|bytes"),
    "a constant of a size without end": (lambda graph: graph["small"]["b"].update(shape=[2**20, 2**20]), "1024 elements"),
    "a constant of both kinds": (lambda graph: graph["small"].update(w=graph["small"]["b"]), "twice"),
}  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_refuses_a_graph_with(attack: str, tmp_path: Path) -> None:
    edit, message = HOSTILE[attack]
    with pytest.raises(MeasureError, match=message):
        MlxSession(write(tmp_path, edit))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"nodes": ' + b"[" * 100_000, b"\xff\xfe"])
def test_refuses_a_graph_file_of_something_else(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(content)
    with pytest.raises(MeasureError, match="expected a graph"):
        MlxSession(path)


def header(entry: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps({"w": entry}).encode()
    return len(text).to_bytes(8, "little") + text + body


GOOD: dict[str, Any] = {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        header(GOOD, bytes(47)),
        header(GOOD, bytes(49)),
        header({**GOOD, "data_offsets": [4, 52]}, bytes(52)),
        header({**GOOD, "shape": [4, 4]}, bytes(48)),
        header({**GOOD, "shape": [-4, -3]}, bytes(48)),
        header({**GOOD, "dtype": "OBJECT"}, bytes(48)),
        header({**GOOD, "data_offsets": [0, 2**60]}, bytes(48)),
    ],
)
def test_refuses_weights_whose_header_does_not_fit_their_bytes(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(MeasureError, match=r"weights.safetensors: .*expected"):
        MlxSession(path)


def test_tensors_are_read_as_they_were_written_and_equal_ones_give_equal_files(tmp_path: Path) -> None:
    tensors = {"a": np.arange(5, dtype=np.uint8), "b": WEIGHT.astype(np.float64), "c": np.array([True, False])}
    write_tensors(tensors, tmp_path / "one")
    write_tensors(dict(reversed(tensors.items())), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for name, (dtype, array) in read_tensors(tmp_path / "one").items():
        assert dtype == tensors[name].dtype.name
        np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.parametrize(
    "inputs",
    [{}, {"z": np.ones((1, 4), np.float32)}, {"x": np.ones((1, 4))}, {"x": np.ones((1, 5), np.float32)}],
    ids=["none", "another name", "another dtype", "another shape"],
)
def test_refuses_inputs_of_another_kind(inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="expected"):
        MlxSession(write(tmp_path)).run(inputs)


def test_an_index_from_outside_reads_nothing_but_the_array(tmp_path: Path) -> None:
    def edit(graph: dict[str, Any]) -> None:
        graph["inputs"].append({"name": "i", "dtype": "int64", "shape": [2]})
        graph["nodes"][0] = {
            "name": "pick", "op": "gather", "inputs": ["x", "i"], "outputs": ["h"], "attributes": {"axis": 1},
        }  # fmt: skip
        graph["stored"].clear()
        graph["outputs"][0]["shape"] = [None, 2]

    path = write(tmp_path, edit)
    write_tensors({}, tmp_path / "weights.safetensors")
    found = MlxSession(path).run({"x": np.arange(4, dtype=np.float32)[None], "i": np.array([10**9, -(10**9)])})
    np.testing.assert_array_equal(found["y"], [[5.0, 2.0]])


def test_a_failed_operation_names_its_node(tmp_path: Path) -> None:
    session = MlxSession(write(tmp_path, lambda graph: graph["inputs"][0].update(shape=[None, None])))
    with pytest.raises(MeasureError, match=r"node 'product' \(matmul\)"):
        session.run({"x": np.ones((2, 5), np.float32)})


def test_reading_takes_no_time_for_each_value_in_each_body() -> None:
    """Attack: so many values, and so many bodies, that seeing all of those in each of these takes minutes."""
    small = {f"c{place}": {"dtype": "bool", "shape": [1], "data": "AA=="} for place in range(60_000)}
    branch = {"inputs": [], "outputs": [], "nodes": []}
    node = {"name": "n", "op": "if", "inputs": ["c0"], "outputs": [], "bodies": {"then": branch, "else": branch}}
    graph = {
        "format": "modelfleet-mlx-1", "weights": "weights.safetensors", "inputs": [], "outputs": [],
        "small": small, "nodes": [node] * 60_000,
    }  # fmt: skip
    data = json.dumps(graph).encode()
    before = time.process_time()
    parse_graph(data)
    assert time.process_time() - before < 20  # a copy for each body takes ten times that; without, it is less than one


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "constants"),
    [
        ("one_hot", ["i", "huge", "pair"], {"axis": -1}, {"huge": [2**40], "pair": [0, 1]}),
        ("center_crop_pad", ["x", "huge"], {}, {"huge": [2**20, 2**20]}),
        ("range", ["zero", "huge", "one"], {}, {"zero": [0], "huge": [2**40], "one": [1]}),
        ("pad", ["x", "huge"], {"mode": "edge"}, {"huge": [0, 2**40, 0, 0]}),
    ],
)
def test_a_size_in_a_file_takes_no_memory_beyond_the_cap(
    op: str, inputs: list[str], attributes: dict[str, Any], constants: dict[str, list[int]], tmp_path: Path
) -> None:
    def edit(graph: dict[str, Any]) -> None:
        graph["inputs"].append({"name": "i", "dtype": "int64", "shape": [2]})
        graph["nodes"][:] = [
            {"name": "bomb", "op": op, "inputs": inputs, "outputs": ["y"], "attributes": attributes}
        ]  # fmt: skip
        for name, values in constants.items():
            data = base64.b64encode(np.array(values, np.int64).tobytes()).decode()
            graph["small"][name] = {"dtype": "int64", "shape": [len(values)], "data": data}

    session = MlxSession(write(tmp_path, edit))
    with pytest.raises(MeasureError, match=r"node 'bomb' .*expected a shape of at most"):
        session.run({"x": np.ones((2, 4), np.float32), "i": np.zeros(2, np.int64)})
