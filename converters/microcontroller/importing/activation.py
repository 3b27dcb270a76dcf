"""Activations between an operator and its QuantizeLinear that only clamp: Relu, Clip, Min, Max by constants.

Rounding is monotone, so to clamp first and quantize then is to quantize first and clamp to the quantized bounds: exact.
"""

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.scales import Scale
from modelfleet.converters.microcontroller.importing.sight import Sight


def unclamped(sight: Sight, name: str, scale: Scale) -> tuple[str, tuple[int, int]]:
    """Return the float tensor before all clamps of `name`, and the int8 bounds that they become under `scale`."""
    bounds = (-128, 127)
    while (node := sight.maker(name, "Relu", "Clip")) is not None:
        found = limits(sight, node)
        if found is None:
            break
        lo, hi = (quantize(limit, scale) for limit in found)
        lo, hi = min(lo, hi), hi  # ONNX: with min above max, all becomes max
        bounds = (min(max(lo, bounds[0]), bounds[1]), min(max(hi, bounds[0]), bounds[1]))
        name = node.inputs[0]
    return name, bounds


def limits(sight: Sight, node: Node) -> tuple[float, float] | None:
    """Return the least and greatest value that a Relu or Clip lets through, None where they are computed."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = [float(node.attributes.get("min", -np.inf)), float(node.attributes.get("max", np.inf))]
    if sight.graph.opsets.get("", 0) < 11:
        return None if np.isnan(found).any() else (found[0], found[1])
    found.clear()
    for position, absent in ((1, -np.inf), (2, np.inf)):
        name = node.input(position)
        value = sight.real(name) if name else np.asarray(absent)
        if value is None or value.size != 1:
            return None
        found.append(float(value.reshape(())[()]))
    return None if np.isnan(found).any() else (found[0], found[1])


def quantize(value: float, scale: Scale) -> int:
    """Return the int8 that QuantizeLinear makes of a float that is a number: half to even, saturated."""
    scaled = np.rint(np.float32(np.clip(np.float32(value) / scale.scale, -1e6, 1e6)))
    return int(np.clip(int(scaled) + scale.zero_point, -128, 127))
