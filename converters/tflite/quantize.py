"""A TFLite flatbuffer of floats -> fp16, int8 (static, dynamic, weights only) or 4-bit weights, by ai-edge-quantizer.

Inputs and outputs stay as they are; what the quantizer leaves in float, it says nothing about: a result in which no weight
changed is refused.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Generator, Iterator
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.litert import Interface, Port
from modelfleet.benchmarks.session import Array
from modelfleet.converters.tflite.flatbuffer import signature_types, tensor_types
from modelfleet.hardware_profiles.profile import Precision

PRECISIONS: Final = frozenset(
    {Precision.FP16, Precision.INT8, Precision.INT8_DYNAMIC, Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS}
)
MOST_SAMPLES: Final = 256
_SIGNATURE: Final = "serving_default"
_WEIGHT_TYPES: Final = {Precision.FP16: {1}, Precision.INT4_WEIGHTS: {17}}  # TensorType.FLOAT16, INT4
_INT8: Final = {9}


class QuantizeError(Exception):
    """The quantizer refused, or changed nothing."""


def quantized(
    content: bytes, precision: Precision, interface: Interface, calibration: GoldenSet, keep: list[str]
) -> tuple[bytes, Interface]:
    """Return the flatbuffer in a precision of `PRECISIONS`, and its inputs and outputs by their names in it.

    Args:
        content: the flatbuffer of floats.
        precision: which.
        interface: what its inputs are.
        calibration: samples for ranges of activations, the first `MOST_SAMPLES`.
        keep: names of tensors; operators that compute one stay in float.

    Raises:
        QuantizeError: the quantizer failed, changed nothing, or changed inputs or outputs.
    """
    from ai_edge_quantizer import quantizer as _quantizer

    quantizer: Any = _quantizer
    with _hushed():
        try:
            work: Any = quantizer.Quantizer(bytearray(content))
            _set_recipe(work, precision, keep)
            ranges: Any = None
            if work.need_calibration:
                found = [
                    work.calibrate({_SIGNATURE: [sample]}, num_threads=1)
                    for sample in _samples(content, interface, calibration)
                ]
                ranges = _widest(found)
            result = bytes(work.quantize(ranges).quantized_model)
        except MemoryError:
            raise
        except Exception as error:
            raise QuantizeError(f"{precision}: {type(error).__name__}: {error}") from error
    _require_changed(result, precision)
    return result, _renamed(content, result, interface, precision)


def _set_recipe(work: Any, precision: Precision, keep: list[str]) -> None:
    from ai_edge_quantizer import algorithm_manager as _algorithms
    from ai_edge_quantizer import qtyping as _qtyping

    names: Any = _qtyping.TFLOperationName
    algorithms: Any = _algorithms.AlgorithmName
    everything: Any = names.ALL_SUPPORTED
    if precision is Precision.FP16:
        for name in (names.FULLY_CONNECTED, names.CONV_2D, names.DEPTHWISE_CONV_2D, names.CONV_2D_TRANSPOSE):
            work.add_weight_only_config(".*", name, 16, algorithm_key=algorithms.FLOAT_CASTING)
    elif precision is Precision.INT8:
        work.add_static_config(".*", everything, activation_num_bits=8, weight_num_bits=8)
        for name in (names.INPUT, names.OUTPUT):
            work.update_quantization_recipe(".*", name, algorithm_key=algorithms.NO_QUANTIZE)
    elif precision is Precision.INT8_DYNAMIC:
        work.add_dynamic_config(".*", everything, num_bits=8)
    else:
        work.add_weight_only_config(".*", everything, num_bits=4 if precision is Precision.INT4_WEIGHTS else 8)
    if keep:
        # A scope is searched for in the names of an operator's outputs, each followed by ";".
        scope = "(^|;)(" + "|".join(re.escape(name) for name in keep) + ")(_[a-z]\\w*)?(;|$)"
        work.update_quantization_recipe(scope, everything, algorithm_key=algorithms.NO_QUANTIZE)


def _widest(found: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the least and greatest value of every tensor over all batches; the quantizer itself averages them."""
    widest: dict[str, dict[str, Any]] = {}
    for ranges in found:
        for name, limits in ranges.items():
            known = widest.setdefault(name, dict(limits))
            if "min" in limits and "max" in limits:
                known["min"] = np.minimum(known["min"], limits["min"])
                known["max"] = np.maximum(known["max"], limits["max"])
    return widest


def _samples(content: bytes, interface: Interface, calibration: GoldenSet) -> Iterator[dict[str, Array]]:
    """Yield the samples as one batch where the batch is free, else one by one."""
    types = signature_types(content)
    ports = [port for port in interface.inputs if port.tensor in types]
    count = min(len(calibration), MOST_SAMPLES)
    if all(port.shape[:1] == (None,) for port in ports):
        yield {port.tensor: calibration.inputs[port.name][:count].astype(types[port.tensor]) for port in ports}
        return
    for index in range(count):
        sample = calibration.sample(index)
        yield {port.tensor: np.ascontiguousarray(sample[port.name]).astype(types[port.tensor]) for port in ports}


def _require_changed(after: bytes, precision: Precision) -> None:
    wanted = _WEIGHT_TYPES.get(precision, _INT8)
    if not any(kind in wanted and constant and len(shape) >= 2 for kind, shape, constant in tensor_types(after)):
        reason = "expected operators with weights (Conv, MatMul, Gemm), got none: nothing was changed"
        raise QuantizeError(f"{precision}: {reason}")


def _renamed(before: bytes, after: bytes, interface: Interface, precision: Precision) -> Interface:
    """Return the interface by the names after: an output that is computed in whole numbers is another tensor's copy in float."""
    old, new = signature_types(before), signature_types(after)
    if [*old.values()] != [*new.values()]:
        raise QuantizeError(f"{precision}: expected inputs and outputs of {[*old.values()]}, got {[*new.values()]}")
    names = dict(zip(old, new, strict=True))

    def renamed(ports: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(msgspec.structs.replace(port, tensor=names[port.tensor]) for port in ports)

    return msgspec.structs.replace(interface, inputs=renamed(interface.inputs), outputs=renamed(interface.outputs))


@contextlib.contextmanager
def _hushed() -> Generator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
