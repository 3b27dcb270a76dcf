"""How code asks a question: of keys that were made first, or of the bits of floats where they lie.

Bits need no preparation but a look for a NaN with a sign: at or above a threshold that is not negative they compare as signed
numbers, below as unsigned ones, backwards. Where such a NaN is found, and where a compiler may not read floats as bits, the
features are copied first.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from modelfleet.converters.microcontroller.trees.code import Numbers
from modelfleet.converters.microcontroller.trees.forest import Comparison, Forest, Form

SPARE_PLACES: Final = 16
"""Features that are copied without being asked, beyond as many as are asked: more would be a waste of RAM."""
SIGN: Final = 0x80000000


class Asking(Protocol):
    """Questions as C."""

    @property
    def kind(self) -> str:
        """What `k`, the argument of the trees' functions, points to."""
        ...

    @property
    def fragment(self) -> str:
        """The C that must come before."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """The size of `w`."""
        ...

    def prepare(self) -> str:
        """Return the statements that make `k` of `x`, with scratch `w`."""
        ...

    def compare(self, comparison: Comparison) -> str:
        """Return the condition."""
        ...


def asking(forest: Forest, numbers: Numbers) -> Asking:
    """Return the way that takes the fewest instructions."""
    forms = list(forest.thresholds())
    count = max((form.feature for form in forms), default=0) + 1
    plain = numbers.input == "float" and not any(form.nan_is_true for form in forms)
    if plain and forms and count <= 2 * len(forms) + SPARE_PLACES:
        return _Bits(features=tuple(form.feature for form in forms))
    return _Keys(forms=tuple(forms), numbers=numbers)


@dataclass(frozen=True)
class _Bits:
    features: tuple[int, ...]
    kind: str = "trees_bits"
    fragment: str = "trees/bits.c"

    @property
    def scratch_bytes(self) -> int:
        return 4 * (max(self.features) + 1)

    def prepare(self) -> str:
        signed = " || ".join(f"k[{feature}] > 0xff800000u" for feature in self.features)
        return (
            "    const trees_bits *k = (const trees_bits *)(const void *)x;\n"
            f"    if (TREES_COPY || {signed}) {{\n"
            f"        k = trees_copied(x, (uint32_t *)w, {max(self.features) + 1}u);\n    }}"
        )

    def compare(self, comparison: Comparison) -> str:
        form, key = comparison
        if key >= 0:
            return f"((int32_t)k[{form.feature}] <= {key})"
        return f"(k[{form.feature}] >= 0x{(key ^ (SIGN - 1)) & 0xFFFFFFFF:x}u)"


@dataclass(frozen=True)
class _Keys:
    forms: tuple[Form, ...]
    numbers: Numbers

    @property
    def kind(self) -> str:
        return self.numbers.key

    @property
    def fragment(self) -> str:
        return self.numbers.key_fragment

    @property
    def scratch_bytes(self) -> int:
        return max(len(self.forms), 1) * self.numbers.key_kind.itemsize

    def prepare(self) -> str:
        kind = self.numbers.key
        lines = [f"    {kind} *const k = ({kind} *)w;", *(self._key(form) for form in self.forms)]
        return "\n".join([*lines, *([] if self.forms else ["    (void)x;"])])

    def _key(self, form: Form) -> str:
        place, numbers = self.forms.index(form), self.numbers
        key = f"    k[{place}] = {numbers.key_of(f'x[{form.feature}]')};"
        if not form.nan_is_true:
            return key
        return f"{key}\n    if (k[{place}] > {numbers.key_of_infinity}) {{\n        k[{place}] = {numbers.least_key};\n    }}"

    def compare(self, comparison: Comparison) -> str:
        form, key = comparison
        return f"(k[{self.forms.index(form)}] <= {self._whole(key)})"

    def _whole(self, key: int) -> str:
        if key == np.iinfo(self.numbers.key_kind).min:
            return self.numbers.least_key
        return f"INT64_C({key})" if self.numbers.doubles else str(key)
