"""What an application embeds: the active, verified model of a slot, which follows a switch without a restart.

Upholds: a file is opened only after its digest was found to be the one that was accepted at install; that needs no
network, no valid metadata and no agent. Every inference is counted, so that the fleet sees a bad model; an inference
that began on the old model ends on it.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelfleet.agent_client.counters import Counters, Counts, Inference
from modelfleet.agent_client.errors import ModelError, NoModelError
from modelfleet.agent_client.slots import POINTER_NAME, Pointer, read_pointer, slot_folder, verify_directory
from modelfleet.benchmarks.session import OPENERS as RUNTIME_OPENERS
from modelfleet.benchmarks.session import Inputs, Outputs, Session, shape_fits
from modelfleet.signer.errors import DigestError
from modelfleet.signer.manifest import Manifest, Tensor

ROOT_VARIABLE = "MODELFLEET_AGENT_ROOT"
DEFAULT_ROOT = Path("/var/lib/modelfleet-agent")
DEADLINE_FACTOR = 10.0
"""An inference that takes this many times the latency limit has passed its deadline, unless the application names one."""
RETRY_SECONDS = 1.0


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

    mark: tuple[int, int]
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
        self._next_try = 0.0
        self._active = self._open(self._mark())

    @property
    def version(self) -> str:
        """The version of the model that runs."""
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
        inference: Inference | None = getattr(self._of_thread, "last", None) or self._last
        if inference is not None:
            inference.counters.mark_wrong(inference)

    def close(self) -> None:
        """Put the counters into their file."""
        self._active.counters.flush()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, active: _Active, started: float, outputs: Outputs | None, *, wrong: bool) -> None:
        latency_ms = (time.perf_counter() - started) * 1000.0
        limit_ms = active.pointer.latency_ms
        deadline_ms = self._deadline_ms or DEADLINE_FACTOR * limit_ms
        inference = active.counters.count(
            latency_ms,
            wrong=wrong or latency_ms > deadline_ms,
            slow=latency_ms > limit_ms,
            classes=_classes(outputs) if outputs and not wrong else (),
        )
        self._of_thread.last = self._last = inference

    def _mark(self) -> tuple[int, int] | None:
        """Tell one pointer from the next by its file alone: two system calls' worth, made before every inference."""
        try:
            found = os.stat(self._pointer_path)  # noqa: PTH116 - before every inference: half the cost of Path.stat
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _current(self) -> _Active:
        mark = self._mark()
        if mark == self._active.mark:
            return self._active
        with self._lock:
            if mark != self._active.mark and (mark is None or time.monotonic() >= self._next_try):
                self._follow(mark)
            return self._active

    def _follow(self, mark: tuple[int, int] | None) -> None:
        try:
            opened = self._open(mark)
        except ModelError:
            # The model that is loaded still runs; the agent's own probation judges the new one.
            self._next_try = time.monotonic() + RETRY_SECONDS
            return
        self._active.counters.flush()
        self._active = opened

    def _open(self, mark: tuple[int, int] | None) -> _Active:
        for attempt in (1, 2, 3):
            pointer = read_pointer(self._folder)
            if pointer is None or mark is None:
                raise NoModelError(f"slot {self._folder.name}: no model is active; wait for the agent or roll one out")
            try:
                return self._opened(mark, pointer)
            except DigestError as error:
                # The agent may have switched and begun to refill this directory meanwhile: look again.
                found = self._mark()
                if found == mark or attempt == 3:
                    raise ModelError(f"slot {self._folder.name}, {pointer.version}: {error}") from error
                mark = found
        raise AssertionError("unreachable")

    def _opened(self, mark: tuple[int, int], pointer: Pointer) -> _Active:
        folder = self._folder / pointer.directory
        manifest = verify_directory(folder, pointer.sha256)
        opener = self._openers.get(manifest.runtime)
        if opener is None:
            raise ModelError(
                f"expected a runtime of {sorted(self._openers)}, got {manifest.runtime}: install its extra"
            )
        try:
            session = opener(folder / manifest.entry)
        except Exception as error:
            raise ModelError(
                f"{manifest.model} {manifest.version}: {manifest.runtime} cannot open it: {error}"
            ) from error
        counters = Counters(self._folder / "counters", pointer.activation)
        return _Active(mark=mark, pointer=pointer, manifest=manifest, session=session, counters=counters)


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


def _classes(outputs: Outputs) -> list[int]:
    first = next(iter(outputs.values()))
    if first.ndim != 2 or first.shape[1] < 2:
        return []
    return [int(label) for label in first.argmax(axis=1)]
