"""What a forest becomes, in either form, and the C types that its numbers have."""

from dataclasses import dataclass

import numpy as np

from modelfleet.converters.microcontroller.ir import Array


@dataclass(frozen=True, kw_only=True)
class Code:
    """A forest as C. call: a statement that adds all votes to `sums`; `@x@` is the sample, `@tables@` the constant (where
    tables are not None) and `@scratch@` the scratch of its own.
    """  # noqa: D205

    definitions: str
    call: str
    tables: Array | None
    scratch_bytes: int
    fragments: tuple[str, ...]
    stack_bytes: int


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """C types of one forest: of the input, of its sums and of its keys; aggregate: how votes become a sum."""

    input: str
    doubles: bool
    aggregate: str = "SUM"

    @property
    def sum(self) -> str:
        """The type of thresholds, votes and sums."""
        return "double" if self.doubles else "float"

    @property
    def kind(self) -> "np.dtype[np.floating]":
        """That as numpy's."""
        return np.dtype(np.float64 if self.doubles else np.float32)

    @property
    def key(self) -> str:
        """The type of keys."""
        return "int64_t" if self.doubles else "int32_t"

    @property
    def key_kind(self) -> "np.dtype[np.signedinteger]":
        """That as numpy's."""
        return np.dtype(np.int64 if self.doubles else np.int32)

    @property
    def key_fragment(self) -> str:
        """The C file with the function that makes keys."""
        return "trees/key_double.c" if self.doubles else "trees/key.c"

    @property
    def least_key(self) -> str:
        """Below the key of every number."""
        return "INT64_MIN" if self.doubles else "INT32_MIN"

    @property
    def key_of_infinity(self) -> str:
        """Above it is NaN alone."""
        return "0x7ff0000000000000" if self.doubles else "0x7f800000"

    def key_of(self, value: str) -> str:
        """Return the key of an element of the input."""
        if self.doubles:
            return f"trees_key_double({value})"
        return f"trees_key({value})" if self.input == "float" else f"trees_key((float){value})"

    def combine(self, sums: str, target: str, value: str, *, counted: bool) -> str:
        """Return the statement that takes a vote into the sum of a target."""
        if not counted:
            return f"            {sums}[{target}] += {value};"
        if self.aggregate in ("SUM", "AVERAGE"):
            return f"            has[{target}] = 1;\n            {sums}[{target}] += {value};"
        above = "<" if self.aggregate == "MIN" else ">"
        return (
            f"            const {self.sum} v = {value};\n"
            f"            if (has[{target}] == 0 || v {above} {sums}[{target}]) {{\n"
            f"                {sums}[{target}] = v;\n            }}\n"
            f"            has[{target}] = 1;"
        )
