"""The signer's side of `.swu` containers: which release may be signed, and the key that signs it.

The key is its own: devices that swupdate serves trust its certificate and nothing else of ours, so that this key alone
decides what they install. Hence it is here, beside the releases key, and never with the registry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from modelfleet.signer.attestations import Wish, count_approvals
from modelfleet.signer.cms import sign_detached
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import PlanError
from modelfleet.signer.keys import load_signer
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.names import sha256_of
from modelfleet.signer.statements import TrustPolicy
from modelfleet.signer.swu import SwuPlan, plan_swu, require_root


@dataclass(frozen=True, kw_only=True)
class SwuKey:
    """Where the key and its certificate lie, and below which folder devices have their slots.

    They are opened for each signature, which is one a release: keys that were made or replaced count at once.
    """

    uri: str
    certificate: Path
    root: str

    def sign(self, description: bytes) -> bytes:
        """Return the detached CMS signature over a description.

        Raises:
            PlanError: there is no such key yet. KeyUriError, FormatError: it does not open, or is not the certificate's.
        """
        try:
            certificate = self.certificate.read_bytes()
        except FileNotFoundError as error:
            raise PlanError("no key signs .swu containers yet: run `modelfleet ddi keys init`") from error
        return sign_detached(description, load_signer(self.uri), certificate)


def check_swu(
    manifest: Manifest,
    data: bytes,
    *,
    slot: str,
    group: str,
    approvals: Sequence[bytes],
    root: str,
    policy: TrustPolicy,
    now: datetime,
) -> SwuPlan:
    """Return the container that may be signed, of a release that was checked and signed before.

    Raises:
        ApprovalError: fewer than k persons approved of this manifest for `group`. PlanError: it does not fit into a .swu.
    """
    release = Release(
        model=manifest.model,
        version=manifest.version,
        counter=manifest.counter,
        path=manifest.path,
        sha256=sha256_of(data),
        length=len(data),
        approvals=tuple(sha256_of(each) for each in approvals),
    )
    wish = Wish(tenant=manifest.tenant, group=group, profile=manifest.profile, release=release)
    count_approvals(approvals, wish, policy, now)
    return plan_swu(manifest, data, slot, require_root(root))
