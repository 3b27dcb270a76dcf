"""The wire between devices and servers: topics, messages and states (DESIGN section 5).

It lives with the agent because the device is the side that cannot be upgraded at will. Golden files in `tests/contracts/`
pin every message. MQTT carries goal states: lost, repeated and reordered messages do no harm; receivers order by (boot, seq).
"""

import enum
import re
from typing import Annotated, Literal

import msgspec

from modelfleet.signer.names import PART, Count, ModelName, Name, SemVer, Sha256
from modelfleet.signer.parse import parse_canonical

TOPIC_ROOT = "mf/v1"
MAX_MESSAGE_BYTES = 64 * 1024
LATENCY_BUCKETS_MS: tuple[float, ...] = tuple(0.125 * 2.0 ** (step / 2) for step in range(32))
"""Upper edges of the latency histogram's buckets in ms, sqrt(2) apart, 0.125 ms to 5.8 s; one more bucket is above them."""
MAX_WAITING = 8
"""Slots of a device that say what they wait for, at most."""
MAX_CLASSES = 64
"""Classes beyond this many share the class histogram's last cell."""
CONFIDENCE_CELLS = 20
"""Cells of the confidence histogram, each 1/20 wide: the k-th holds k/20 <= p < (k + 1)/20, the last one p = 1 as well."""

DeviceId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]


class DeviceState(enum.StrEnum):
    """A slot's state on the device; the transitions stand in `agent_client.states`."""

    IDLE = "IDLE"
    PREFLIGHT = "PREFLIGHT"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    BENCHMARKING = "BENCHMARKING"
    ACTIVATING = "ACTIVATING"
    PROBATION = "PROBATION"
    COMMITTED = "COMMITTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


SIGNED_STATES = frozenset({DeviceState.COMMITTED, DeviceState.ROLLED_BACK, DeviceState.REJECTED})
"""Reports of these states count only under the device's own signature (DSSE, `REPORT_PAYLOAD_TYPE`)."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What the device measured of a variant on itself; latencies in ms per inference, accuracy and mismatch as shares."""

    samples: Count
    p50_ms: float
    p95_ms: float
    p99_ms: float
    load_ms: float
    peak_memory_bytes: Count
    accuracy: float | None = None
    mismatch_share: float | None = None


class ReportedError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a device refused or went back: the error's class name and its message."""

    kind: Annotated[str, msgspec.Meta(max_length=64)]
    message: Annotated[str, msgspec.Meta(max_length=1024)]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a slot's state. `digest` is the manifest's sha256 that it is about; `rollout` is empty for stable and pins.

    `active` is the manifest digest that runs in the slot once this state holds (null: none). `seconds` is the time since
    the device first saw the desired state that asked for this.
    """

    format: str = "1.0"
    device: DeviceId
    boot: Count
    seq: Count
    slot: Name
    state: DeviceState
    rollout: Annotated[str, msgspec.Meta(max_length=64)] = ""
    model: ModelName | None = None
    version: SemVer | None = None
    digest: Sha256 | None = None
    active: Sha256 | None = None
    seconds: float = 0.0
    bench: Bench | None = None
    error: ReportedError | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative counters of one activation of a slot: a lost message costs nothing, the next one holds all.

    n inferences, of which `errors` raised, passed the deadline, were not finite, had a wrong shape, or were marked wrong by
    the application; `slow` passed the latency limit. `latency` counts per `LATENCY_BUCKETS_MS` bucket (33 cells at most,
    trailing zeros may be cut), `classes` per predicted class (`MAX_CLASSES` cells at most), `confidence` per twentieth of the
    top class' probability, where it is known (`CONFIDENCE_CELLS` at most; left out by agents that do not count it).
    """

    format: str = "1.0"
    device: DeviceId
    boot: Count
    seq: Count
    slot: Name
    activation: Count
    sha256: Sha256
    n: Count
    errors: Count
    slow: Count = 0
    latency: Annotated[tuple[Count, ...], msgspec.Meta(max_length=len(LATENCY_BUCKETS_MS) + 1)] = ()
    classes: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_CLASSES)] = ()
    confidence: Annotated[tuple[Count, ...], msgspec.Meta(max_length=CONFIDENCE_CELLS)] | msgspec.UnsetType = (
        msgspec.UNSET
    )

    def __post_init__(self) -> None:
        if self.errors > self.n or self.slow > self.n:
            raise ValueError("errors and slow cannot exceed n")


