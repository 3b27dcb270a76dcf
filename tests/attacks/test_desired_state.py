"""Desired state that is replayed, foreign, expired, out of order or bent, and a director whose key was stolen."""

import base64
import itertools
import json
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelfleet.agent_client.protocol import device_topic, group_desired_topic
from modelfleet.agent_client.record import SlotRecord
from modelfleet.signer.ceremony import update_policy
from modelfleet.signer.desired import GROUP_PAYLOAD_TYPE, Limits, device_scope, group_scope
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.errors import (
    ApprovalError,
    EpochError,
    FormatError,
    MustUnderstandError,
    ReplayError,
    RevokedError,
    ScopeError,
    UnknownKeyError,
    UntrustedError,
)
from modelfleet.signer.keys import generate_key, key_id, load_signer, public_key
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import encode_payload, sign_approval, sign_assignment, sign_group
from modelfleet.signer.statements import Approval
from tests.attacks.machine import Machine
from tests.unit.agent_client.fleet import GROUP, PROFILE, SLOT, TENANT, Device, Fleet, commit, make_device, now

OTHER = "00000000-0000-4000-8000-000000000000"
LONG_PROBATION = Limits(latency_ms=100.0, probation_seconds=60.0, probation_inferences=10, metrics_seconds=0.2)


# Replayed, re-ordered, doubled


