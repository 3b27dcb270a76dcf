"""From a change to its publication: sign with the keys at hand, keep what is signed so far, publish when it is enough.

One change at a time waits in `staging/change.json` of the data folder; a crash, or a week until the next person is there,
loses nothing.
"""

import logging
from datetime import datetime
from pathlib import Path

import msgspec

from modelfleet.signer.change import (
    Change,
    check_change,
    encode_change,
    lacking,
    parse_change,
    require_complete,
    sign_change,
)
from modelfleet.signer.errors import KeyUriError, PlanError, ReplayError, SignerUnavailableError
from modelfleet.signer.files import write_durably
from modelfleet.signer.key_book import CeremonyResult, located, read_book, resolved, write_book
from modelfleet.signer.keys import load_signer, write_public
from modelfleet.signer.passphrase import Secrets, ask_passphrase
from modelfleet.signer.rekey import Rekey, rekey_here

log = logging.getLogger(__name__)


def staged_path(data_dir: Path) -> Path:
    """Return where the change that waits for signatures lies."""
    return data_dir / "staging" / "change.json"


def staged(data_dir: Path) -> Change | None:
    """Return the change that waits for signatures, None where there is none (UntrustedError: it is damaged)."""
    path = staged_path(data_dir)
    return parse_change(path.read_bytes()) if path.exists() else None


def keep_staged(data_dir: Path, change: Change) -> None:
    """Keep the change with its signatures so far."""
    write_durably(staged_path(data_dir), encode_change(change), mode=0o600)


def discard_staged(data_dir: Path) -> None:
    """Forget the change that waits."""
    staged_path(data_dir).unlink(missing_ok=True)


def require_none_staged(data_dir: Path) -> None:
    """Refuse to begin a second change.

    Raises:
        PlanError: one waits for signatures.
    """
    if staged_path(data_dir).exists():
        raise PlanError(
            "another change waits for signatures: finish it with `modelfleet keys import`, or drop it with"
            " `modelfleet keys discard`"
        )


def sign_here(paths: CeremonyResult, change: Change, secrets: Secrets = ask_passphrase) -> tuple[Change, list[str]]:
    """Return the change with the signatures of offline keys that can be opened here, and why others could not be.

    No key is opened that is not needed.
    """
    reasons: list[str] = []
    books = [book for book in (read_book(paths.data_dir), change.book) if book is not None]
    ids = {uri: keyid for book in books for uri, keyid in book.ids.items()}
    for uri in dict.fromkeys(uri for book in books for uri in (*book.root, *book.targets)):
        wanted = {keyid for lack in lacking(change) for keyid in lack.keyids}
        if not wanted:
            break
        if uri in ids and ids[uri] not in wanted:
            continue
        try:
            signer = load_signer(resolved(uri, paths.data_dir), secrets)
        except (KeyUriError, SignerUnavailableError) as error:
            reasons.append(str(error))
            continue
        if signer.public_key.keyid in wanted:
            change = sign_change(change, signer)
    return change, reasons


def publish(
    paths: CeremonyResult,
    change: Change,
    now: datetime,
    *,
    secrets: Secrets = ask_passphrase,
    rekey: Rekey | None = None,
) -> None:
    """Publish a change that bears enough signatures: repository, `keys.json` and `root.json` follow it together.

    Args:
        rekey: what signs the bins, where their key changes; None: this process, with the new key.

    Raises:
        SignatureError: signatures are missing. ReplayError: something else was published since the change was made.
        KeyUriError: an online key cannot be opened here. SignerUnavailableError: the signer process is in the way.
    """
    require_complete(change)
    book = change.book
    after = paths if book is None else located(paths, book)
    repository = after.repository(secrets)
    _require_current(change, repository.policy_chain().targets, repository.policy_chain().roots[-1])
    bins: dict[str, bytes] = {}
    if _releases_keys(change, after=True) != _releases_keys(change, after=False):
        rekey = rekey or rekey_here(paths.signer_state, load_signer(after.releases_key, secrets), change.remove)
        bins = rekey(repository.versions(), now)

    def keep() -> None:
        if book is not None:
            write_book(paths.data_dir, book)
        write_durably(paths.root_json, change.root)
        _tell_isvs(paths, after, secrets)

    repository.publish_change(
        root=change.root, targets=change.targets, policy=change.policy, bins=bins, now=now, keep=keep
    )
    discard_staged(paths.data_dir)
    log.info("published a change of trust", extra={"bins": len(bins)})


def for_signing(change: Change) -> Change:
    """Return the change as it leaves the house: without the book of where keys lie."""
    return msgspec.structs.replace(change, book=None)


def _tell_isvs(paths: CeremonyResult, after: CeremonyResult, secrets: Secrets) -> None:
    """Keep `releases.pub`, which those who check OpenSSF bundles are given, in step with the key."""
    path = paths.data_dir / "releases.pub"
    if path.exists() and paths.releases_key != after.releases_key:
        write_public(path, after.releases_key, secrets)


def _require_current(change: Change, targets: bytes, root: bytes) -> None:
    """Refuse a change of what is no longer published; one whose publication was interrupted goes on."""
    if root not in (change.before_root, change.root) or targets not in (change.before_targets, change.targets):
        raise ReplayError(
            "something else was published since this change was made: `modelfleet keys discard`, and make it again"
        )


def _releases_keys(change: Change, *, after: bool) -> list[str]:
    state = check_change(change)[1 if after else 0]
    delegations = state.targets.delegations
    return delegations.succinct_roles.keyids if delegations and delegations.succinct_roles else []
