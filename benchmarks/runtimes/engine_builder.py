"""ONNX -> serialized engine, by TensorRT or TensorRT-RTX: on the server for RTX (no GPU needed), on the device by a recipe.

Networks are strongly typed: the engine computes in the types that the network's own tensors have, which are those that the
server proved; the builder chooses no other precision. TensorRT's own messages become the error, never the process's output.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.runtimes.recipe import Range
from modelfleet.hardware_profiles.profile import RUNTIME_DISTRIBUTIONS, Runtime

MODULES: Final[Mapping[str, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Builder -> its Python module; both have one API."""
_DTYPES: Final[Mapping[str, str]] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's name of a type -> numpy's; others cannot travel in a golden set."""


class EngineBuildError(MeasureError):
    """The builder refuses the network: fix the model. `node` names the ONNX node where it happened, "" where unknown."""

    def __init__(self, reason: str, node: str = "") -> None:
        super().__init__(f"node {node!r}: {reason}" if node else reason)
        self.node = node
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A serialized engine, and (name, numpy dtype) of its inputs and outputs as the builder sees them."""

    data: bytes
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


def load_module(builder: str) -> Any:
    """Return the Python module of a builder (RuntimeMissingError: it is not installed; says how to install it)."""
    try:
        return importlib.import_module(MODULES[builder])
    except (ImportError, OSError) as error:
        raise RuntimeMissingError(f"{builder} is not installed: {INSTALL[builder]} ({error})") from error


INSTALL: Final[Mapping[str, str]] = {
    "tensorrt": "install JetPack's TensorRT, or modelfleet[tensorrt] where NVIDIA's index is reachable",
    "tensorrt-rtx": "install modelfleet[tensorrt-rtx]",
}


def builder_version(builder: str) -> str:
    """Return the version of the builder that is installed, "" where it is not; nothing is imported."""
    for distribution in RUNTIME_DISTRIBUTIONS[Runtime(builder)]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""


def build_engine(
    builder: str, network: bytes, *, ranges: Mapping[str, Range], workspace_bytes: int, tf32: bool = False
) -> Engine:
    """Return the engine of an ONNX model.

    Args:
        builder: a name of `MODULES`.
        network: the model, by itself (no external data).
        ranges: input name -> shapes, for every input with free dimensions.
        workspace_bytes: the GPU memory that one layer may use besides.
        tf32: whether float32 may be multiplied with ten bits of mantissa.

    Raises:
        RuntimeMissingError: the builder is not installed.
        EngineBuildError: it refuses the network, or would make something else of it; names the node.
    """
    trt = load_module(builder)
    logger = make_logger(trt)
    made = trt.Builder(logger)
    definition = made.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse(network):
        raise _refusal(parser, logger)
    _require_no_plugins(parser)
    inputs = _inputs(definition)
    outputs = tuple(_named(definition.get_output(index)) for index in range(definition.num_outputs))
    config = made.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.add_optimization_profile(_shapes(made, definition, ranges))
    engine = made.build_serialized_network(definition, config)
    if engine is None:
        raise EngineBuildError(f"{builder} built no engine: {logger.said()}")
    return Engine(data=bytes(engine), inputs=inputs, outputs=outputs)


def dtype_of(kind: Any, name: str) -> str:
    """Return numpy's name of a TensorRT type (MeasureError: it has none)."""
    found = _DTYPES.get(kind.name)
    if found is None:
        raise EngineBuildError(f"{name!r}: expected a type of {sorted(_DTYPES.values())}, got {kind.name}")
    return found


def _inputs(definition: Any) -> tuple[tuple[str, str], ...]:
    inputs = [definition.get_input(index) for index in range(definition.num_inputs)]
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise EngineBuildError(f"input {tensor.name!r}: expected values, got one that decides shapes")
    return tuple(_named(tensor) for tensor in inputs)


def _named(tensor: Any) -> tuple[str, str]:
    return tensor.name, dtype_of(tensor.dtype, tensor.name)


def _shapes(made: Any, definition: Any, ranges: Mapping[str, Range]) -> Any:
    profile = made.create_optimization_profile()
    for index in range(definition.num_inputs):
        tensor = definition.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        wanted = ranges.get(tensor.name)
        if wanted is None or not _within(shape, wanted):
            raise EngineBuildError(f"input {tensor.name!r}: expected a range of shapes for {shape}, got {wanted}")
        profile.set_shape(tensor.name, wanted.least, wanted.best, wanted.most)
    return profile


def _within(shape: tuple[int, ...], wanted: Range) -> bool:
    if len(shape) != len(wanted.most):
        return False
    pairs = zip(shape, wanted.least, wanted.most, strict=True)
    return all(dim == -1 or dim == least == most for dim, least, most in pairs)


def _refusal(parser: Any, logger: Any) -> EngineBuildError:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = error.node_name(), error.node_operator()
        reason = " ".join(error.desc().split())[:500]
        return EngineBuildError(f"{operator or 'the network'}: the parser refuses it: {reason}", node)
    return EngineBuildError(f"expected a network that the parser takes, got one that it refuses: {logger.said()}")


def _require_no_plugins(parser: Any) -> None:
    libraries = list(parser.get_used_vc_plugin_libraries())
    if libraries:
        raise EngineBuildError(f"expected standard operators, got plugins of {libraries}")


def make_logger(trt: Any) -> Any:
    """Return a logger for a TensorRT module that keeps what went wrong; `said()` tells it."""

    class Logger(trt.ILogger):  # TensorRT calls it from C++, so it must be of its class
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._errors.append(" ".join(msg.split())[:500])

        def said(self) -> str:
            return "; ".join(self._errors[-3:]) or "no reason given"

    return Logger()
