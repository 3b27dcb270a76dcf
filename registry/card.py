"""The model card: what a publisher says about a version, as TOML; every fault of a card is told at once."""

import tomllib
from typing import Annotated, Any

import msgspec

from modelfleet.registry.errors import CardError
from modelfleet.signer.manifest import Channel
from modelfleet.signer.names import ModelName, Name, SemVer

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
ParameterName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Parameter = Annotated[str, msgspec.Meta(max_length=1024)] | Annotated[int, msgspec.Meta(ge=-(2**53) + 1, le=2**53 - 1)]


class CardLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this model asks of every device, where that is stricter than the profile: see `ManifestLimits`."""

    latency_ms: Annotated[float, msgspec.Meta(gt=0, le=86_400_000)] | None = None
    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    memory_bytes: Annotated[int, msgspec.Meta(gt=0, le=2**53 - 1)] | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model card. `profiles` empty means: those of the devices that are enrolled when it is published.

    `parameters` are the application's own; they are signed with the manifest. `confidential`: the files of the version are
    encrypted in the store, on the wire and on devices.
    """

    name: ModelName
    version: SemVer
    channel: Channel
    license: Text
    summary: Text
    intended_use: Text
    limits: CardLimits = CardLimits()
    parameters: Annotated[dict[ParameterName, Parameter], msgspec.Meta(max_length=64)] = {}
    profiles: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    confidential: bool = False


_HINTS = {
    "name": "one to four parts of lower-case letters, digits, `.`, `_`, `-`, joined by `/`",
    "version": "SemVer 2.0.0 without build metadata, such as 1.2.0 or 2.0.0-rc.1",
}


def parse_card(data: bytes) -> Card:
    """Return the card in `data`.

    Raises:
        CardError: not TOML, or fields are missing, unknown or wrong; `errors` has one line for each.
    """
    fields = _parse_toml(data)
    known = {field.name: field for field in msgspec.structs.fields(Card)}
    faults = [f"{name}: unknown; a card has {', '.join(known)}" for name in fields if name not in known]
    for name, field in known.items():
        if name in fields:
            faults.extend(_faults(name, fields[name], field.type))
        elif field.required:
            faults.append(f"{name}: missing")
    if faults:
        raise CardError(f"the model card has {len(faults)} fault(s): {'; '.join(faults)}", faults)
    return msgspec.convert(fields, Card)


def _parse_toml(data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CardError(f"the model card is not TOML: {error}", [f"not TOML: {error}"]) from error


def _faults(name: str, value: object, kind: Any) -> list[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        hint = f" (expected {_HINTS[name]}, got {str(value)[:80]!r})" if name in _HINTS else ""
        return [f"{name}: {error}{hint}"]
    return []
