"""All bins under a new releases key: signed here, on the signer's own machine, or by a signer process that has the key.

Both start from the signer's own bins, so that what a thief published and the signer never signed is gone afterwards; what he
had the signer itself sign is named and removed.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from modelfleet.signer.client import SignerClient
from modelfleet.signer.errors import PlanError, SignerUnavailableError
from modelfleet.signer.files import folder_lock
from modelfleet.signer.keys import Signer
from modelfleet.signer.metadata import Targets, next_version, parse_metadata, sign_metadata
from modelfleet.signer.state import SignerState
from modelfleet.signer.trust import BIN_LIFE

Rekey = Callable[[Mapping[str, int], datetime], dict[str, bytes]]
"""Takes role -> version as published and returns role -> every bin under the new key."""


def rekey_here(state_dir: Path, releases: Signer, remove: Sequence[str]) -> Rekey:
    """Return what signs the bins of a state folder, whose signer process is stopped, without the targets in `remove`."""

    def rekey(published: Mapping[str, int], now: datetime) -> dict[str, bytes]:
        with _alone_on(state_dir):
            state, bins = SignerState(state_dir), dict[str, bytes]()
            _remove(state, remove)  # what an interrupted run removed already is no error
            for role in state.roles:
                metadata = state.bin(role)
                metadata.signed.version = next_version(max(metadata.signed.version, published.get(role, 0)))
                metadata.signed.expires = (now + BIN_LIFE).replace(microsecond=0)
                bins[role] = sign_metadata(metadata, [releases])
                state.keep_bin(role, bins[role])
        return bins

    return rekey


def rekey_there(signer: SignerClient) -> Rekey:
    """Return what has a signer process sign its bins, which was started again with the new key."""

    def rekey(published: Mapping[str, int], now: datetime) -> dict[str, bytes]:
        bins: dict[str, bytes] = {}
        known = dict(published)
        while found := signer.resign(now, known):
            bins |= found
            known |= {role: parse_metadata(data, Targets).signed.version for role, data in found.items()}
        return bins

    return rekey


def remove_targets(state_dir: Path, remove: Sequence[str]) -> None:
    """Drop targets from the signer's bins; the signer signs these anew at the next request to re-sign.

    Raises:
        PlanError: no bin names such a target. SignerUnavailableError: the signer process still runs.
    """
    with _alone_on(state_dir):
        left = _remove(SignerState(state_dir), remove)
    if left:
        raise PlanError(f"expected paths that the signer's bins name, got {sorted(left)}")


def _remove(state: SignerState, remove: Sequence[str]) -> set[str]:
    """Drop targets from every bin that names them; return those that none did."""
    left = set(remove)
    for role in state.roles if remove else ():
        metadata = state.bin(role)
        found = metadata.signed.targets.keys() & set(remove)
        if found:
            for path in found:
                del metadata.signed.targets[path]
            state.keep_bin(role, sign_metadata(metadata, []))
            left -= found
    return left


@contextlib.contextmanager
def _alone_on(state_dir: Path) -> Generator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(folder_lock(state_dir, wait=False))
        except BlockingIOError as error:
            raise SignerUnavailableError(
                f"a signer process holds {state_dir}: stop `modelfleet serve`, then `modelfleet keys publish`; or give"
                " --socket of a signer that was started again with the new key"
            ) from error
        yield
