"""What the signer process does with a request: check everything again, add the manifest to its own bin, sign.

It holds the releases key and its own copy of the bins; root.json was given to it at start and is its only trust. It follows
newer roots that come with a request, each signed by its predecessor, and keeps the newest in its state. With a rotated
releases key it is started again: bins that bear another key's signature count as due.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from modelfleet.signer.bundle import sign_bundle, sign_entry_bundle
from modelfleet.signer.errors import DigestError, PlanError, ReplayError, SignatureError
from modelfleet.signer.image import sign_image
from modelfleet.signer.image_release import ImageWish, check_image, marked, require_signed_before
from modelfleet.signer.keys import Signer
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.metadata import Metadata, Root, TargetFile, Targets, require_signed, sign_metadata
from modelfleet.signer.names import sha256_of
from modelfleet.signer.release import check_release
from modelfleet.signer.state import SignerState
from modelfleet.signer.swu_release import SwuKey, check_swu
from modelfleet.signer.trust import (
    BIN_LIFE,
    PolicyChain,
    TrustedPolicy,
    bin_of,
    follow_roots,
    trusted_policy,
    trusted_root,
)
from modelfleet.signer.wire import (
    ImageReply,
    ImageRequest,
    ReleaseReply,
    ReleaseRequest,
    Reply,
    Request,
    ResignReply,
    ResignRequest,
    Statements,
    StatusReply,
    StatusRequest,
    SwuReply,
    SwuRequest,
)

MAX_RESIGN_BYTES = 2 * 1024 * 1024
"""Bins that fill one reply; in base64 they must stay below `wire.MAX_MESSAGE_BYTES`, whatever the last one adds."""

log = logging.getLogger(__name__)


class ReleaseSigner:
    """Signs variants of one tenant; safe among threads, alone on its state folder.

    Args:
        root: the trusted root; its targets role says whose policy counts. A newer one in `state` goes before it.
        clock: aware UTC.
        swu: signs `.swu` containers; None: it signs none.
    """

    def __init__(
        self,
        *,
        tenant: str,
        root: Root,
        releases: Signer,
        state: SignerState,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        swu: SwuKey | None = None,
    ) -> None:
        self._tenant = tenant
        self._root = _newer_root(root, state)
        self._releases = releases
        self._state = state
        self._clock = clock
        self._swu = swu
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Reply:
        """Return the reply to any request (UntrustedError: refused)."""
        match request:
            case StatusRequest():
                return self.status()
            case ReleaseRequest():
                return self.release(request)
            case ImageRequest():
                return self.image(request)
            case SwuRequest():
                return self.swu(request)
            case ResignRequest():
                return self.resign(request)

    def status(self) -> StatusReply:
        """Return who signs, and how much is signed."""
        with self._lock:
            targets = sum(self._state.facts(role).targets for role in self._state.roles)
        return StatusReply(
            keyid=self._releases.public_key.keyid, tenant=self._tenant, bins=len(self._state.roles), targets=targets
        )

    def release(self, request: ReleaseRequest) -> ReleaseReply:
        """Return the bin that names the manifest, signed and stored; the same manifest again changes nothing.

        Raises:
            UntrustedError: the policy is not to be believed, or a check of `release.check_release` fails.
            DigestError: the path is taken by another manifest: versions are immutable.
        """
        with self._lock:
            manifest, trusted = self._checked(request)
            bundle, entry = sign_bundle(manifest, self._releases), sign_entry_bundle(manifest, self._releases)
            role, data = self._add(manifest, request.manifest, trusted)
        return ReleaseReply(bins={role: data}, bundle=bundle, entry_bundle=entry)

    def image(self, request: ImageRequest) -> ImageReply:
        """Return the signed header of a release's data image; what it says was remembered before.

        Everything that is checked before a release is signed is checked again, under today's policy, and beside it what
        `image_release.check_image` lists.

        Raises:
            UntrustedError: as `release`, or too few approvals, or a lower release counter without a downgrade.
            PlanError: the release has no data image.
        """
        with self._lock:
            manifest, trusted = self._signed_before(request)
            wish = ImageWish(
                manifest=request.manifest,
                group=request.group,
                downgrade=request.downgrade,
                approvals=request.approvals,
            )
            marks = self._state.image_marks(manifest.model, manifest.profile)
            newest = max(self._state.record.counters[manifest.model].values())
            header = check_image(wish, manifest, trusted.policy, marks, newest, self._clock())
            signed = sign_image(header, self._releases)
            self._state.keep_image_marks(manifest.model, manifest.profile, marked(marks, header))
        log.info("signed a data image", extra={"path": manifest.path, "group": header.group, "serial": header.serial})
        return ImageReply(header=signed)

    def swu(self, request: SwuRequest) -> SwuReply:
        """Return the signed description of a release's `.swu` container.

        Everything that is checked before a release is signed is checked again, under today's policy, and that k persons
        approved of it: such a device checks nothing but this signature.

        Raises:
            UntrustedError: as `release`, or too few approvals. PlanError: no such key, or no such container.
        """
        if self._swu is None:
            raise PlanError("this signer signs no .swu containers: start it with --swu-key")
        with self._lock:
            manifest, trusted = self._signed_before(request)
        plan = check_swu(
            manifest,
            request.manifest,
            slot=request.slot,
            group=request.group,
            approvals=request.approvals,
            root=self._swu.root,
            policy=trusted.policy,
            now=self._clock(),
        )
        signature = self._swu.sign(plan.description)
        log.info("signed a container", extra={"path": manifest.path, "slot": request.slot, "group": request.group})
        return SwuReply(description=plan.description, signature=signature, script=plan.script)

    def resign(self, request: ResignRequest) -> ResignReply:
        """Return bins that expire before `request.before` or bear another key's signature, signed anew and stored.

        `request.limit` of them at most, and no more than one reply holds.
        A bin newer than `request.published` comes as it is: its publication was lost.
        """
        bins: dict[str, bytes] = {}
        ours = self._releases.public_key.keyid
        with self._lock:
            for role in self._state.roles:
                facts = self._state.facts(role)
                if facts.expires < request.before or ours not in facts.keyids:
                    bins[role] = self._sign_next(self._state.bin(role))
                    self._state.keep_bin(role, bins[role])
                elif facts.version > request.published.get(role, facts.version):
                    bins[role] = self._state.bin_bytes(role)
                if len(bins) >= request.limit or sum(map(len, bins.values())) >= MAX_RESIGN_BYTES:
                    break
        return ResignReply(bins=bins)

    def _checked(self, request: Statements) -> tuple[Manifest, TrustedPolicy]:
        trusted = self._trusted_policy(PolicyChain(targets=request.targets, policy=request.policy, roots=request.roots))
        counters = self._state.record.counters
        return check_release(request.manifest, request.source, request.gates, trusted.policy, counters), trusted

    def _signed_before(self, request: Statements) -> tuple[Manifest, TrustedPolicy]:
        manifest, trusted = self._checked(request)
        role = bin_of(trusted.targets, manifest.path)
        metadata = self._state.bin(role)
        require_signed(trusted.targets, role, metadata)
        if self._releases.public_key.keyid not in metadata.signatures:  # signed anew by who has the key now
            raise SignatureError(f"{role}: expected it signed by this signer's key: was the releases key rotated?")
        require_signed_before(manifest, request.manifest, metadata.signed.targets.get(manifest.path))
        return manifest, trusted

    def _trusted_policy(self, chain: PolicyChain) -> TrustedPolicy:
        root, newest = follow_roots(self._root, chain.roots)
        if newest is not None:
            self._state.keep_root(newest)
            self._root = root
            log.info("follows a newer root", extra={"version": root.version})
        seen = self._state.record.targets_version
        trusted = trusted_policy(self._root, chain, tenant=self._tenant, now=self._clock(), minimum_version=seen)
        self._state.keep_targets_version(trusted.targets.version)
        return trusted

    def _add(self, manifest: Manifest, data: bytes, trusted: TrustedPolicy) -> tuple[str, bytes]:
        role = bin_of(trusted.targets, manifest.path)
        metadata = self._state.bin(role)
        known = metadata.signed.targets.get(manifest.path)
        if known is not None:
            _require_same(known, data)
            return role, self._state.bin_bytes(role)
        metadata.signed.targets[manifest.path] = TargetFile.from_data(manifest.path, data, ["sha256"])
        signed = self._sign_next(metadata)
        require_signed(trusted.targets, role, metadata)  # else the policy no longer names our key
        self._state.keep_counter(manifest.model, manifest.version, manifest.counter)
        self._state.keep_bin(role, signed)
        log.info("signed a variant", extra={"path": manifest.path, "sha256": sha256_of(data), "bin": role})
        return role, signed

    def _sign_next(self, metadata: Metadata[Targets]) -> bytes:
        metadata.signed.version += 1
        metadata.signed.expires = (self._clock() + BIN_LIFE).replace(microsecond=0)
        return sign_metadata(metadata, [self._releases])


def _newer_root(given: Root, state: SignerState) -> Root:
    data = state.root_bytes()
    kept = trusted_root(data) if data is not None else given
    if kept.version == given.version and kept != given:
        raise ReplayError(
            f"the root given and the one in the signer's state are both version {given.version}, and differ:"
            " find out which is right; the state's is in its root.json"
        )
    return kept if kept.version > given.version else given


def _require_same(known: TargetFile, data: bytes) -> None:
    if known.hashes.get("sha256") != sha256_of(data):
        raise DigestError(f"{known.path} is signed with another digest: a version is immutable, publish a new one")
