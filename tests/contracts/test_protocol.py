"""The bytes on the wire between devices and servers: devices in the field speak them, so they may be added to, never changed."""

from pathlib import Path

import msgspec
import pytest

from modelfleet.agent_client.protocol import (
    CONFIDENCE_CELLS,
    LATENCY_BUCKETS_MS,
    MAX_CLASSES,
    MAX_MESSAGE_BYTES,
    SIGNED_STATES,
    Bench,
    DeviceState,
    HostStatus,
    Metrics,
    Report,
    ReportedError,
    Status,
    Waiting,
    device_topic,
    encode,
    group_desired_topic,
    host_topic,
    parse_device_topic,
    parse_metrics,
    parse_report,
    parse_status,
)
from modelfleet.signer.errors import FormatError

FOLDER = Path(__file__).parent / "protocol"
DEVICE = "6b1f0d5e-6a3f-4c53-9a50-0c8a7b6d5e4f"

MESSAGES: dict[str, Report | Metrics | Status | HostStatus] = {
    "report": Report(
        device=DEVICE,
        boot=3,
        seq=17,
        slot="detector",
        state=DeviceState.ROLLED_BACK,
        rollout="r-42",
        model="ui/element-detector",
        version="1.2.0-rc.1",
        digest="a" * 64,
        active="b" * 64,
        seconds=12.5,
        bench=Bench(
            samples=512,
            p50_ms=1.5,
            p95_ms=2.25,
            p99_ms=3.0,
            load_ms=40.0,
            peak_memory_bytes=123456,
            accuracy=0.875,
            mismatch_share=0.0,
        ),
        error=ReportedError(kind="UnhealthyError", message="expected an error share <= 0.5, got 0.75"),
    ),
    "report-least": Report(device=DEVICE, boot=1, seq=1, slot="detector", state=DeviceState.IDLE),
    "metrics": Metrics(
        device=DEVICE,
        boot=3,
        seq=18,
        slot="detector",
        activation=2,
        sha256="b" * 64,
        n=100,
        errors=3,
        slow=1,
        latency=(0, 97, 2, 1),
        classes=(50, 50),
    ),
    "metrics-confidence": Metrics(
        device=DEVICE,
        boot=3,
        seq=19,
        slot="detector",
        activation=2,
        sha256="b" * 64,
        n=5,
        errors=0,
        latency=(0, 5),
        classes=(2, 3),
        confidence=(0,) * 17 + (1, 0, 4),
    ),
    "status": Status(state="online", agent="0.1.0"),
    "status-waiting": Status(
        state="online",
        agent="0.1.0",
        waiting=(
            Waiting(slot="detector", rollout="r-42", reasons=("window", "network", "power", "battery")),
            Waiting(slot="keywords", reasons=("window",)),
        ),
    ),
    "host": HostStatus(state="offline"),
}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_message_has_the_bytes_of_its_golden_file(name: str) -> None:
    assert encode(MESSAGES[name]) == (FOLDER / f"{name}.json").read_bytes().rstrip(b"\n")


def test_golden_files_are_read_back_as_the_same_messages() -> None:
    assert parse_report((FOLDER / "report.json").read_bytes()) == MESSAGES["report"]
    assert parse_report((FOLDER / "report-least.json").read_bytes()) == MESSAGES["report-least"]
    assert parse_metrics((FOLDER / "metrics.json").read_bytes()) == MESSAGES["metrics"]
    assert parse_metrics((FOLDER / "metrics-confidence.json").read_bytes()) == MESSAGES["metrics-confidence"]
    assert parse_status((FOLDER / "status.json").read_bytes()) == MESSAGES["status"]
    assert parse_status((FOLDER / "status-waiting.json").read_bytes()) == MESSAGES["status-waiting"]


def test_a_report_of_a_newer_agent_with_unknown_fields_is_understood() -> None:
    data = msgspec.json.decode((FOLDER / "report.json").read_bytes()) | {"temperature": 41, "format": "1.9"}
    assert parse_report(msgspec.json.encode(data)) == msgspec.structs.replace(MESSAGES["report"], format="1.9")


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", "2.0"), ("device", "../x"), ("seq", -1), ("seq", 2**53), ("state", "HACKED"), ("slot", "a/b")],
)
def test_a_report_outside_its_bounds_is_refused(field: str, value: object) -> None:
    data = msgspec.json.decode((FOLDER / "report.json").read_bytes()) | {field: value}
    with pytest.raises(FormatError):
        parse_report(msgspec.json.encode(data))


@pytest.mark.parametrize(
    "change",
    [
        {"errors": 101},
        {"slow": 101},
        {"latency": [0] * (len(LATENCY_BUCKETS_MS) + 2)},
        {"classes": [0] * (MAX_CLASSES + 1)},
        {"confidence": [0] * (CONFIDENCE_CELLS + 1)},
        {"confidence": None},
    ],
)
def test_counters_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    data = msgspec.json.decode((FOLDER / "metrics.json").read_bytes()) | change
    with pytest.raises(FormatError):
        parse_metrics(msgspec.json.encode(data))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b'{"n": NaN}', b" " * (MAX_MESSAGE_BYTES + 1)])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    for parse in (parse_report, parse_metrics, parse_status):
        with pytest.raises(FormatError):
            parse(data)


def test_topics_are_those_of_the_design() -> None:
    assert group_desired_topic("acme", "lab", "linux-cpu-int8") == "mf/v1/acme/g/lab/linux-cpu-int8/desired"
    assert device_topic("acme", DEVICE, "report") == f"mf/v1/acme/d/{DEVICE}/report"
    assert host_topic("acme") == "mf/v1/acme/sys/host"


def test_a_topic_that_is_no_devices_names_nobody() -> None:
    found = parse_device_topic(f"mf/v1/acme/d/{DEVICE}/metrics")
    assert found is not None and (found.tenant, found.device, found.kind) == ("acme", DEVICE, "metrics")
    for topic in (
        f"mf/v1/acme/d/{DEVICE}/desired",
        f"mf/v1/ac/me/d/{DEVICE}/report",
        "mf/v1/acme/d/x/report",
        host_topic("acme"),
    ):
        assert parse_device_topic(topic) is None


def test_states_and_latency_buckets_are_pinned() -> None:
    assert {state.value for state in SIGNED_STATES} == {"COMMITTED", "ROLLED_BACK", "REJECTED"}
    assert len(DeviceState) == 14
    assert (len(LATENCY_BUCKETS_MS), LATENCY_BUCKETS_MS[0], LATENCY_BUCKETS_MS[2]) == (32, 0.125, 0.25)
