"""Bit rot: one byte of each file of the device's folder, in turn. Wrong bytes are refused, and made good or come anew."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from modelfleet.agent_client import ModelError, open_model
from modelfleet.agent_client.agent import Agent
from modelfleet.agent_client.errors import StorageError
from modelfleet.agent_client.identity import load_identity, load_key
from modelfleet.agent_client.storage import encode_struct
from tests.faults.conftest import NEW, OLD, Before, version_of
from tests.faults.traced import Forker
from tests.unit.agent_client.fleet import SLOT, weights_of

SEEDS = {OLD: 1, NEW: 2}
IDENTITY = ("identity.json", "key.pem", "root.json")
"""Made once, at enrolment, and held by nobody else: the agent refuses to start without them, and says what is damaged."""
PLACES = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def forker(folder: Path) -> Iterator[Forker]:
    with Forker(folder / "worker") as made:
        yield made


@pytest.fixture(scope="module")
def both(forker: Forker, before: Before) -> Path:
    """A device that has made the update: both directories are whole, and each kind of file is there."""
    root = before.copy()
    version_of(root)  # an application has counted
    assert forker.run(root, NEW) == "ended 0", forker.said()
    version_of(root)
    return root


def files(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]


def rotten(source: Path, name: str, place: float) -> Path:
    """Return a copy of the folder in which one byte of that file is another."""
    root = source.with_name("rotten")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(source, root, symlinks=True)
    path = root / name
    mode, data = path.stat().st_mode, bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x01
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)
    return root


def opened(root: Path) -> str:
    """Return the version whose answers an application gets, or that it is refused."""
    try:
        model = open_model(SLOT, root=root)
    except (ModelError, StorageError):
        return "refused"
    with model:
        image = np.arange(4, dtype=np.float32)[None]
        answer = model.run({"image": image})["scores"]
        np.testing.assert_allclose(answer, image @ weights_of(SEEDS[model.version]), rtol=1e-5)
        return model.version


def healed(forker: Forker, root: Path, version: str) -> str:
    """Run agents in the folder until an application gets `version` from it, and return what is wrong."""
    ended = ""
    for _ in range(10):
        ended = forker.run(root, "none", seconds=0.25)
        if ended != "ended 3" or opened(root) == version:
            break
    return "" if (ended, opened(root)) == ("ended 3", version) else f"{ended}, {opened(root)}, {forker.said()[-700:]}"


def test_each_kind_of_file_is_there(both: Path) -> None:
    found = files(both)
    for part in (
        *IDENTITY, "boots.json", "desired/assignment.json", "desired/group.json", "outbox/", "trust/floors.json",
        "trust/policy.json", "trust/metadata/", f"slots/{SLOT}/active.json", f"slots/{SLOT}/record.json",
        f"slots/{SLOT}/a/manifest.json", f"slots/{SLOT}/b/model.onnx", f"slots/{SLOT}/counters/",
    ):  # fmt: skip
        assert any(name.startswith(part) for name in found), f"{part} is not in {found}"


@pytest.mark.parametrize("place", PLACES)
def test_a_rotten_byte_in_any_file_is_refused_and_made_good(place: float, forker: Forker, both: Path) -> None:
    wrong: list[str] = []
    for name in files(both):
        if name in IDENTITY:
            continue
        root = rotten(both, name, place)
        at_once = opened(root)
        wrong += [f"{name}: {at_once}"] if at_once not in (NEW, "refused") else []
        wrong += [f"{name}: {said}"] if (said := healed(forker, root, NEW)) else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("place", PLACES)
def test_a_rotten_byte_does_not_stop_the_next_update(place: float, forker: Forker, before: Before) -> None:
    wrong: list[str] = []
    for name in files(before.root):
        if name in IDENTITY:
            continue
        root = rotten(before.root, name, place)
        if opened(root) not in (OLD, "refused") or forker.run(root, NEW) != "ended 0" or opened(root) != NEW:
            wrong.append(f"{name}: {opened(root)}: {forker.said()[-700:]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", IDENTITY)
def test_a_rotten_identity_is_named(name: str, both: Path) -> None:
    root = rotten(both, name, 0.5)
    with pytest.raises(StorageError, match=name):
        Agent(root)
    assert opened(root) == NEW  # the model needs none of it


@pytest.mark.parametrize("name", [f"slots/{SLOT}/active.json", f"slots/{SLOT}/record.json"])
def test_a_rotten_pointer_or_record_is_made_good_without_a_server(name: str, forker: Forker, both: Path) -> None:
    root = rotten(both, name, 0.5)
    identity = msgspec.structs.replace(load_identity(root), server="http://127.0.0.1:1")
    (root / "identity.json").write_bytes(encode_struct(identity))
    assert healed(forker, root, NEW) == ""


def test_no_rotten_byte_makes_another_key(both: Path, tmp_path: Path) -> None:
    key, data = load_key(both), (both / "key.pem").read_bytes()
    for place in range(len(data)):
        (tmp_path / "key.pem").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with contextlib.suppress(StorageError):
            assert load_key(tmp_path).private_numbers() == key.private_numbers(), f"byte {place}"