def test_replayed_group_document(machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    old = fleet.group_document()
    machine.hears(old)
    assert machine.hears(old) == old, "the very same document again is no attack: brokers do that"
    new = machine.hears(fleet.group_document())
    with pytest.raises(ReplayError):
        machine.hears(old)
    assert machine.documents.group == new


def test_replayed_assignment(machine: Machine, fleet: Fleet) -> None:
    """An old assignment would bring back an old pin, or an old group."""
    old = sign_assignment(fleet.assignment(machine.id, group="old"), fleet.director)
    assert machine.documents.accept_assignment(old).group == "old"
    machine.is_assigned()
    with pytest.raises(ReplayError):
        machine.documents.accept_assignment(old)
    assert machine.documents.steered_by() == (GROUP, PROFILE)


def test_replayed_document_after_the_documents_were_wiped(machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    old = fleet.group_document()
    machine.hears(old)
    new = fleet.group_document()
    machine.hears(new)
    for file in ("group.json", "assignment.json"):
        (machine.root / "desired" / file).unlink()
    machine.restart()
    with pytest.raises(ReplayError):
        machine.hears(old)
    assert machine.hears(new) == new


def test_replayed_document_below_what_the_assignment_asks_for(machine: Machine, fleet: Fleet) -> None:
    """A device that changes groups has no floor there yet: the assignment brings one along."""
    fleet.stable = fleet.release("1.0.0")
    old = fleet.group_document()
    machine.is_assigned(not_below_seq=old.seq + 1)
    machine.hears(old)
    wanted = machine.documents.select(SLOT, SlotRecord(), None)
    assert wanted is not None and wanted.keep
    machine.hears(fleet.group_document(seq=old.seq + 1))
    wanted = machine.documents.select(SLOT, SlotRecord(), None)
    assert wanted is not None and wanted.release == fleet.stable


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_re_ordered_documents(order: tuple[int, ...], machine: Machine, fleet: Fleet) -> None:
    """Whatever order a broker delivers in, the newest is what holds."""
    machine.is_assigned()
    documents = [fleet.group_document() for _ in range(3)]
    refused = 0
    for place, number in enumerate(order):
        if any(order[before] > number for before in range(place)):
            with pytest.raises(ReplayError):
                machine.hears(documents[number])
            refused += 1
        else:
            machine.hears(documents[number])
    assert machine.documents.group == documents[2]
    assert refused == sum(any(b > n for b in order[:p]) for p, n in enumerate(order))


def test_other_bytes_under_the_same_seq(machine: Machine, fleet: Fleet) -> None:
    """A director that tells two devices different things under one number is caught by whoever has heard one."""
    machine.is_assigned()
    document = machine.hears(fleet.group_document())
    fleet.stable = fleet.release("1.0.0")
    other = fleet.group_document(seq=document.seq, issued=document.issued, expires=document.expires)
    with pytest.raises(ReplayError, match="same seq"):
        machine.hears(other)
    machine.hears(msgspec.structs.replace(other, seq=document.seq + 1))


# Foreign


def test_foreign_assignment_of_another_device(machine: Machine, fleet: Fleet) -> None:
    theirs = fleet.assignment(OTHER, pins={SLOT: fleet.release("1.0.0")})
    with pytest.raises(ScopeError):
        machine.documents.accept_assignment(sign_assignment(theirs, fleet.director))
    mine = msgspec.structs.replace(theirs, scope=device_scope(machine.id))
    assert machine.documents.accept_assignment(sign_assignment(mine, fleet.director)) == mine


@pytest.mark.parametrize("scope", [group_scope("shops", PROFILE), group_scope(GROUP, "raspberry-pi-5"), "g/lab", ""])
def test_foreign_document_of_another_group_or_profile(scope: str, machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    theirs = fleet.group_document(scope=scope)
    with pytest.raises(ScopeError):
        machine.hears(theirs)
    machine.hears(msgspec.structs.replace(theirs, scope=group_scope(GROUP, PROFILE)))


def test_foreign_document_of_another_tenant(machine: Machine, fleet: Fleet) -> None:
    """Also where one director key serves two tenants."""
    machine.is_assigned()
    theirs = fleet.group_document(tenant="umbrella")
    with pytest.raises(ScopeError, match="umbrella"):
        machine.hears(theirs)
    machine.hears(msgspec.structs.replace(theirs, tenant=TENANT))


def test_foreign_director(machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    machine.is_assigned()
    document = fleet.group_document()
    with pytest.raises(UnknownKeyError):
        machine.documents.accept_group(sign_group(document, load_signer(generate_key(tmp_path / "other.pem"))))
    machine.hears(document)


# Expired


def test_expired_desired_state_starts_no_update(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2)),)
    fleet.expires_in = timedelta(seconds=-1)
    device.told()
    device.waits_for_refusal("ExpiredError")
    assert device.slot == device.slot | {"state": "COMMITTED", "version": "1.0.0"}
    fleet.expires_in = timedelta(days=7)
    device.told()
    device.waits_for("COMMITTED", "1.1.0")


def test_expired_desired_state_still_rolls_back(fleet: Fleet, device: Device) -> None:
    """Withholding the newest signature must not keep a bad candidate running."""
    commit(fleet, device)
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2), rollout="r2", limits=LONG_PROBATION),)
    device.told()
    device.waits_for("PROBATION", "1.1.0")
    fleet.candidates, fleet.expires_in = (), timedelta(seconds=-1)
    device.told()
    device.waits_for("ROLLED_BACK", "1.0.0")


def test_expired_desired_state_still_halts(fleet: Fleet, device: Device) -> None:
    commit(fleet, device)
    release = fleet.release("1.1.0", seed=2)
    go = fleet.group_document()
    fleet.candidates, fleet.expires_in = (fleet.candidate(release, accept=False),), timedelta(seconds=-1)
    device.told()
    fleet.candidates, fleet.expires_in = (fleet.candidate(release),), timedelta(days=7)
    time.sleep(0.1)
    device.hears(sign_group(fleet.group_document(seq=go.seq), fleet.director))  # the go that the halt has overtaken
    device.waits_for_refusal("ReplayError")
    assert device.slot["version"] == "1.0.0"
    device.told()
    device.waits_for("COMMITTED", "1.1.0")


# Numbers