WaitReason = Literal["window", "network", "power", "battery"]
WAITING_KIND = "ConditionsError"
"""The error's kind in a report of FAILED that says: stopped between two pieces, and goes on by itself when it may."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A slot's update that may not start or go on yet, and what it waits for; `rollout` is empty for a stable release."""

    slot: Name
    rollout: Annotated[str, msgspec.Meta(max_length=64)] = ""
    reasons: Annotated[tuple[WaitReason, ...], msgspec.Meta(min_length=1, max_length=4)]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Retained presence of a device; the offline one is its MQTT will. `waiting`: what its slots wait for, if any."""

    format: str = "1.0"
    state: Literal["online", "offline"]
    agent: Annotated[str, msgspec.Meta(max_length=64)] = ""
    waiting: Annotated[tuple[Waiting, ...], msgspec.Meta(max_length=MAX_WAITING)] | msgspec.UnsetType = msgspec.UNSET


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on `host_topic`: whether a controller is there, so that agents buffer instead of spinning."""

    format: str = "1.0"
    state: Literal["online", "offline"]


class DeviceTopic(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed device→server topic."""

    tenant: str
    device: str
    kind: Literal["report", "metrics", "status"]


def host_topic(tenant: str) -> str:
    """Return the topic on which the tenant's controller says that it is there (retained, with a will).

    It is a tenant's own: on a broker that tenants share, one's controller going away must not silence the other's devices.
    """
    return f"{TOPIC_ROOT}/{tenant}/sys/host"


def group_desired_topic(tenant: str, group: str, profile: str) -> str:
    """Return the topic of a group document (retained, QoS 1)."""
    return f"{TOPIC_ROOT}/{tenant}/g/{group}/{profile}/desired"


def device_topic(tenant: str, device: str, kind: Literal["desired", "report", "metrics", "status"]) -> str:
    """Return one of the four topics of a device."""
    return f"{TOPIC_ROOT}/{tenant}/d/{device}/{kind}"


_DEVICE_TOPIC = re.compile(
    rf"{TOPIC_ROOT}/(?P<tenant>{PART})/d/(?P<device>[0-9a-f-]{{36}})/(?P<kind>report|metrics|status)"
)


def parse_device_topic(topic: str) -> DeviceTopic | None:
    """Return what a device→server topic names, or None where it is not one."""
    found = _DEVICE_TOPIC.fullmatch(topic)
    if found is None:
        return None
    kind = found["kind"]
    assert kind in ("report", "metrics", "status")
    return DeviceTopic(tenant=found["tenant"], device=found["device"], kind=kind)


def parse_report(data: bytes) -> Report:
    """Return the report in `data` (FormatError: it is none)."""
    return parse_canonical(data, Report, max_bytes=MAX_MESSAGE_BYTES)


def parse_metrics(data: bytes) -> Metrics:
    """Return the counters in `data` (FormatError: they are none)."""
    return parse_canonical(data, Metrics, max_bytes=MAX_MESSAGE_BYTES)


def parse_status(data: bytes) -> Status:
    """Return the presence in `data` (FormatError: it is none)."""
    return parse_canonical(data, Status, max_bytes=1024)


def encode(message: Report | Metrics | Status | HostStatus) -> bytes:
    """Return the message's bytes on the wire: JSON, keys sorted."""
    return msgspec.json.encode(message, order="deterministic")
