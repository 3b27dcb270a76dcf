"""The signed desired state, made from the database: group documents and assignments (DESIGN section 5).

They are written to the outbox in the transaction that changes what they say. seq = max(last + 1, unix milliseconds), so a
restored database never falls behind; the epoch is the trust policy's. They expire after 7 days and are signed again daily.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import device_topic, group_desired_topic
from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.registry import audit
from modelfleet.registry.tables import Device
from modelfleet.rollout.states import ON_TRIAL, Verdict
from modelfleet.rollout.tables import DesiredDocument, Rollout, RolloutProfile, SlotStable
from modelfleet.signer.desired import (
    Assignment,
    Candidate,
    GroupDocument,
    Release,
    Request,
    Slot,
    device_scope,
    group_scope,
    needs_of,
)
from modelfleet.signer.keys import Signer
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import encode_payload, sign_assignment, sign_group
from modelfleet.signer.windows import ANY_CONDITIONS, Conditions, Window

LIFE = timedelta(days=7)
RENEW_AFTER = timedelta(days=1)
"""At the latest; a fleet that was enrolled at once is spread over the second half of the day."""
GROUPS, DEVICES = 0, 1
"""Ranks of documents: what steers many goes out first."""
LASTING = frozenset({"retry", "cancel", "collect-logs"})
"""Requests that stay in an assignment when it is signed again."""


class When(TypedDict, total=False):
    """When devices may start, where a plan says so."""

    windows: tuple[Window, ...]
    conditions: Conditions


class Head(TypedDict):
    """The fields that both documents share."""

    tenant: str
    scope: str
    epoch: int
    seq: int
    issued: datetime
    expires: datetime


@dataclass(frozen=True, kw_only=True)
class OfflineDocuments:
    """What a bundle tells its devices: documents by (group, profile), as they are and signed; assignments by device."""

    groups: Mapping[tuple[str, str], GroupDocument]
    signed_groups: Mapping[tuple[str, str], bytes]
    assignments: Mapping[str, bytes]


class Desk:
    """Writes and signs documents for one tenant.

    Args:
        tenant: whose documents.
        director: the key that devices know from the trust policy.
        epoch: the trust policy's.
    """

    def __init__(self, tenant: str, director: Signer, epoch: int) -> None:
        self._tenant, self._director, self._epoch = tenant, director, epoch
        self._renewed: list[str] | None = None
        """While documents are signed again: what one audit record tells of all of them."""
        self._known: list[Device | DesiredDocument] = []

    def write_groups(
        self, session: Session, places: Iterable[tuple[str, str]], now: datetime, *, above: int = 0
    ) -> None:
        """Sign anew what each (group, profile) should run, as the session's transaction sees it; seq is over `above`."""
        session.flush()
        for group, profile in sorted(set(places)):
            document = self._group(
                session, group, profile, self._head(session, group_scope(group, profile), now, above)
            )
            topic = group_desired_topic(self._tenant, group, profile)
            self._store(session, document, sign_group(document, self._director), topic)

    def write_assignment(
        self,
        session: Session,
        device: Device,
        now: datetime,
        requests: tuple[Request, ...] = (),
        *,
        above: int = 0,
    ) -> None:
        """Sign anew which group and profile the device has; no older document of that group may steer it.

        What people asked of the device before stays in it, the last of each kind: the device may not have seen it yet, and does
        nothing twice that has the same id.
        """
        requests = (*self._lasting(session, device, requests), *requests)
        steering = session.get(DesiredDocument, (self._tenant, group_scope(device.group, device.profile)))
        head = self._head(session, device_scope(device.id), now, above)
        not_below = 0 if steering is None else steering.seq
        document = Assignment(
            **head, group=device.group, profile=device.profile, not_below_seq=not_below, requests=requests
        )
        topic = device_topic(self._tenant, device.id, "desired")
        self._store(session, document, sign_assignment(document, self._director), topic)

    def _lasting(self, session: Session, device: Device, new: tuple[Request, ...]) -> tuple[Request, ...]:
        known = session.get(DesiredDocument, (self._tenant, device_scope(device.id)))
        if known is None:
            return ()
        before = msgspec.json.decode(known.payload, type=Assignment).requests
        replaced = {request.kind for request in new}
        return tuple(each for each in before if each.kind in LASTING and each.kind not in replaced)

    def sign_offline(
        self, session: Session, devices: Sequence[Device], now: datetime, expires: datetime
    ) -> OfflineDocuments:
        """Sign what steers these devices until `expires`, for a bundle, and the online documents anew, one seq above.

        A device that was offline with the bundle goes on from there when it is back; one that was online since refuses it.
        """
        groups: dict[tuple[str, str], GroupDocument] = {}
        for group, profile in sorted({(device.group, device.profile) for device in devices}):
            head = self._head(session, group_scope(group, profile), now)
            groups[group, profile] = self._group(session, group, profile, {**head, "expires": expires})
            self.write_groups(session, [(group, profile)], now, above=head["seq"])
        assignments: dict[str, bytes] = {}
        for device in devices:
            head: Head = {**self._head(session, device_scope(device.id), now), "expires": expires}
            not_below = groups[device.group, device.profile].seq
            document = Assignment(**head, group=device.group, profile=device.profile, not_below_seq=not_below)
            assignments[device.id] = sign_assignment(document, self._director)
            self.write_assignment(session, device, now, above=document.seq)
        signed = {place: sign_group(document, self._director) for place, document in groups.items()}
        return OfflineDocuments(groups=groups, signed_groups=signed, assignments=assignments)

    def ensure_device(self, session: Session, device: Device, now: datetime) -> bool:
        """Write what the device lacks, its assignment or its group's document; whether anything was written."""
        group_missing = session.get(DesiredDocument, (self._tenant, group_scope(device.group, device.profile))) is None
        if group_missing:
            self.write_groups(session, [(device.group, device.profile)], now)
        known = session.get(DesiredDocument, (self._tenant, device_scope(device.id)))
        if known is not None:
            assigned = msgspec.json.decode(known.payload, type=Assignment)
            if (assigned.group, assigned.profile) == (device.group, device.profile):
                return group_missing
        self.write_assignment(session, device, now)
        return True

    def renew(self, session: Session, now: datetime, limit: int = 500) -> int:
        """Sign again what is to be, or is of another epoch, at most `limit` documents; how many were."""
        mine = DesiredDocument.tenant == self._tenant
        old = mine & (DesiredDocument.epoch == self._epoch) & (DesiredDocument.renew_at < now)
        due = list(session.scalars(select(DesiredDocument).where(old).order_by(DesiredDocument.renew_at).limit(limit)))
        for other in (DesiredDocument.epoch < self._epoch, DesiredDocument.epoch > self._epoch):
            due += session.scalars(select(DesiredDocument).where(mine, other).limit(limit - len(due)))
        self._know_devices(session, due)
        self._renewed = []
        for row in due:
            self._renew(session, row, now)
        if self._renewed:
            told = sha256_of("\n".join(sorted(self._renewed)).encode())
            self._record(session, "desired.renew", "all", {"documents": len(self._renewed), "sha256": told}, now)
        self._renewed = None
        return len(due)

    def _know_devices(self, session: Session, rows: Sequence[DesiredDocument]) -> None:
        """Load in one query each the devices that the assignments are of, and what steers them, into the session."""
        names = [rest for kind, _, rest in (row.scope.partition("/") for row in rows) if kind == "d"]
        devices = list(session.scalars(select(Device).where(Device.id.in_(names))))
        scopes = {group_scope(device.group, device.profile) for device in devices}
        steering = (DesiredDocument.tenant == self._tenant) & DesiredDocument.scope.in_(scopes)
        self._known = [*devices, *session.scalars(select(DesiredDocument).where(steering))]  # else it forgets them

    def _renew(self, session: Session, row: DesiredDocument, now: datetime) -> None:
        kind, _, rest = row.scope.partition("/")
        if kind == "g":
            group, _, profile = rest.partition("/")
            self.write_groups(session, [(group, profile)], now)
            return
        device = session.get(Device, rest)
        if device is None or device.revoked_at is not None:
            row.renew_at, row.epoch = now + RENEW_AFTER, self._epoch  # nobody to steer; looked at again tomorrow
            return
        self.write_assignment(session, device, now)

    def _group(self, session: Session, group: str, profile: str, head: Head) -> GroupDocument:
        slots = wanted_slots(session, self._tenant, group, profile)
        return GroupDocument(**head, slots=slots, must_understand=needs_of(slots.values()))

    def _head(self, session: Session, scope: str, now: datetime, above: int = 0) -> Head:
        known = session.get(DesiredDocument, (self._tenant, scope))
        seq = max(0 if known is None else known.seq + 1, above + 1, int(now.timestamp() * 1000))
        return {
            "tenant": self._tenant,
            "scope": scope,
            "epoch": self._epoch,
            "seq": seq,
            "issued": now,
            "expires": now + LIFE,
        }

    def _store(self, session: Session, document: GroupDocument | Assignment, envelope: bytes, topic: str) -> None:
        known = session.get(DesiredDocument, (self._tenant, document.scope))
        if known is None:
            known = DesiredDocument(tenant=self._tenant, scope=document.scope, published_seq=0)
            session.add(known)
        known.epoch, known.seq, known.issued_at = document.epoch, document.seq, document.issued
        known.renew_at = document.issued + RENEW_AFTER * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        known.rank = GROUPS if isinstance(document, GroupDocument) else DEVICES
        known.payload, known.envelope, known.topic = encode_payload(document), envelope, topic
        session.flush()
        sha256 = sha256_of(known.payload)
        if self._renewed is not None:
            self._renewed.append(f"{document.scope} {document.epoch} {document.seq} {sha256}")
            return
        detail = {"epoch": document.epoch, "seq": document.seq, "sha256": sha256}
        self._record(session, "desired.issue", document.scope, detail, document.issued)

    def _record(self, session: Session, action: str, scope: str, detail: Mapping[str, Any], now: datetime) -> None:
        subject, actor = f"desired/{scope}", "system:controller"
        audit.append(session, tenant=self._tenant, actor=actor, action=action, subject=subject, detail=detail, now=now)