HUGE = {
    "2**53": "9007199254740992",
    "2**63": "9223372036854775808",
    "2**64": "18446744073709551616",
    "400 digits": "9" * 400,
    "1e400": "1e400",
    "1e18": "1e18",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "NaN": "NaN",
    "negative": "-1",
    "fraction": "1.5",
    "float": "7.0",
    "true": "true",
    "string": '"7"',
    "null": "null",
    "list": "[7]",
    "hexadecimal": "0x10",
    "leading zero": "007",
    "underscore": "1_000",
}


def numbered(document: Any, field: str, token: str) -> bytes:
    """Return the document's payload with the JSON `token` in place of a number."""
    data, count = re.subn(rf'"{field}":\d+'.encode(), f'"{field}":{token}'.encode(), encode_payload(document))
    assert count == 1
    return data


@pytest.mark.parametrize("token", HUGE.values(), ids=HUGE.keys())
@pytest.mark.parametrize("field", ["seq", "epoch"])
def test_fast_forward_by_a_number_that_is_none(field: str, token: str, machine: Machine, fleet: Fleet) -> None:
    """A seq beyond what every implementation reads alike would be above all that ever follow."""
    machine.is_assigned()
    honest = fleet.group_document()
    payload = numbered(honest, field, token)
    with pytest.raises(FormatError):
        machine.documents.accept_group(sign_envelope(payload, GROUP_PAYLOAD_TYPE, fleet.director))
    assert machine.hears(honest) == honest


def test_fast_forward_to_the_last_seq_and_recovery_by_the_next_epoch(machine: Machine, fleet: Fleet) -> None:
    """A stolen director key can use up every seq; the offline keys move all floors at once."""
    machine.is_assigned()
    last = machine.hears(fleet.group_document(seq=2**53 - 1))
    honest = fleet.group_document()
    with pytest.raises(ReplayError):
        machine.hears(honest)
    update_policy(fleet.keys.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, epoch=2), now())
    machine.trust.refresh()
    assert machine.hears(msgspec.structs.replace(honest, epoch=2)).epoch == 2
    with pytest.raises(ReplayError, match="epoch"):
        machine.hears(last)


def test_epoch_that_no_policy_names(machine: Machine, fleet: Fleet) -> None:
    """The director cannot jump over its floors: only the offline keys move the epoch."""
    machine.is_assigned()
    honest = machine.hears(fleet.group_document())
    with pytest.raises(EpochError):
        machine.hears(fleet.group_document(epoch=2, seq=1))
    update_policy(fleet.keys.data_dir, TENANT, lambda policy: msgspec.structs.replace(policy, epoch=2), now())
    machine.trust.refresh()
    assert machine.hears(fleet.group_document(seq=1)).epoch == 2
    with pytest.raises(ReplayError, match="epoch"):
        machine.hears(msgspec.structs.replace(honest, seq=2**53 - 1))


# What a broker can do to a topic


def test_emptied_retained_messages(fleet: Fleet, device: Device) -> None:
    """Whoever empties the topics stops nobody's model and forgets no floor."""
    old = sign_group(fleet.group_document(), fleet.director)
    commit(fleet, device)
    for topic in (device_topic(TENANT, device.id, "desired"), group_desired_topic(TENANT, GROUP, PROFILE)):
        device.agent.inbox(topic, b"")
    device.hears(old)
    device.waits_for_refusal("ReplayError")
    assert {refusal["kind"] for refusal in device.agent.status()["refusals"]} == {"ReplayError"}
    assert device.slot == device.slot | {"state": "COMMITTED", "version": "1.0.0"}
    commit(fleet, device, "1.1.0", seed=2)


def test_must_understand_what_it_does_not(machine: Machine, fleet: Fleet) -> None:
    """A restriction that an old agent would overlook is refused by it as a whole."""
    machine.is_assigned()
    with pytest.raises(MustUnderstandError, match="only-at-night"):
        machine.hears(fleet.group_document(must_understand=("only-at-night",)))
    machine.hears(fleet.group_document(must_understand=()))


# The director's key stolen


