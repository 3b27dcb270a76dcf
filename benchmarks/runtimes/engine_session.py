"""A serialized engine of TensorRT or TensorRT-RTX, run on the GPU; both have one API.

An engine that does not load is refused with the runtime's own reason: another version or another kind of GPU than it was built
for. Free dimensions have the ranges that the engine was built with; a shape outside is refused, never cut.
"""

import threading
from typing import Any, Final

import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.cuda import Cuda
from modelfleet.benchmarks.runtimes.engine_builder import builder_version, dtype_of, load_module, make_logger
from modelfleet.benchmarks.session import Array, Inputs, Outputs
from modelfleet.signer.manifest import Tensor

_INVALID: Final = ("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "MALFORMED_ENGINE")


class EngineSession:
    """An engine opened on the first GPU; inferences of several threads take turns.

    Args:
        builder: `tensorrt` or `tensorrt-rtx`: what built it, and runs it.
        data: the serialized engine.

    Raises:
        RuntimeMissingError: the runtime is not installed, or there is no GPU. MeasureError: it does not load here.
    """

    def __init__(self, builder: str, data: bytes, *, cuda: Cuda | None = None, module: Any = None) -> None:
        trt = module or load_module(builder)
        self._cuda = cuda or Cuda()
        self._cuda.enter()
        self._logger = make_logger(trt)
        runtime = trt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            why = _validity(trt, runtime, data) + self._logger.said()
            raise MeasureError(f"{builder} {builder_version(builder)} does not load the engine: {why}")
        self._runtime, self._engine = runtime, engine  # the engine uses the runtime as long as it lives
        self._context = engine.create_execution_context()
        if self._context is None:
            raise MeasureError(f"{builder}: expected an execution context, got none: {self._logger.said()}")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        of_inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._inputs = tuple(_tensor(engine, name) for name in of_inputs)
        self._outputs = tuple(_tensor(engine, name) for name in names if name not in of_inputs)
        self._stream = self._cuda.stream()
        self._held: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the engine's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the engine's order."""
        return self._outputs

    def run(self, inputs: Inputs) -> Outputs:
        """Run one inference (MeasureError: the runtime refused a shape or failed)."""
        with self._lock:
            self._cuda.enter()
            sent = [self._send(tensor, inputs) for tensor in self._inputs]
            shapes = {tensor.name: self._place(tensor) for tensor in self._outputs}
            if not self._context.execute_async_v3(self._stream):
                raise MeasureError(f"the inference failed: {self._logger.said()}")
            outputs = {
                tensor.name: self._cuda.from_gpu(
                    self._held[tensor.name][0], shapes[tensor.name], tensor.dtype, self._stream
                )
                for tensor in self._outputs
            }
            self._cuda.wait(self._stream)
            del sent  # kept until now: the copies read from them
            return outputs

    def __del__(self) -> None:
        for address, _ in getattr(self, "_held", {}).values():
            self._cuda.free(address)

    def _send(self, tensor: Tensor, inputs: Inputs) -> Array:
        value = inputs.get(tensor.name)
        if value is None or value.dtype.name != tensor.dtype:
            raise MeasureError(f"input {tensor.name!r}: expected {tensor.dtype}, got {getattr(value, 'dtype', None)}")
        array = np.ascontiguousarray(value)
        if not self._context.set_input_shape(tensor.name, value.shape):
            raise MeasureError(f"input {tensor.name!r}: {[*value.shape]} is outside the engine's range of shapes")
        address = self._room(tensor.name, array.nbytes)
        self._cuda.to_gpu(address, array, self._stream)
        return array

    def _place(self, tensor: Tensor) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(tensor.name))
        if any(dim < 0 for dim in shape):
            raise MeasureError(
                f"output {tensor.name!r}: expected a shape that inputs' shapes decide, got {[*shape]} before it ran"
            )
        self._room(tensor.name, int(np.prod(shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize)
        return shape

    def _room(self, name: str, length: int) -> int:
        address, held = self._held.get(name, (0, -1))
        if held < length:
            if held >= 0:
                self._cuda.free(address)
                del self._held[name]
            address = self._cuda.allocate(length)
            self._held[name] = (address, length)
        if not self._context.set_tensor_address(name, address):
            raise MeasureError(f"{name!r}: expected memory that the engine takes, got a refusal: {self._logger.said()}")
        return address


def _tensor(engine: Any, name: str) -> Tensor:
    shape = tuple(None if dim < 0 else int(dim) for dim in engine.get_tensor_shape(name))
    return Tensor(name=name, dtype=dtype_of(engine.get_tensor_dtype(name), name), shape=shape)


def _validity(trt: Any, runtime: Any, data: bytes) -> str:
    """Return what TensorRT-RTX says is wrong with an engine, as words and a colon; "" where it cannot say."""
    diagnose = getattr(runtime, "get_engine_validity", None)
    kinds = getattr(trt, "EngineInvalidityDiagnostics", None)
    if diagnose is None or kinds is None:
        return ""
    _, bits = diagnose(data)
    found = [name for name in _INVALID if int(bits) & int(getattr(kinds, name))]
    return f"{', '.join(found)}: " if found else ""
