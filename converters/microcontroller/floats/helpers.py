"""C functions that the texts of rules call: each comes into a file once, before what calls it, and only where it is called."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from modelfleet.converters.microcontroller.lowering import fragment_text

_CALL: Final = re.compile(r"\b(mf_\w+)\(")
_MATH: Final = re.compile(
    r"\b(?:INFINITY|NAN|(?:expm1|exp|log1p|log|sqrt|tanh|tan|sinh|sin|cosh|cos|asinh|asin|acosh|acos|atanh|atan|floor|ceil|"
    r"rint|pow|fmod|erf|fabs|trunc)f?\()"
)


def with_helpers(fragments: Sequence[str], statements: str) -> tuple[str, ...]:
    """Return the fragments with every helper that they or the statements call before them."""
    found: dict[str, None] = {}
    for text in (*fragments, statements):
        _collect(text, found)
        if text is not statements:
            found[text] = None
    return tuple(found)


def needs_math(texts: Sequence[str]) -> bool:
    """Return whether any text uses `math.h`."""
    return any(_MATH.search(text) for text in texts)


def _collect(text: str, found: dict[str, None]) -> None:
    for name in _CALL.findall(text):
        helper = helpers().get(name)
        if helper is not None and helper not in found and helper != text:
            _collect(helper, found)
            found[helper] = None


@cache
def helpers() -> Mapping[str, str]:
    """Return name -> C text of every function in `helpers.c`; blank lines part them."""
    blocks = [block.strip() + "\n" for block in fragment_text("floats/helpers.c").split("\n\n")]
    return {_CALL.findall(block)[0]: block for block in blocks if _CALL.search(block)}
