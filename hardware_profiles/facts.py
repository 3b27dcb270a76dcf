"""What a device says of itself at enrolment: facts, parsed strictly, since they come from outside."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

import msgspec

from modelfleet.hardware_profiles.errors import FactsError

_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """A machine: instruction set and system (normalised, lower case), total memory in bytes, usable cores, processor,
    board and GPU by their makers' names ("" where unknown), and installed runtimes with their versions.
    """  # noqa: D205

    arch: _Text
    os: _Text
    memory_bytes: _Whole
    cores: _Whole
    cpu_model: _Text = ""
    board: _Text = ""
    gpu: _Text = ""
    runtimes: Annotated[Mapping[_Text, _Text], msgspec.Meta(max_length=64)] = field(default_factory=dict[str, str])

    def to_dict(self) -> dict[str, object]:
        """Return the facts as plain JSON values, as enrolment sends them."""
        return asdict(self)


def parse_facts(value: object) -> DeviceFacts:
    """Return already parsed JSON as facts; unknown keys are ignored, since newer agents may say more.

    Raises:
        FactsError: a fact is missing, of a wrong type or too long.
    """
    try:
        return msgspec.convert(value, DeviceFacts)
    except msgspec.ValidationError as error:
        raise FactsError(f"device facts: {error}") from error
