"""What an application embeds: the active, verified model of a slot, which follows a switch without a restart.

Upholds: a file is opened only after its digest was found to be the one that was accepted at install; that needs no
network, no valid metadata and no agent. Every inference is counted, so that the fleet sees a bad model; an inference
that began on the old model ends on it. A switch makes no call wait: one thread at a time opens what is active now, the
old model answers meanwhile, and the call that finds the new one ready is the first that it answers. Only the
first call after a pause waits, since the old model may have been recalled long ago, and one after the slot was seen
empty, since what was withdrawn answers no more.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelfleet.agent_client.answers import answers
from modelfleet.agent_client.confidential import open_variant
from modelfleet.agent_client.counters import Counters, Counts, Inference
from modelfleet.agent_client.errors import ModelError, NoModelError
from modelfleet.agent_client.slots import POINTER_NAME, Pointer, read_pointer, slot_folder, verify_directory
from modelfleet.benchmarks.runtimes.table import OPENERS as RUNTIME_OPENERS
from modelfleet.benchmarks.session import Inputs, Outputs, Session, shape_fits
from modelfleet.signer.errors import DigestError
from modelfleet.signer.manifest import Manifest, Tensor

ROOT_VARIABLE = "MODELFLEET_AGENT_ROOT"
DEFAULT_ROOT = Path("/var/lib/modelfleet-agent")
DEADLINE_FACTOR = 10.0
"""An inference that takes this many times the latency limit has passed its deadline, unless the application names one."""
RETRY_SECONDS = 1.0
PAUSE_SECONDS = 1.0
"""After so long without an inference a switch may be old: the next call waits for the new model."""
PATIENCE_SECONDS = 10.0
"""It waits no longer than this; then the old one answers until the new one is open."""

log = logging.getLogger(__name__)

_Mark = tuple[int, int]
SessionOpener = Callable[[Path], Session]
OPENERS: Mapping[str, SessionOpener] = RUNTIME_OPENERS
"""Runtime name of the manifest -> what opens its entry file."""


def agent_root(root: Path | None) -> Path:
    """Return the agent's folder: the one given, the one that MODELFLEET_AGENT_ROOT names, or the system's."""
    return root or Path(os.environ.get(ROOT_VARIABLE, DEFAULT_ROOT))


def open_model(
    slot: str,
    *,
    root: Path | None = None,
    openers: Mapping[str, SessionOpener] | None = None,
    deadline_ms: float | None = None,
) -> "Model":
    """Return the active model of `slot`, verified.

    Args:
        slot: its name, such as `detector`.
        root: the agent's folder; by default what MODELFLEET_AGENT_ROOT names.
        openers: runtime name -> opener, in place of the default ones of those names.
        deadline_ms: an inference that takes longer is an error; by default ten times the latency limit.

    Raises:
        NoModelError: nothing is active in the slot.
        ModelError: what is active is damaged, or its runtime cannot open it.
    """
    return Model(slot_folder(agent_root(root), slot), {**OPENERS, **(openers or {})}, deadline_ms)


@dataclass(frozen=True, kw_only=True)
class _Active:
    """One opened activation; inferences that began on it keep it alive."""

    mark: _Mark
    pointer: Pointer
    manifest: Manifest
    session: Session
    counters: Counters


class Model:
    """The active model of one slot; may be used by several threads at once. Made by `open_model`."""

    def __init__(self, folder: Path, openers: Mapping[str, SessionOpener], deadline_ms: float | None) -> None:
        self._folder = folder
        self._pointer_path = str(folder / POINTER_NAME)
        self._openers = openers
        self._deadline_ms = deadline_ms
        self._lock = threading.Lock()
        self._last: Inference | None = None
        self._of_thread = threading.local()
        self._opening: threading.Thread | None = None
        self._ready: _Active | None = None
        self._failed: tuple[_Mark, float] | None = None
        self._withdrawn = False
        self._answered_at = time.perf_counter()
        self._active = self._open(self._mark())

    @property
    def version(self) -> str:
        """The version of the model that runs; a switch shows here once a call was answered by the new one."""
        return self._active.pointer.version

    @property
    def digest(self) -> str:
        """The manifest digest of the model that runs."""
        return self._active.pointer.sha256

    @property
    def parameters(self) -> Mapping[str, str | int]:
        """The signed application parameters of the model that runs."""
        return self._active.manifest.parameters

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of the model that runs."""
        return self._active.manifest.inputs

    def counts(self) -> Counts:
        """Return what this object has counted since the last switch."""
        return self._active.counters.counts()

    def run(self, inputs: Inputs) -> Outputs:
        """Return the model's outputs, output name -> array, and count the inference.

        Args:
            inputs: input name -> array, of the shape and dtype of the manifest.

        Raises:
            ModelError: the inputs are not what the model takes (not counted), or the runtime raised, or the outputs are
                not finite or of another shape than the manifest's (counted as errors).
            NoModelError: the slot was emptied.
            StorageError: the slot was emptied, and its pointer is damaged now.
        """
        active = self._current()
        _require_inputs(inputs, active.manifest.inputs)
        started = time.perf_counter()
        try:
            outputs = dict(active.session.run(inputs))
        except Exception as error:
            self._count(active, started, None, wrong=True)
            raise ModelError(f"{active.manifest.model} {active.pointer.version}: the runtime raised {error}") from error
        fault = _fault(outputs, active.manifest.outputs)
        self._count(active, started, outputs, wrong=fault is not None)
        if fault is not None:
            raise ModelError(f"{active.manifest.model} {active.pointer.version}: {fault}")
        return outputs

    def report_error(self) -> None:
        """Mark this thread's last inference as wrong, once; a thread that ran none marks the last one of all."""
        inference = self._last_inference()
        if inference is not None:
            inference.counters.mark_wrong(inference)

    def report_confidence(self, share: float) -> None:
        """Say how sure the last inference was of its top class, 0..1, where the outputs are no probabilities.

        Counted once per inference, and not where the outputs told it already. Which inference: as `report_error`.

        Raises:
            ModelError: not a share.
        """
        if not 0 <= share <= 1:
            raise ModelError(f"expected a confidence in 0..1, got {share!r}")
        inference = self._last_inference()
        if inference is not None:
            inference.counters.note_confidence(inference, share)

    def _last_inference(self) -> Inference | None:
        found: Inference | None = getattr(self._of_thread, "last", None)
        return found or self._last

    def close(self) -> None:
        """Put the counters into their file."""
        self._active.counters.flush()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, active: _Active, started: float, outputs: Outputs | None, *, wrong: bool) -> None:
        self._answered_at = time.perf_counter()
        latency_ms = (self._answered_at - started) * 1000.0
        limit_ms = active.pointer.latency_ms
        deadline_ms = self._deadline_ms or DEADLINE_FACTOR * limit_ms
        classes, confidence = answers(outputs) if outputs and not wrong else ((), ())
        inference = active.counters.count(
            latency_ms,
            wrong=wrong or latency_ms > deadline_ms,
            slow=latency_ms > limit_ms,
            classes=classes,
            confidence=confidence,
        )
        self._of_thread.last = self._last = inference

    def _mark(self) -> _Mark | None:
        """Tell one pointer from the next by its file alone: two system calls' worth, made before every inference."""
        try:
            found = os.stat(self._pointer_path)  # noqa: PTH116 - before every inference: half the cost of Path.stat
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _current(self) -> _Active:
        if self._mark() == self._active.mark:
            return self._active
        with self._lock:
            return self._followed(self._mark())  # again: another thread may have followed meanwhile

    def _followed(self, mark: _Mark | None) -> _Active:
        if mark is None:
            self._withdrawn = True
            raise NoModelError(_nothing_active(self._folder))
        if mark == self._active.mark:
            return self._active
        if self._withdrawn:
            self._swap(self._open(mark))
            return self._active
        if not self._is_ready(mark):
            self._open_aside(mark)
        if self._ready is not None and self._is_ready(mark):
            self._swap(self._ready)
        return self._active

    def _is_ready(self, mark: _Mark) -> bool:
        return self._ready is not None and self._ready.mark == mark

    def _swap(self, opened: _Active) -> None:
        self._active.counters.flush()
        self._active, self._ready, self._failed, self._withdrawn = opened, None, None, False

    def _open_aside(self, mark: _Mark) -> None:
        """Have a thread open what is active now; after a pause in the calls, wait for it: the old model may be long recalled."""
        if self._opening is None or not self._opening.is_alive():
            self._start_opening(mark)
        if self._opening is not None and time.perf_counter() - self._answered_at > PAUSE_SECONDS:
            self._opening.join(PATIENCE_SECONDS)

    def _start_opening(self, mark: _Mark) -> None:
        if self._failed is not None and self._failed[0] == mark and time.monotonic() < self._failed[1]:
            return
        self._ready = None  # the pointer has moved on since
        opening = threading.Thread(target=self._make_ready, args=(mark,), name="modelfleet-open", daemon=True)
        try:
            opening.start()
        except RuntimeError as error:  # the system has no thread to give
            self._fail(mark, error)
        else:
            self._opening = opening

    def _make_ready(self, mark: _Mark) -> None:
        try:
            opened = self._open(mark)
            self._ready = opened if opened.mark == self._mark() else None
        except NoModelError:
            return  # emptied meanwhile: the next call sees it too, and says so
        except Exception as error:  # noqa: BLE001 - whatever it is, the model that is loaded still runs
            self._fail(mark, error)

    def _fail(self, mark: _Mark, error: Exception) -> None:
        """Keep the loaded model and try again later; the agent's own probation judges the new one."""
        if self._failed is None or self._failed[0] != mark:
            log.warning(
                "slot %s: %s still runs, the new model does not open: %s", self._folder.name, self.version, error
            )
        self._failed = (mark, time.monotonic() + RETRY_SECONDS)

    def _open(self, mark: _Mark | None) -> _Active:
        for attempt in (1, 2, 3):
            pointer = read_pointer(self._folder)
            if pointer is None or mark is None:
                raise NoModelError(_nothing_active(self._folder))
            try:
                return self._opened(mark, pointer)
            except DigestError as error:
                # The agent may have switched and begun to refill this directory meanwhile: look again.
                found = self._mark()
                if found == mark or attempt == 3:
                    raise ModelError(f"slot {self._folder.name}, {pointer.version}: {error}") from error
                mark = found
        raise AssertionError("unreachable")

    def _opened(self, mark: _Mark, pointer: Pointer) -> _Active:
        folder = self._folder / pointer.directory
        manifest = verify_directory(folder, pointer.sha256)
        opener = self._openers.get(manifest.runtime)
        if opener is None:
            raise ModelError(
                f"expected a runtime of {sorted(self._openers)}, got {manifest.runtime}: install its extra"
            )
        try:
            session = open_variant(folder, manifest, pointer.sha256, opener)
        except DigestError:
            raise
        except Exception as error:
            raise ModelError(
                f"{manifest.model} {manifest.version}: {manifest.runtime} cannot open it: {error}"
            ) from error
        counters = Counters(self._folder / "counters", pointer.activation)
        return _Active(mark=mark, pointer=pointer, manifest=manifest, session=session, counters=counters)


def _nothing_active(folder: Path) -> str:
    return f"slot {folder.name}: no model is active; wait for the agent or roll one out"


def _require_inputs(inputs: Inputs, tensors: tuple[Tensor, ...]) -> None:
    if len(inputs) != len(tensors):
        raise ModelError(f"expected inputs {[tensor.name for tensor in tensors]}, got {sorted(inputs)}")
    for tensor in tensors:
        value = inputs.get(tensor.name)
        if value is None:
            raise ModelError(f"expected inputs {[tensor.name for tensor in tensors]}, got {sorted(inputs)}")
        if value.dtype != tensor.dtype or not shape_fits(value.shape, tensor.shape):
            raise ModelError(
                f"input {tensor.name}: expected {tensor.dtype}{list(tensor.shape)}, got {value.dtype.name}{list(value.shape)}"
            )


def _fault(outputs: Outputs, tensors: tuple[Tensor, ...]) -> str | None:
    for tensor in tensors:
        value = outputs.get(tensor.name)
        if value is None or not shape_fits(value.shape, tensor.shape):
            got = "none" if value is None else str(list(value.shape))
            return f"output {tensor.name}: expected shape {list(tensor.shape)}, got {got}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"output {tensor.name}: expected finite values, got NaN or infinity"
    return None
