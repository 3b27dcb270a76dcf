"""`open_model`, as an application in another process than the agent uses it."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleet.agent_client import Model, ModelError, NoModelError, open_model
from modelfleet.agent_client.counters import FLUSHER, read_counts
from modelfleet.agent_client.model import PAUSE_SECONDS
from modelfleet.agent_client.slots import SlotStore, slot_folder
from modelfleet.agent_client.storage import Disk
from modelfleet.benchmarks.runtimes.table import OPENERS
from tests.unit.agent_client.fleet import golden_of, linear_model
from tests.unit.agent_client.test_slots import put, variant

IMAGE = np.ones((1, 4), dtype=np.float32)


def install(root: Path, version: str, seed: int, activation: int) -> str:
    store = SlotStore(slot_folder(root, "classifier"), Disk())
    return put(store, *variant(version, linear_model(seed), golden_of(seed)), activation)


def counted(root: Path, activation: int = 1) -> Any:
    FLUSHER.flush()
    return read_counts(slot_folder(root, "classifier") / "counters", activation)


def follow(model: Model, version: str) -> None:
    """Call until that version answers, as an application that never pauses."""
    until = time.monotonic() + 10
    while model.version != version and time.monotonic() < until:
        model.run({"image": IMAGE})
    assert model.version == version


def scores(model: Model) -> Any:
    return model.run({"image": IMAGE})["scores"]


def scores_of(seed: int) -> Any:
    return IMAGE @ np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)


class Gate:
    """A runtime whose openings, but for the first, wait until the test lets them; it counts them and their threads."""

    def __init__(self) -> None:
        self.go_on, self.waiting = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []
        self.fails = False

    def __call__(self, path: Path) -> Any:
        self.threads.append(threading.current_thread())
        session = OPENERS["onnxruntime"](path)  # read before the wait: what was active when the opening began
        if len(self.threads) > 1:
            self.waiting.set()
            assert self.go_on.wait(10)
            if self.fails:
                raise RuntimeError("out of memory")
        return session


@pytest.fixture
def gate(tmp_path: Path) -> Any:
    install(tmp_path, "1.0.0", 1, 1)
    made = Gate()
    yield made
    made.go_on.set()


def opened(root: Path, gate: Gate) -> Model:
    return open_model("classifier", root=root, openers={"onnxruntime": gate})


class Scripted:
    """A runtime that answers what the test says: outputs, or an exception to raise."""

    def __init__(self, path: Path) -> None:
        self.real = OPENERS["onnxruntime"](path)
        self.inputs, self.outputs = self.real.inputs, self.real.outputs
        self.answer: Any = None

    def run(self, inputs: Mapping[str, Any]) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        if callable(self.answer):
            return self.answer(inputs)
        return self.real.run(inputs) if self.answer is None else self.answer


@pytest.fixture
def scripted(tmp_path: Path) -> tuple[Model, Scripted]:
    install(tmp_path, "1.0.0", 1, 1)
    sessions: list[Scripted] = []

    def opener(path: Path) -> Scripted:
        sessions.append(Scripted(path))
        return sessions[-1]

    return open_model("classifier", root=tmp_path, openers={"onnxruntime": opener}), sessions[0]


def test_a_slot_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoModelError, match="classifier"):
        open_model("classifier", root=tmp_path)


def test_answers_as_the_model_does_and_counts(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    with open_model("classifier", root=tmp_path) as model:
        weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
        assert np.allclose(model.run({"image": IMAGE})["scores"], IMAGE @ weights, atol=1e-5)
    found = counted(tmp_path)
    assert (found.n, found.errors, sum(found.classes)) == (1, 0, 1)


def test_how_sure_the_model_is_is_counted_where_the_outputs_are_probabilities(
    scripted: tuple[Model, Scripted], tmp_path: Path
) -> None:
    model, session = scripted
    for row in ([0.05, 0.02, 0.93], [1.0, 0.0, 0.0], [3.0, -1.0, -1.0], [0.5, 0.5, 0.5]):  # the last two are none
        session.answer = {"scores": np.array([row], np.float32)}
        model.run({"image": IMAGE})
    model.close()
    found = counted(tmp_path)
    assert sum(found.classes) == 4
    assert found.confidence == (0,) * 18 + (1, 1)


def test_an_application_may_say_how_sure_the_model_was_once_per_inference(
    scripted: tuple[Model, Scripted], tmp_path: Path
) -> None:
    model, session = scripted
    session.answer = {"scores": np.array([[3.0, -1.0, -1.0]], np.float32)}
    model.run({"image": IMAGE})
    model.report_confidence(0.62)
    model.report_confidence(0.99)  # the same inference
    session.answer = {"scores": np.array([[0.92, 0.08, 0.0]], np.float32)}
    model.run({"image": IMAGE})
    model.report_confidence(0.1)  # the outputs have told it
    model.close()
    assert counted(tmp_path).confidence == (0,) * 12 + (1, 0, 0, 0, 0, 0, 1)
    with pytest.raises(ModelError, match="confidence in"):
        model.report_confidence(1.5)


def test_follows_a_switch_without_a_restart(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    model = open_model("classifier", root=tmp_path)
    model.run({"image": IMAGE})
    digest = install(tmp_path, "1.1.0", 2, 2)
    follow(model, "1.1.0")
    assert model.digest == digest
    assert np.allclose(scores(model), scores_of(2), atol=1e-5)
    assert counted(tmp_path, 2).n == 2, "the call that found it, and the one after"


def test_the_old_model_answers_until_the_new_one_is_open(gate: Gate, tmp_path: Path) -> None:
    model = opened(tmp_path, gate)
    install(tmp_path, "1.1.0", 2, 2)
    scores(model)
    assert gate.waiting.wait(10)
    for _ in range(50):
        assert np.allclose(scores(model), scores_of(1), atol=1e-5)
    assert (model.version, counted(tmp_path, 1).n, counted(tmp_path, 2).n) == ("1.0.0", 51, 0)
    gate.go_on.set()
    gate.threads[1].join()
    assert model.version == "1.0.0", "the version is that of the last answer"
    assert np.allclose(scores(model), scores_of(2), atol=1e-5)
    assert (model.version, counted(tmp_path, 1).n, counted(tmp_path, 2).n) == ("1.1.0", 51, 1)
    assert len(gate.threads) == 2, "however many calls were made meanwhile"


def test_many_threads_change_to_the_new_model_once(gate: Gate, tmp_path: Path) -> None:
    model = opened(tmp_path, gate)
    stop, failures = threading.Event(), list[Exception]()

    def work() -> None:
        while not stop.is_set():
            try:
                model.run({"image": IMAGE})
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.go_on.set()
    for version, seed in (("1.1.0", 2), ("1.2.0", 3)):
        install(tmp_path, version, seed, seed)
        follow(model, version)
    stop.set()
    for thread in threads:
        thread.join()
    assert (failures, len(gate.threads)) == ([], 3)
    assert np.allclose(scores(model), scores_of(3), atol=1e-5)


def test_an_error_marked_on_the_old_models_inference_counts_for_the_old_one(gate: Gate, tmp_path: Path) -> None:
    model = opened(tmp_path, gate)
    install(tmp_path, "1.1.0", 2, 2)
    model.run({"image": IMAGE})
    gate.go_on.set()
    assert gate.waiting.wait(10)
    gate.threads[1].join()
    other = threading.Thread(target=lambda: model.run({"image": IMAGE}))
    other.start()
    other.join()
    assert model.version == "1.1.0"
    model.report_error()
    assert (counted(tmp_path, 1).errors, counted(tmp_path, 2).errors) == (1, 0)
    assert (counted(tmp_path, 1).n, counted(tmp_path, 2).n) == (1, 1)


def test_a_rollback_during_the_opening_leaves_the_recalled_model_unused(gate: Gate, tmp_path: Path) -> None:
    model = opened(tmp_path, gate)
    install(tmp_path, "1.1.0", 2, 2)
    model.run({"image": IMAGE})
    assert gate.waiting.wait(10)
    install(tmp_path, "1.0.0", 1, 3)
    gate.go_on.set()
    gate.threads[1].join()
    until = time.monotonic() + 10
    while counted(tmp_path, 3).n == 0 and time.monotonic() < until:
        assert np.allclose(scores(model), scores_of(1), atol=1e-5)
    assert (counted(tmp_path, 2).n, model.version) == (0, "1.0.0")
    assert counted(tmp_path, 3).n == 1


def test_after_a_pause_the_first_call_waits_for_the_model_that_is_active(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    model = open_model("classifier", root=tmp_path)
    follow(model, "1.0.0")
    time.sleep(PAUSE_SECONDS + 0.05)
    install(tmp_path, "1.1.0", 2, 2)
    assert np.allclose(scores(model), scores_of(2), atol=1e-5)


def test_a_new_model_that_does_not_open_is_not_tried_at_every_call(gate: Gate, tmp_path: Path) -> None:
    model = opened(tmp_path, gate)
    gate.fails = True
    gate.go_on.set()
    install(tmp_path, "1.1.0", 2, 2)
    model.run({"image": IMAGE})
    assert gate.waiting.wait(10)
    gate.threads[1].join()
    for _ in range(20):
        assert np.allclose(scores(model), scores_of(1), atol=1e-5)
    assert (model.version, len(gate.threads)) == ("1.0.0", 2)
    gate.fails = False
    install(tmp_path, "1.2.0", 3, 3)
    follow(model, "1.2.0")  # another pointer is tried at once


def test_an_inference_that_runs_during_a_switch_ends_on_the_old_model(scripted: Any, tmp_path: Path) -> None:
    model, session = scripted
    entered, go_on = threading.Event(), threading.Event()

    def slowly(_inputs: Any) -> Any:
        entered.set()
        go_on.wait(5)
        return {"scores": np.full((1, 3), 7.0, dtype=np.float32)}

    session.answer = slowly
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(model.run({"image": IMAGE})))
    thread.start()
    assert entered.wait(5)
    install(tmp_path, "1.1.0", 2, 2)
    session.answer = None  # for the calls of this thread, until the new model answers
    follow(model, "1.1.0")
    old = counted(tmp_path, 1).n
    go_on.set()
    thread.join()
    assert answers[0]["scores"][0, 0] == 7.0
    assert (counted(tmp_path, 1).n - old, counted(tmp_path, 2).n) == (1, 1)


def test_refuses_to_open_damaged_bytes(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    path = slot_folder(tmp_path, "classifier") / "a" / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        open_model("classifier", root=tmp_path)


def test_keeps_the_old_model_when_the_new_one_does_not_open(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    model = open_model("classifier", root=tmp_path)
    store = SlotStore(slot_folder(tmp_path, "classifier"), Disk())
    put(store, *variant("1.1.0", b"not an ONNX file"), 2)
    assert model.run({"image": IMAGE})["scores"].shape == (1, 3)
    assert model.version == "1.0.0"


def test_an_emptied_slot_stops_the_application(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    model = open_model("classifier", root=tmp_path)
    SlotStore(slot_folder(tmp_path, "classifier"), Disk()).clear()
    with pytest.raises(NoModelError):
        model.run({"image": IMAGE})


def test_a_slot_emptied_during_the_opening_stops_the_application(gate: Gate, tmp_path: Path) -> None:
    model = opened(tmp_path, gate)
    install(tmp_path, "1.1.0", 2, 2)
    model.run({"image": IMAGE})
    assert gate.waiting.wait(10)
    SlotStore(slot_folder(tmp_path, "classifier"), Disk()).clear()
    with pytest.raises(NoModelError):
        model.run({"image": IMAGE})
    gate.go_on.set()
    gate.threads[1].join()
    with pytest.raises(NoModelError):
        model.run({"image": IMAGE})


def test_what_was_withdrawn_answers_no_more_once_the_slot_is_filled_again(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    model = open_model("classifier", root=tmp_path)
    store = SlotStore(slot_folder(tmp_path, "classifier"), Disk())
    store.clear()
    with pytest.raises(NoModelError):
        model.run({"image": IMAGE})
    put(store, *variant("1.1.0", b"not an ONNX file"), 2)
    with pytest.raises(ModelError, match="cannot open"):
        model.run({"image": IMAGE})
    install(tmp_path, "1.2.0", 3, 3)
    assert np.allclose(scores(model), scores_of(3), atol=1e-5)


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("kernel failed"),
        {"scores": np.full((1, 3), np.nan, dtype=np.float32)},
        {"scores": np.zeros((1, 4), dtype=np.float32)},
        {},
    ],
    ids=["raises", "not finite", "wrong shape", "missing output"],
)
def test_counts_what_the_model_does_wrong(answer: Any, scripted: Any, tmp_path: Path) -> None:
    model, session = scripted
    session.answer = answer
    with pytest.raises(ModelError):
        model.run({"image": IMAGE})
    model.report_error()
    found = counted(tmp_path)
    assert (found.n, found.errors) == (1, 1), "one inference is one error at most"


def test_counts_an_inference_past_its_deadline_as_an_error(scripted: Any, tmp_path: Path) -> None:
    model, session = scripted

    def slowly(inputs: Any) -> Any:
        time.sleep(0.03)
        return session.real.run(inputs)

    session.answer = slowly  # the slot's latency limit is 1 ms, its deadline ten times that
    model.run({"image": IMAGE})
    found = counted(tmp_path)
    assert (found.n, found.slow, found.errors) == (1, 1, 1)


def test_does_not_count_inputs_that_the_model_does_not_take(scripted: Any, tmp_path: Path) -> None:
    model, _ = scripted
    for inputs in ({}, {"picture": IMAGE}, {"image": IMAGE.astype(np.float64)}, {"image": np.ones(4, np.float32)}):
        with pytest.raises(ModelError, match="expected"):
            model.run(inputs)
    assert counted(tmp_path).n == 0


def test_marks_the_last_inference_of_the_thread_wrong_once(scripted: Any, tmp_path: Path) -> None:
    model, _ = scripted
    model.report_error()
    model.run({"image": IMAGE})
    other = threading.Thread(target=lambda: model.run({"image": IMAGE}))
    other.start()
    other.join()
    for _ in range(5):
        model.report_error()
    assert (counted(tmp_path).n, counted(tmp_path).errors) == (2, 1)


def test_counts_every_inference_of_many_threads(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    model = open_model("classifier", root=tmp_path)

    def work() -> None:
        for _ in range(100):
            model.run({"image": IMAGE})
            model.report_error()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counted(tmp_path).n, counted(tmp_path).errors) == (400, 400)


def test_adds_up_what_several_processes_counted(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    for _ in range(2):  # each opening counts into a file of its own, as each process does
        with open_model("classifier", root=tmp_path) as model:
            model.run({"image": IMAGE})
    folder = slot_folder(tmp_path, "classifier") / "counters"
    (folder / "1.99-damaged.json").write_bytes(b"{")
    assert counted(tmp_path).n == 2


def test_costs_little_beside_the_inference(tmp_path: Path) -> None:
    install(tmp_path, "1.0.0", 1, 1)
    model = open_model("classifier", root=tmp_path)
    session = OPENERS["onnxruntime"](slot_folder(tmp_path, "classifier") / "a" / "model.onnx")
    inputs = {"image": IMAGE}

    def seconds(run: Any) -> float:
        best = float("inf")
        for _ in range(5):
            started = time.thread_time()
            for _ in range(200):
                run(inputs)
            best = min(best, time.thread_time() - started)
        return best / 200

    assert seconds(model.run) - seconds(session.run) < 100e-6
