"""What is opened for the proof: what the device will run, where this machine can run it; else the network that it is made of.

Nothing is signed without one of the two, and the attestation says which. Where it is the network, what the device runs is proved
on the device, against the original's answers, before it is activated there. A network lies beside the entry, does not ship, and
counts only while a record says that this entry was made of it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Session
from modelfleet.signer.names import Sha256, sha256_of

NETWORK: Final = "network.onnx"
RECORD: Final = "made-of.json"
Proved = Literal["engine", "network"]


class MadeOf(msgspec.Struct, frozen=True, kw_only=True):
    """Which entry was made of which network, and which of the two this machine can run."""

    entry: Sha256
    network: Sha256
    proved: Proved


def keep_network(entry: Path, network: bytes | None, opener: Callable[[Path], Session]) -> dict[str, Any]:
    """Put the network that `entry` was made of beside it, and return what a proof here speaks of, for the attestation.

    Args:
        network: None where the entry is itself the network.
        opener: opens the entry as the device does; what it raises says why the network is proved in its place.
    """
    proved, why = _try(entry, opener)
    digest = _digest_of(entry)
    if network is not None:
        entry.with_name(NETWORK).write_bytes(network)
    record = MadeOf(entry=digest, network=sha256_of(network) if network is not None else digest, proved=proved)
    entry.with_name(RECORD).write_bytes(msgspec.json.encode(record))
    return {"proved": proved} | ({"not_run_here": why} if why else {})


def open_provable(entry: Path, opener: Callable[[Path], Session]) -> Session:
    """Open the entry where this machine can run it, else its network (MeasureError: it is not there, or another one)."""
    try:
        record = msgspec.json.decode(entry.with_name(RECORD).read_bytes(), type=MadeOf)
        network = (entry if record.network == record.entry else entry.with_name(NETWORK)).read_bytes()
        found = MadeOf(entry=_digest_of(entry), network=sha256_of(network), proved=record.proved)
    except (OSError, msgspec.MsgspecError) as error:
        raise MeasureError(f"{entry.name}: expected the network that it was made of beside it: {error}") from error
    if found != record:
        raise MeasureError(f"{entry.name}: expected to be made of its network as {record}, got {found}")
    return opener(entry) if record.proved == "engine" else open_network(network)


def open_network(network: bytes) -> Session:
    """Open a network as TensorRT computes it: quantized ones node by node, since the CPU's int8 kernels may saturate."""
    return OnnxRuntimeSession(network, optimise=b"QuantizeLinear" not in network)


def _try(entry: Path, opener: Callable[[Path], Session]) -> tuple[Proved, str]:
    try:
        opener(entry)
    except MeasureError as error:
        return "network", str(error)[:300]
    return "engine", ""


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
