"""The state of a tenant's trust as its published files tell it: who signs what, how many must, and until when.

It reads public files alone and opens no key.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from modelfleet.signer.draft import POLICY_ROLES
from modelfleet.signer.errors import FormatError
from modelfleet.signer.expiry import Expiring, Expiry, Level, expiries
from modelfleet.signer.key_book import KeyBook
from modelfleet.signer.metadata import Metadata, RoleT, Root, Snapshot, Targets, Timestamp, parse_metadata, root_files
from modelfleet.signer.statements import POLICY_PATH, TrustPolicy
from modelfleet.signer.trust import parse_policy

log = logging.getLogger(__name__)

BY_ITSELF = "the service signs it again by itself: see why it did not"
REMEDIES: Mapping[str, str] = {
    "root": "run `modelfleet keys renew root`",
    "targets": "run `modelfleet keys renew targets`",
    "bins": "the signer process signs them again: is it running, with the releases key?",
    "snapshot": BY_ITSELF,
    "timestamp": BY_ITSELF,
}


@dataclass(frozen=True, kw_only=True)
class RoleKey:
    """One key of a role; `person` is an approver's, `uri` is where the private half lies, where that is known."""

    keyid: str
    person: str | None = None
    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class RoleStatus:
    """A role: its keys, how many of them must sign, and for signed metadata its version and end."""

    role: str
    keys: tuple[RoleKey, ...]
    threshold: int
    version: int | None = None
    expires: datetime | None = None
    days_left: float | None = None
    level: Level = Level.OK