def wanted_slots(session: Session, tenant: str, group: str, profile: str) -> dict[str, Slot]:
    """Return what the slots of a group should run on a profile: its stables, and the candidates on trial."""
    stables = session.scalars(
        select(SlotStable).where(SlotStable.tenant == tenant, SlotStable.group == group, SlotStable.profile == profile)
    )
    slots = {row.slot: Slot(stable=as_release(row.release), **_when_stable(session, row)) for row in stables}
    for rollout, row in _on_trial(session, tenant, group, profile):
        slot = slots.get(rollout.slot, Slot())
        slots[rollout.slot] = msgspec.structs.replace(slot, candidates=(*slot.candidates, candidate_of(rollout, row)))
    return slots


def candidate_of(rollout: Rollout, row: RolloutProfile) -> Candidate:
    """Return the candidate as devices of the profile see it; a halt is `accept: false`."""
    plan = parse_plan(rollout.plan)
    started = row.trial_started_at or rollout.created_at
    release = as_release(row.release)
    assert release is not None
    return Candidate(
        rollout=rollout.id,
        release=release,
        salt=rollout.salt,
        from_bucket=0,
        below=row.below,
        accept=row.verdict != Verdict.HALTED,
        not_before=started,
        deadline=started + timedelta(seconds=plan.deadline_seconds),
        spread_seconds=plan.spread_seconds,
        limits=plan.limits,
        **_when(plan, emergency=rollout.emergency),
    )


