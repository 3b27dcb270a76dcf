"""Where everything of one tenant lies: the folders of its data, and `keys.json`, which names each private key by its URI.

In a real deployment these keys never lie together: `offline/` lies on tokens in a safe, `signer/`, `worker/` and
`service/` on a machine each, and everything in `people/` with the people themselves (the publisher's key in CI, an
approver's on that person's own machine).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelfleet.signer.files import write_durably
from modelfleet.signer.keys import load_signer
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.passphrase import Secrets, ask_passphrase
from modelfleet.signer.repository import OnlineRepository
from modelfleet.signer.statements import KeyId

OFFLINE_KEYS = 3
ONLINE_ROLES = ("releases", "gate", "snapshot", "timestamp", "director", "publisher")
FOLDERS = {
    "root": "offline",
    "targets": "offline",
    "releases": "signer",
    "gate": "worker",
    "snapshot": "service",
    "timestamp": "service",
    "director": "service",
    "publisher": "people",
}
"""Role -> the folder in which its key file lies when no URI is given."""


class KeyBook(msgspec.Struct, frozen=True, kw_only=True):
    """`keys.json`: role -> URI; a `file:` without a leading slash lies in the data folder. It holds no secret.

    `ids` maps a URI to the id of its key, so that nobody need open a key to know which one it is.
    """

    format: str = "1.0"
    root: tuple[str, ...]
    targets: tuple[str, ...]
    releases: str
    gate: str
    snapshot: str
    timestamp: str
    director: str
    publisher: str
    approvers: dict[str, str]
    ids: dict[str, KeyId] = {}

    def all_uris(self) -> tuple[str, ...]:
        """Return the URI of every key."""
        single = tuple(str(getattr(self, role)) for role in ONLINE_ROLES)
        return (*self.root, *self.targets, *single, *self.approvers.values())

    def uri_of(self, keyid: str) -> str | None:
        """Return where the key lies, None where that is not known."""
        return next((uri for uri in self.all_uris() if self.ids.get(uri) == keyid), None)


@dataclass(frozen=True, kw_only=True)
class CeremonyResult:
    """Where everything of one tenant lies. Keys are URIs; `approver_keys` maps a person to that person's key."""

    data_dir: Path
    tenant: str
    root_json: Path
    metadata_dir: Path
    targets_dir: Path
    signer_state: Path
    root_keys: tuple[str, ...]
    targets_keys: tuple[str, ...]
    releases_key: str
    gate_key: str
    snapshot_key: str
    timestamp_key: str
    director_key: str
    publisher_key: str
    approver_keys: dict[str, str]

    def repository(self, secrets: Secrets = ask_passphrase) -> OnlineRepository:
        """Return the online repository over these folders, with the service's two keys."""
        return OnlineRepository(
            self.metadata_dir,
            self.targets_dir,
            load_signer(self.snapshot_key, secrets),
            load_signer(self.timestamp_key, secrets),
        )


def locate(data_dir: Path, tenant: str, *, approvers: Sequence[str] | None = None) -> CeremonyResult:
    """Return where the tenant's keys and folders lie, as `keys.json` says, or as `modelfleet init` lays them out.

    Args:
        approvers: found in `people/` when neither given nor in `keys.json`.

    Raises:
        FormatError: `keys.json` is damaged.
    """
    return _result(data_dir.absolute(), tenant, read_book(data_dir, approvers=approvers))


def located(paths: CeremonyResult, book: KeyBook) -> CeremonyResult:
    """Return the same folders with the keys of another book."""
    return _result(paths.data_dir, paths.tenant, book)


def read_book(data_dir: Path, *, approvers: Sequence[str] | None = None) -> KeyBook:
    """Return the book of a data folder, as `locate` explains (FormatError: it is damaged)."""
    path = book_path(data_dir)
    if path.exists():
        return parse_struct(path.read_bytes(), KeyBook)
    if approvers is None:
        approvers = sorted(path.stem.removeprefix("approver-") for path in (data_dir / "people").glob("approver-*.pem"))
    return default_book(approvers)


def write_book(data_dir: Path, book: KeyBook) -> None:
    """Replace the book of a data folder."""
    write_durably(book_path(data_dir), msgspec.json.format(msgspec.json.encode(book), indent=2) + b"\n")


def book_path(data_dir: Path) -> Path:
    """Return where the book lies."""
    return data_dir / "keys.json"


def default_book(
    approvers: Sequence[str], *, root_keys: int = OFFLINE_KEYS, targets_keys: int = OFFLINE_KEYS
) -> KeyBook:
    """Return the book of keys that all lie as files in the data folder."""
    return KeyBook(
        root=tuple(file_uri("root", n) for n in range(1, root_keys + 1)),
        targets=tuple(file_uri("targets", n) for n in range(1, targets_keys + 1)),
        releases=file_uri("releases"),
        gate=file_uri("gate"),
        snapshot=file_uri("snapshot"),
        timestamp=file_uri("timestamp"),
        director=file_uri("director"),
        publisher=file_uri("publisher"),
        approvers={person: file_uri(f"approver:{person}") for person in approvers},
    )


def file_uri(role: str, number: int = 0) -> str:
    """Return the URI of a role's key file in the data folder; `approver:PERSON` is a role here, 0 stands for no number."""
    kind, _, person = role.partition(":")
    name = f"{kind}-{person}" if person else kind
    return f"file:{FOLDERS.get(kind, 'people')}/{name}{f'-{number}' if number else ''}.pem"


def resolved(uri: str, data_dir: Path) -> str:
    """Return the URI with a relative `file:` made absolute."""
    scheme, _, rest = uri.partition(":")
    return f"file:{data_dir.absolute() / rest}" if scheme == "file" else uri


def _result(base: Path, tenant: str, book: KeyBook) -> CeremonyResult:
    def key(uri: str) -> str:
        return resolved(uri, base)

    return CeremonyResult(
        data_dir=base,
        tenant=tenant,
        root_json=base / "root.json",
        metadata_dir=base / "trust" / tenant / "metadata",
        targets_dir=base / "trust" / tenant / "targets",
        signer_state=base / "signer" / "state",
        root_keys=tuple(map(key, book.root)),
        targets_keys=tuple(map(key, book.targets)),
        releases_key=key(book.releases),
        gate_key=key(book.gate),
        snapshot_key=key(book.snapshot),
        timestamp_key=key(book.timestamp),
        director_key=key(book.director),
        publisher_key=key(book.publisher),
        approver_keys={person: key(uri) for person, uri in book.approvers.items()},
    )
