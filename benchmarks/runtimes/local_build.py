"""Variants that a device must build for itself before it runs them: what such a runtime provides, and how a result is pinned.

The signed entry is an order (a recipe); what is built from it lies beside it as `BUILT_NAME`, with a pin that names its digest,
the order it was built from and the tools that built it. It is opened only as the pin says: bytes of another digest, or tools
that have changed since, are refused. A pin has one of two names: `UNPROVED_NAME` until the device has compared the result's
answers with the golden set, `PIN_NAME` from then on. Applications open by the second alone.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.session import Session
from modelfleet.signer.names import Count, Sha256

BUILT_NAME: Final = ".built"
PIN_NAME: Final = ".built.json"
UNPROVED_NAME: Final = ".built-unproved.json"
"""No file of a manifest can have these names: they begin with a dot."""
MAX_PIN_BYTES: Final = 16 * 1024

_Text = Annotated[str, msgspec.Meta(max_length=300)]


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What builds here: the builder, its version, and the GPU it builds for; empty where there is none."""

    builder: _Text
    version: _Text
    gpu: _Text

    def __str__(self) -> str:
        return f"{self.builder} {self.version or '(not installed)'} on {self.gpu or 'no GPU'}"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the process that builds may use: wall-clock time, resident memory, and bytes of one file."""

    timeout_seconds: float
    memory_bytes: int
    file_bytes: int


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """What was built here: its digest and length, the digest of the order, and the tools."""

    format: str = "1.0"
    sha256: Sha256
    length: Count
    order_sha256: Sha256
    tools: Tools


class LocalBuild(Protocol):
    """How variants of one runtime are built on the device, and opened."""

    def wants(self, entry: str) -> bool:
        """Whether a variant with an entry of this name must be built here."""
        ...

    def limits(self, entry: Path) -> Limits:
        """Return what building may use (MeasureError: the entry is no order, or its files are not those it names)."""
        ...

    def tools(self, entry: Path) -> Tools:
        """Return what would build now (MeasureError: the entry is no order)."""
        ...

    def command(self, entry: Path, out: Path) -> Sequence[str]:
        """Return the program that builds: it writes the file `out`, or JSON {"refused": reason} beside it, as `refusal_path`."""
        ...

    def open(self, entry: Path, data: bytes, *, threads: int = 1) -> Session:
        """Return what was built, opened (MeasureError: it does not load)."""
        ...


def refusal_path(out: Path) -> Path:
    """Return where a program that refuses to build writes why."""
    return out.with_name(f"{out.name}.refused")


def read_pin(path: Path) -> Pin | None:
    """Return the pin in a file, None where there is none or it is damaged: then it is built again."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_PIN_BYTES), type=Pin)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def open_built(build: LocalBuild, entry: Path, *, threads: int = 1, pin_name: str = PIN_NAME) -> Session:
    """Open what was built from the order at `entry`, if it is what the pin says and the tools are the same.

    Raises:
        MeasureError: nothing was built yet, it is damaged, or it was built by other tools; the agent builds it again.
    """
    pin = read_pin(entry.with_name(pin_name))
    if pin is None:
        raise MeasureError(f"{entry.name}: expected what was built from it on this device, got none: start the agent")
    return build.open(entry, pinned_bytes(pin, build, entry), threads=threads)


def pinned_bytes(pin: Pin, build: LocalBuild, entry: Path) -> bytes:
    """Return the bytes that a pin stands for (MeasureError: they, the order or the tools are others than it says)."""
    tools = build.tools(entry)
    if pin.tools != tools:
        raise MeasureError(f"{entry.name}: expected to be built by {tools}, got {pin.tools}: start the agent again")
    order = _sha256(_read(entry))
    if pin.order_sha256 != order:
        raise MeasureError(f"{entry.name}: expected a build of the order {order}, got one of {pin.order_sha256}")
    data = _read(entry.with_name(BUILT_NAME))
    if _sha256(data) != pin.sha256:
        raise MeasureError(
            f"{BUILT_NAME}: expected {pin.length} bytes of sha256 {pin.sha256}, got {len(data)} of {_sha256(data)}"
        )
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MeasureError(f"{path.name}: expected a file, got {error.strerror}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
