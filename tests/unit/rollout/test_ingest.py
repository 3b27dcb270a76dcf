"""What devices say: only their own words count, in their own order."""

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import func, select

from modelfleet.agent_client.protocol import DeviceState, Metrics, Report, encode
from modelfleet.registry.tables import Device, DeviceCertificate
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.sign import sign_report

FLOAT = "linux-cpu-float"
DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def device(fleet):
    return fleet.enrol(FLOAT, 2)[0]


def report(device, seq: int, state: DeviceState = DeviceState.PROBATION, **changes) -> Report:
    known = {"device": device.id, "boot": 1, "seq": seq, "slot": "detector", "digest": DIGEST, "active": DIGEST}
    return Report(**(known | {"state": state} | changes))


def metrics(device, seq: int, n: int, errors: int = 0, **changes) -> bytes:
    known = {"device": device.id, "boot": 1, "seq": seq, "slot": "detector", "activation": 1, "sha256": DIGEST}
    return encode(Metrics(**(known | {"n": n, "errors": errors} | changes)))


def send(fleet, topic: str, payload: bytes) -> int:
    return fleet.controller.ingest.accept([(topic, payload)], fleet.now)


def slot_of(fleet, device) -> DeviceSlot | None:
    with fleet.registry.sessions() as session:
        return session.get(DeviceSlot, (device.id, "detector"))


def counters_of(fleet, device, activation: int = 1) -> DeviceCounters | None:
    with fleet.registry.sessions() as session:
        return session.get(DeviceCounters, (device.id, "detector", activation))


@pytest.mark.parametrize("state", [DeviceState.COMMITTED, DeviceState.ROLLED_BACK, DeviceState.REJECTED])
def test_an_unsigned_terminal_report_does_not_count(fleet, device, state):
    assert send(fleet, device.topic("report"), encode(report(device, 1, state))) == 0
    assert slot_of(fleet, device) is None
    assert fleet.controller.ingest.dropped == {"UntrustedError": 1}


def test_a_terminal_report_signed_by_the_device_counts(fleet, device):
    assert (
        send(fleet, device.topic("report"), sign_report(encode(report(device, 1, DeviceState.COMMITTED)), device.key))
        == 1
    )
    found = slot_of(fleet, device)
    assert (found.state, found.proven) == ("COMMITTED", DIGEST)


def test_a_report_signed_by_another_device_does_not_count(fleet, device):
    forged = sign_report(encode(report(device, 1, DeviceState.COMMITTED)), fleet.devices[1].key)
    assert send(fleet, device.topic("report"), forged) == 0
    assert fleet.controller.ingest.dropped == {"UnknownKeyError": 1}


@pytest.mark.parametrize(("reason", "taken"), [("superseded", 1), ("key_compromise", 0)])
def test_a_report_by_the_key_that_was_replaced_counts_unless_that_key_was_revoked(fleet, device, reason, taken):
    present = CryptoSigner.generate_ecdsa()
    with fleet.registry.sessions.begin() as session:
        former = session.scalars(select(DeviceCertificate).where(DeviceCertificate.device == device.id)).one()
        former.revoked_at, former.reason = fleet.now, reason
        row = session.get(Device, device.id)
        row.public_key, row.key_sha256 = str(present.public_key.keyval["public"]), "1" * 64
    signed = report(device, 1, DeviceState.COMMITTED)
    assert send(fleet, device.topic("report"), sign_report(encode(signed), device.key)) == taken
    assert send(fleet, device.topic("report"), sign_report(encode(signed), present)) == 1


def test_a_report_whose_signature_was_moved_to_other_bytes_does_not_count(fleet, device):
    signed = msgspec.json.decode(sign_report(encode(report(device, 1, DeviceState.REJECTED)), device.key))
    signed["payload"] = msgspec.json.decode(sign_report(encode(report(device, 2, DeviceState.COMMITTED)), device.key))[
        "payload"
    ]
    assert send(fleet, device.topic("report"), msgspec.json.encode(signed)) == 0
    assert fleet.controller.ingest.dropped == {"SignatureError": 1}


def test_a_signed_approval_cannot_pass_for_a_report(fleet, device):
    envelope = sign_envelope(encode(report(device, 1)), "application/vnd.modelfleet.approval+json", device.key)
    assert send(fleet, device.topic("report"), envelope) == 0


def test_a_message_on_another_devices_topic_does_not_count(fleet, device):
    other = fleet.devices[1]
    assert send(fleet, other.topic("report"), encode(report(device, 1))) == 0
    assert send(fleet, other.topic("metrics"), metrics(device, 1, 10)) == 0
    assert slot_of(fleet, device) is None


@pytest.mark.parametrize(
    "topic",
    [
        "mf/v1/other/d/{id}/report",
        "mf/v1/acme/d/{id}/desired",
        "mf/v1/acme/d/{id}/report/x",
        "mf/v1/acme/d/00000000-0000-0000-0000-000000000000/report",
        "mf/v1/acme/d/../report",
        "",
    ],
)
def test_foreign_topics_are_counted_and_dropped(fleet, device, topic):
    assert send(fleet, topic.format(id=device.id), encode(report(device, 1))) == 0
    assert fleet.controller.ingest.dropped.total() == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a":' * 5000,
        b'{"device":1,"device":1}',
        b'{"payloadType":"x"}',
        b"0" * 200_000,
        b'{"format":"2.0"}',
        b'{"n":NaN}',
    ],
)
@pytest.mark.parametrize("kind", ["report", "metrics", "status"])
def test_malformed_messages_are_counted_and_never_fatal(fleet, device, kind, payload):
    good = (device.topic("metrics"), metrics(device, 1, 5))
    assert fleet.controller.ingest.accept([(device.topic(kind), payload), good], fleet.now) == 1
    assert fleet.controller.ingest.dropped.total() == 1
    assert counters_of(fleet, device).n == 5