def test_compromised_director_installs_what_nobody_approved(machine: Machine, fleet: Fleet) -> None:
    """Signed by the releases key, named by the director: without a person it stays where it is."""
    machine.is_assigned()
    honest = fleet.release("1.0.0")
    assert machine.verify(honest).version == "1.0.0"
    unapproved = fleet.release("1.1.0", seed=2, approved=False)
    with pytest.raises(ApprovalError):
        machine.verify(unapproved)
    with pytest.raises(ApprovalError, match="ScopeError"):
        machine.verify(msgspec.structs.replace(unapproved, approvals=honest.approvals))


def test_compromised_director_signs_the_approval_itself(machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    approved = fleet.release("1.0.0")
    assert machine.verify(approved).version == "1.0.0"
    unapproved = fleet.release("1.1.0", seed=2, approved=False)
    honest = json.loads(payload_of(fleet.server.blobs[approved.approvals[0]]))
    approval = msgspec.convert(
        honest | {"version": "1.1.0", "releases": {PROFILE: unapproved.sha256}}, Approval, strict=False
    )
    own = sign_approval(approval, fleet.director)
    fleet.server.blobs[sha256_of(own)] = own
    with pytest.raises(ApprovalError, match="UnknownKeyError"):
        machine.verify(msgspec.structs.replace(unapproved, approvals=(sha256_of(own),)))


def payload_of(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def test_compromised_director_replays_a_release_below_the_minimum_counter(machine: Machine, fleet: Fleet) -> None:
    """Approved and signed once, and known by now to be bad: the offline keys forbid everything up to it."""
    machine.is_assigned()
    old, new = fleet.release("1.0.0"), fleet.release("1.1.0", seed=2)
    assert machine.verify(old).version == "1.0.0"
    update_policy(
        fleet.keys.data_dir,
        TENANT,
        lambda p: msgspec.structs.replace(p, minimum_counter={"digits": new.counter}),
        now(),
    )
    with pytest.raises(RevokedError):
        machine.verify(old)
    with pytest.raises(UntrustedError):
        machine.verify(msgspec.structs.replace(old, counter=new.counter))
    assert machine.verify(new).version == "1.1.0"


def test_compromised_director_replays_a_revoked_release(machine: Machine, fleet: Fleet) -> None:
    machine.is_assigned()
    bad, good = fleet.release("1.1.0", seed=2), fleet.release("1.0.0")
    assert machine.verify(bad).version == "1.1.0"
    update_policy(fleet.keys.data_dir, TENANT, lambda p: msgspec.structs.replace(p, revoked=(bad.sha256,)), now())
    with pytest.raises(RevokedError):
        machine.verify(bad)
    assert machine.verify(good).version == "1.0.0"


def test_compromised_director_goes_back_to_a_revoked_release_that_still_lies_on_the_device(
    fleet: Fleet, tmp_path: Path
) -> None:
    """The way back needs no download; it asks for revocations all the same."""
    device = make_device(fleet, tmp_path / "device")
    device.start()
    bad = commit(fleet, device)
    good = commit(fleet, device, "1.1.0", seed=2)
    update_policy(fleet.keys.data_dir, TENANT, lambda p: msgspec.structs.replace(p, revoked=(bad.sha256,)), now())
    fleet.stable = bad
    device.told()
    device.waits_for_refusal("RevokedError")
    assert device.slot["version"] == "1.1.0"
    fleet.stable = good
    device.told()
    commit(fleet, device, "1.2.0", seed=3)
    device.stop()


def test_compromised_director_after_its_key_was_revoked(machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    """Recovery: the offline keys name another director."""
    machine.is_assigned()
    machine.hears(fleet.group_document())
    new = generate_key(tmp_path / "director-2.pem")
    directors = {key_id(public_key(new)): public_key(new)}
    update_policy(
        fleet.keys.data_dir, TENANT, lambda p: msgspec.structs.replace(p, directors=directors, epoch=2), now()
    )
    machine.documents.accept_group(sign_group(fleet.group_document(), load_signer(new)))
    with pytest.raises(UnknownKeyError):
        machine.hears(fleet.group_document())
