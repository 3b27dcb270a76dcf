"""The host runs what is shipped, and sees what writes outside its own memory."""

from pathlib import Path

import numpy as np
import pytest

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.converters.microcontroller.host import HostSession
from tests.unit.converters.microcontroller.programs import generated, open_files, write

X = np.arange(12, dtype=np.int8).reshape(1, 12)


def test_inputs_and_outputs_are_the_models_own(tmp_path: Path):
    session = open_files(generated().files(), tmp_path)
    told = [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*session.inputs, *session.outputs)]
    assert told == [("x", "int8", (1, 12)), ("y", "int8", (5,))]


@pytest.mark.parametrize(
    ("inputs", "got"),
    [({}, "None"), ({"x": X.astype(np.uint8)}, "uint8"), ({"x": X[:, :11]}, r"\[1, 11\]"), ({"x": X[0]}, r"\[12\]")],
)
def test_refuses_an_input_of_another_kind(inputs: dict[str, np.ndarray], got: str, tmp_path: Path):
    session = open_files(generated().files(), tmp_path)
    with pytest.raises(MeasureError, match=rf"input 'x': expected int8\[1, 12\], got .*{got}"):
        session.run(inputs)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("output_0[5]", "output 'y'"),
        ("output_0[-1]", "output 'y'"),
        ("places[MODEL_WORKSPACE_BYTES]", "the workspace"),
        ("places[-1]", "the workspace"),
        ("((int8_t *)(uintptr_t)input_0)[12]", "input 'x'"),
    ],
)
def test_sees_a_write_outside(place: str, what: str, tmp_path: Path):
    files = dict(generated().files())
    files["model.c"] = files["model.c"].replace(b"    return 0;", f"    {place} = 1;\n    return 0;".encode())
    with pytest.raises(MeasureError, match=f"stay within {what}"):
        open_files(files, tmp_path).run({"x": X})


def test_an_answer_depends_on_nothing_that_was_in_the_workspace(tmp_path: Path):
    session = open_files(generated().files(), tmp_path)
    first = session.run({"x": X})["y"]
    session.run({"x": -X})
    assert (session.run({"x": X})["y"] == first).all()


def test_an_error_of_the_code_is_an_error_here(tmp_path: Path):
    files = dict(generated().files())
    files["model.c"] = files["model.c"].replace(b"    return 0;", b"    return 7;")
    with pytest.raises(MeasureError, match="expected the model to answer 0, got 7"):
        open_files(files, tmp_path).run({"x": X})


def test_says_what_to_install_where_there_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(generated(), tmp_path / "c")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeMissingError, match=r"expected a C compiler .*apt-get install gcc"):
        HostSession(folder / "model.json")


def test_code_that_does_not_compile_is_refused_with_the_compilers_words(tmp_path: Path):
    files = {**generated().files(), "model.c": b"int model_run(void) { return nonsense; }"}
    with pytest.raises(MeasureError, match=r"(?s)refuses the code .*model.c:1:30.*nonsense"):
        open_files(files, tmp_path)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format": 2}', b"\xff"])
def test_a_description_that_is_none_is_refused(data: bytes, tmp_path: Path):
    folder = write(generated(), tmp_path / "c")
    (folder / "model.json").write_bytes(data)
    with pytest.raises(MeasureError, match="expected a description"):
        HostSession(folder / "model.json")


def test_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = open_files(generated().files(), write(generated(), tmp_path / "c"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("modelfleet-c99-")] != []
    del session
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