def _when(plan: Plan, *, emergency: bool) -> When:
    """Return what devices wait for: an emergency waits for no window, but for what keeps a device whole."""
    found: When = {}
    if plan.windows and not emergency:
        found["windows"] = plan.windows
    if plan.conditions != ANY_CONDITIONS:
        found["conditions"] = plan.conditions
    return found


def _when_stable(session: Session, stable: SlotStable) -> When:
    """Return when devices that its rollout did not reach may start on it; what a rollback restored waits for nothing."""
    rollout = session.get(Rollout, stable.rollout)
    row = session.get(RolloutProfile, (stable.rollout, stable.profile))
    if rollout is None or row is None or stable.release is None or row.release["sha256"] != stable.release["sha256"]:
        return {}
    return _when(parse_plan(rollout.plan), emergency=rollout.emergency)


def as_release(value: Mapping[str, Any] | None) -> Release | None:
    """Return the release that a JSON column holds."""
    return None if value is None else msgspec.convert(value, Release)


def as_json(release: Release | None) -> dict[str, Any] | None:
    """Return the release as a JSON column holds it."""
    return None if release is None else msgspec.to_builtins(release)


def _on_trial(session: Session, tenant: str, group: str, profile: str) -> list[tuple[Rollout, RolloutProfile]]:
    query = (
        select(Rollout, RolloutProfile)
        .join(RolloutProfile, RolloutProfile.rollout == Rollout.id)
        .where(
            Rollout.tenant == tenant,
            RolloutProfile.profile == profile,
            RolloutProfile.verdict.in_([verdict.value for verdict in ON_TRIAL]),
        )
        .order_by(Rollout.created_at)
    )
    return [(rollout, row) for rollout, row in session.execute(query) if group in rollout.groups]
