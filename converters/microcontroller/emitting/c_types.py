"""What a tensor's numbers are in C, and how names of a model may appear in it.

Names of a model are hostile: they reach C in comments only, percent-encoded, so that none ends a comment, joins a line or is a
trigraph.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import numpy as np

from modelfleet.converters.errors import ConversionError

C_TYPES: Final[Mapping[str, str]] = {
    "bool": "uint8_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "float16": "uint16_t",
    "bfloat16": "uint16_t",
    "float32": "float",
    "float64": "double",
}
"""numpy's name of a type -> C's. Truth values are a byte of 0 or 1, halves their 16 bits."""
MAX_NAME: Final = 120
IO_ALIGNMENT: Final = 4
"""Of inputs and outputs at least, whatever their type: kernels load words."""


def c_type(dtype: str, name: str) -> str:
    """Return C's name of a type (ConversionError: it has none; names the tensor)."""
    if dtype not in C_TYPES:
        raise ConversionError("", "", f"tensor {name!r}: expected a type of {sorted(C_TYPES)}, got {dtype}")
    return C_TYPES[dtype]


def io_alignment(dtype: str) -> int:
    """Return what the address of an input or output must be a multiple of."""
    return max(IO_ALIGNMENT, np.dtype(dtype).itemsize)


def comment_text(name: str) -> str:
    """Return a model's name as it may stand in a C comment: percent-encoded, cut to `MAX_NAME` characters."""
    shown = quote(name, safe="/._-:, ()[]")
    return shown if len(shown) <= MAX_NAME else f"{shown[: MAX_NAME - 3]}..."