@dataclass(frozen=True, kw_only=True)
class TrustStatus:
    """All of it; `level` is the worst of all rows."""

    tenant: str
    epoch: int
    revoked: tuple[str, ...]
    minimum_counter: Mapping[str, int]
    roles: tuple[RoleStatus, ...]
    expiries: tuple[Expiry, ...]
    level: Level

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it: moments in ISO 8601."""
        return json.loads(json.dumps(asdict(self), default=lambda moment: moment.isoformat()))


@dataclass(frozen=True, kw_only=True)
class Published:
    """The metadata that is served now, and the policy."""

    root: Root
    targets: Targets
    snapshot: Snapshot
    timestamp: Timestamp
    policy: TrustPolicy
    bins: Mapping[str, tuple[int, datetime]]


@dataclass
class TrustReader:
    """Reads a tenant's published files; a bin is read again only when its version moved.

    Args:
        folder: with `metadata/` and `targets/`, as they are served.
    """

    folder: Path
    _bins: dict[str, tuple[int, datetime]] = field(default_factory=dict[str, tuple[int, datetime]])

    def read(self) -> Published:
        """Return what is published.

        Raises:
            FormatError: the folder holds no repository, or a damaged one.
        """
        try:
            return self._read()
        except (OSError, KeyError, ValueError) as error:
            raise FormatError(f"expected a repository in {self.folder}: {error}") from error

    def _read(self) -> Published:
        newest = max(root_files(self.folder / "metadata"))
        timestamp = self._metadata("timestamp", Timestamp).signed
        snapshot = self._metadata(f"{timestamp.snapshot_meta.version}.snapshot", Snapshot).signed
        targets = self._metadata(f"{snapshot.meta['targets.json'].version}.targets", Targets).signed
        policy = self.folder / "targets" / targets.targets[POLICY_PATH].get_prefixed_paths()[0]
        return Published(
            root=self._metadata(f"{newest}.root", Root).signed,
            targets=targets,
            snapshot=snapshot,
            timestamp=timestamp,
            policy=parse_policy(policy.read_bytes()),
            bins=self._read_bins(snapshot),
        )

    def _read_bins(self, snapshot: Snapshot) -> Mapping[str, tuple[int, datetime]]:
        for name, meta in snapshot.meta.items():
            role = name.removesuffix(".json")
            if role != Targets.type and self._bins.get(role, (0,))[0] != meta.version:
                value = json.loads((self.folder / "metadata" / f"{meta.version}.{name}").read_bytes())
                self._bins[role] = (meta.version, datetime.fromisoformat(value["signed"]["expires"]))
        return dict(self._bins)

    def _metadata(self, name: str, kind: type[RoleT]) -> Metadata[RoleT]:
        return parse_metadata((self.folder / "metadata" / f"{name}.json").read_bytes(), kind)


def expiring(published: Published) -> list[Expiring]:
    """Return what of the published metadata ends when; the bins are one thing, which ends with the first of them."""
    ends = {
        "root": published.root.expires,
        "targets": published.targets.expires,
        "snapshot": published.snapshot.expires,
        "timestamp": published.timestamp.expires,
    }
    if published.bins:
        ends["bins"] = min(expires for _, expires in published.bins.values())
    names = {"bins": f"the first of {len(published.bins)} bins"}
    return [
        Expiring(kind=kind, name=names.get(kind, f"{kind}.json"), expires=expires, remedy=REMEDIES[kind])
        for kind, expires in ends.items()
    ]


def trust_status(
    published: Published, now: datetime, *, book: KeyBook | None = None, more: Iterable[Expiring] = ()
) -> TrustStatus:
    """Return the state of trust at `now`.

    Args:
        book: where private keys lie, on a machine that knows it.
        more: further things that expire, such as certificates.
    """
    rows = expiries([*expiring(published), *more], now)
    by_kind = {row.kind: row for row in rows}
    levels = [row.level for row in rows]
    policy = published.policy
    return TrustStatus(
        tenant=policy.tenant,
        epoch=policy.epoch,
        revoked=policy.revoked,
        minimum_counter=policy.minimum_counter,
        roles=(*_signing_roles(published, by_kind, book), *_policy_roles(policy, book)),
        expiries=tuple(rows),
        level=max(levels, key=list(Level).index, default=Level.OK),
    )


def _signing_roles(published: Published, by_kind: Mapping[str, Expiry], book: KeyBook | None) -> list[RoleStatus]:
    signed: Mapping[str, Root | Targets | Snapshot | Timestamp] = {
        "root": published.root,
        "targets": published.targets,
        "snapshot": published.snapshot,
        "timestamp": published.timestamp,
    }
    found = [
        _role(name, role.keyids, role.threshold, signed[name].version, by_kind[name], book)
        for name, role in published.root.roles.items()
        if name in signed
    ]
    bins = published.targets.delegations.succinct_roles if published.targets.delegations else None
    if bins is not None and "bins" in by_kind:
        newest = max(version for version, _ in published.bins.values())
        found.append(_role("releases", bins.keyids, bins.threshold, newest, by_kind["bins"], book))
    order = ("root", "targets", "releases", "snapshot", "timestamp")
    return sorted(found, key=lambda row: order.index(row.role))


def _role(
    name: str, keyids: Iterable[str], threshold: int, version: int, expiry: Expiry, book: KeyBook | None
) -> RoleStatus:
    return RoleStatus(
        role=name,
        keys=tuple(_key(keyid, book) for keyid in keyids),
        threshold=threshold,
        version=version,
        expires=expiry.expires,
        days_left=expiry.days_left,
        level=expiry.level,
    )


def _policy_roles(policy: TrustPolicy, book: KeyBook | None) -> list[RoleStatus]:
    rows = [
        RoleStatus(role=role, keys=tuple(_key(keyid, book) for keyid in getattr(policy, name)), threshold=1)
        for role, name in POLICY_ROLES.items()
    ]
    approvers = tuple(_key(keyid, book, found.person) for keyid, found in policy.approvers.items())
    return [*rows, RoleStatus(role="approver", keys=approvers, threshold=policy.approvals_required)]


def _key(keyid: str, book: KeyBook | None, person: str | None = None) -> RoleKey:
    return RoleKey(keyid=keyid, person=person, uri=book.uri_of(keyid) if book is not None else None)


@dataclass
class ExpiryAlarm:
    """Logs what expires soon: at the first look, and then once a day for each thing, or at once where it gets worse."""

    _told: dict[str, tuple[date, Level]] = field(default_factory=dict[str, tuple[date, Level]])

    def tell(self, rows: Iterable[Expiry], now: datetime) -> list[Expiry]:
        """Log each row that is due, WARNING as such and CRITICAL as an error, and return them."""
        due = [row for row in rows if row.level is not Level.OK and self._is_due(row, now)]
        for row in due:
            self._told[row.name] = (now.astimezone(UTC).date(), row.level)
            level = logging.ERROR if row.level is Level.CRITICAL else logging.WARNING
            log.log(level, row.text, extra={"expiring": row.name, "days_left": row.days_left})
        return due

    def _is_due(self, row: Expiry, now: datetime) -> bool:
        told = self._told.get(row.name)
        return told is None or told[0] != now.astimezone(UTC).date() or told[1] is not row.level


@dataclass
class TrustWatch:
    """A tenant's published trust under watch: what a service asks, and what it logs.

    Attributes:
        more: each called for further things that expire, such as certificates.
    """

    folder: Path
    more: list[Callable[[], Iterable[Expiring]]] = field(default_factory=list[Callable[[], Iterable[Expiring]]])

    def __post_init__(self) -> None:
        self._reader, self._alarm = TrustReader(self.folder), ExpiryAlarm()

    def status(self, now: datetime) -> TrustStatus:
        """Return the state of trust (FormatError: the repository is damaged)."""
        more = [thing for ask in self.more for thing in ask()]
        return trust_status(self._reader.read(), now, more=more)

    def alarm(self, now: datetime) -> list[Expiry]:
        """Log what expires soon, each thing once a day, and return what was logged (FormatError as `status`)."""
        return self._alarm.tell(self.status(now).expiries, now)