def test_more_errors_than_inferences_are_refused(fleet, device):
    payload = metrics(device, 1, 10, 10).replace(b'"errors":10', b'"errors":11')
    assert send(fleet, device.topic("metrics"), payload) == 0


def test_a_revoked_device_is_not_heard(fleet, device):
    with fleet.registry.sessions.begin() as session:
        session.get(Device, device.id).revoked_at = fleet.now
    assert send(fleet, device.topic("metrics"), metrics(device, 1, 10)) == 0


def test_older_reports_change_nothing_and_a_newer_boot_does(fleet, device):
    send(fleet, device.topic("report"), encode(report(device, 5, DeviceState.PROBATION)))
    send(fleet, device.topic("report"), encode(report(device, 4, DeviceState.DOWNLOADING)))
    send(fleet, device.topic("report"), encode(report(device, 5, DeviceState.IDLE)))
    assert slot_of(fleet, device).state == "PROBATION"
    send(fleet, device.topic("report"), encode(report(device, 1, DeviceState.IDLE, boot=2)))
    assert slot_of(fleet, device).state == "IDLE"


def test_a_late_signed_report_still_proves_what_was_active(fleet, device):
    """An unsigned report overtook it: the state is the newer one's, the proof is the signed one's."""
    send(fleet, device.topic("report"), encode(report(device, 9, DeviceState.PREFLIGHT, active=None)))
    late = report(device, 8, DeviceState.ROLLED_BACK, active=OTHER)
    send(fleet, device.topic("report"), sign_report(encode(late), device.key))
    assert (slot_of(fleet, device).state, slot_of(fleet, device).proven) == ("PREFLIGHT", OTHER)


def test_an_unsigned_report_cannot_undo_a_signed_refusal(fleet, device):
    fleet.publish("1.0.0", 1)
    rollout = fleet.launch("1.0.0")
    refused = sign_report(encode(report(device, 3, DeviceState.REJECTED, rollout=rollout)), device.key)
    send(fleet, device.topic("report"), refused)
    send(fleet, device.topic("report"), encode(report(device, 4, DeviceState.IDLE, rollout=rollout)))
    with fleet.registry.sessions() as session:
        trial = session.get(DeviceTrial, (rollout, device.id))
    assert (trial.state, trial.outcome) == ("IDLE", "REJECTED")


def test_reports_of_an_unknown_rollout_start_no_trial(fleet, device):
    send(fleet, device.topic("report"), encode(report(device, 3, rollout="no-such-rollout")))
    with fleet.registry.sessions() as session:
        assert session.scalar(select(func.count()).select_from(DeviceTrial)) == 0
    assert slot_of(fleet, device).seq == 3


def test_counters_only_grow(fleet, device):
    send(fleet, device.topic("metrics"), metrics(device, 2, 100, 5))
    send(fleet, device.topic("metrics"), metrics(device, 1, 60, 5))
    send(fleet, device.topic("metrics"), metrics(device, 3, 90, 5))
    send(fleet, device.topic("metrics"), metrics(device, 4, 200, 4))
    send(fleet, device.topic("metrics"), metrics(device, 5, 200, 6, sha256=OTHER))
    assert (counters_of(fleet, device).n, counters_of(fleet, device).errors) == (100, 5)
    send(fleet, device.topic("metrics"), metrics(device, 6, 200, 6))
    assert (counters_of(fleet, device).n, counters_of(fleet, device).errors) == (200, 6)


def test_presence_follows_status_messages(fleet, device):
    fleet.controller.ingest.flush(
        fleet.now
    )  # the writer's thread may still be at it, and a reader does not wait for it
    with fleet.registry.sessions() as session:
        assert session.get(Device, device.id).online
    send(fleet, device.topic("status"), b'{"state":"offline"}')
    with fleet.registry.sessions() as session:
        found = session.get(Device, device.id)
        assert (found.online, found.agent_version, found.last_seen_at) == (False, "0.1.0", fleet.now)


def test_a_polling_device_speaks_only_for_itself(fleet, device):
    other = fleet.devices[1]
    messages = [(device.topic("metrics"), metrics(device, 1, 5)), (other.topic("metrics"), metrics(other, 1, 7))]
    assert fleet.controller.ingest.accept(messages, fleet.now, only_device=device.id) == 1
    assert counters_of(fleet, other) is None


def test_a_message_is_acknowledged_only_after_it_was_written(fleet, device):
    from modelfleet.rollout.ingest.intake import Ingest
    from modelfleet.rollout.mqtt.broker import Message

    acknowledged: list[int] = []
    ingest = Ingest(fleet.registry.sessions, "acme")
    payload = metrics(device, 1, 5)
    ingest.offer(
        Message(
            topic=device.topic("metrics"),
            payload=payload,
            acknowledge=lambda: acknowledged.append(counters_of(fleet, device).n),
        )
    )
    assert acknowledged == []
    assert ingest.flush(fleet.now) == 1
    assert acknowledged == [5]


def test_the_keys_of_the_fleet_are_not_the_keys_of_the_broker(fleet, device):
    """Even a correctly formed envelope under some other P-256 key is nobody's."""
    stranger = CryptoSigner.generate_ecdsa()
    assert (
        send(fleet, device.topic("report"), sign_report(encode(report(device, 1, DeviceState.COMMITTED)), stranger))
        == 0
    )
