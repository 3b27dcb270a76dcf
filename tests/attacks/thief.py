"""The whole server in somebody's hands: every private key file of a data folder that `modelfleet init` made.

Except for those of `offline/` and `people/`, which in a real fleet never lay there.
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from modelfleet.signer.ceremony import locate, update_policy
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import (
    KeyUriError,
)
from modelfleet.signer.keys import Signer, load_signer
from modelfleet.signer.names import sha256_of
from modelfleet.signer.statements import Approval, TrustPolicy
from tests.attacks.forge import Forger
from tests.unit.agent_client.fleet import GROUP, PROFILE, TENANT, Fleet, Server, now


@dataclass
class Thief:
    """Holds the server: its folder, its keys, what it serves. `anna` and `ben` have their keys at home."""

    fleet: Fleet
    keys: dict[str, Signer]
    forger: Forger
    home: Path

    def person(self, name: str) -> Signer:
        """The key of an approver: nothing that the thief ever has."""
        return load_signer(f"file:{self.home}/people/approver-{name}.pem")

    def unapproved(self, version: str = "6.6.6") -> Release:
        """Publish the thief's own variant: signed into its bin by the releases key, and served."""
        return self.fleet.release(version, seed=666, approved=False)

    def approval(self, release: Release, **changes: Any) -> Approval:
        """What an approver would have to sign."""
        valid = Approval(
            tenant=TENANT,
            model=release.model,
            version=release.version,
            releases={PROFILE: release.sha256},
            groups=(GROUP,),
            plan_sha256="0" * 64,
            author="ci",
            issued=now(),
            not_after=now() + timedelta(days=30),
        )
        return msgspec.structs.replace(valid, **changes)

    def approved_by(self, release: Release, *envelopes: bytes) -> Release:
        """Serve the envelopes, and have the release name them."""
        self.fleet.server.blobs |= {sha256_of(envelope): envelope for envelope in envelopes}
        return msgspec.structs.replace(release, approvals=tuple(sha256_of(envelope) for envelope in envelopes))


def steal(data: Path, folder: Path, *, change: Callable[[TrustPolicy], TrustPolicy] | None = None) -> Thief:
    """Copy the data folder; the offline and the people's keys go home, everything else is the thief's."""
    there, home = folder / "data", folder / "home"
    shutil.copytree(data, there)
    if change is not None:
        update_policy(there, TENANT, change, now())
    everything = Forger(locate(there, TENANT))
    home.mkdir()
    for name in ("offline", "people"):
        (there / name).rename(home / name)
    keys = {path.relative_to(there).as_posix(): key for path in sorted(there.rglob("*")) if (key := private_key(path))}
    paths = dataclasses.replace(locate(there, TENANT), approver_keys={"anna": f"file:{home}/people/approver-anna.pem"})
    everything.keys["root"] = everything.keys["targets"] = list(keys.values())[:2]
    server = Server(metadata_dir=paths.metadata_dir, targets_dir=paths.targets_dir)
    server.tokens["claim"] = {}
    server.start()
    return Thief(fleet=Fleet(keys=paths, server=server), keys=keys, forger=everything, home=home)


def private_key(path: Path) -> Signer | None:
    if not path.is_file() or b"PRIVATE KEY" not in path.read_bytes():
        return None
    try:
        return load_signer(f"file:{path}")
    except KeyUriError:
        return None


def offline(thief: Thief, role: str, count: int = 2) -> list[Signer]:
    """So many of the offline keys: they lie at home."""
    return [load_signer(f"file:{thief.home}/offline/{role}-{number}.pem") for number in range(1, count + 1)]
