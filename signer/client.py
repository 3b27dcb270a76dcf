"""The registry's side of the signer process: a call is one connection, and errors come back as their own class."""

import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from modelfleet.signer.errors import SignerUnavailableError
from modelfleet.signer.repository import OnlineRepository
from modelfleet.signer.trust import BIN_LIFE, PolicyChain
from modelfleet.signer.wire import (
    MAX_ROOTS,
    ErrorReply,
    ImageReply,
    ImageRequest,
    ReleaseReply,
    ReleaseRequest,
    Reply,
    Request,
    ResignReply,
    ResignRequest,
    StatusReply,
    StatusRequest,
    SwuReply,
    SwuRequest,
    error_of,
    parse_reply,
    receive_message,
    send_message,
)

CALL_SECONDS = 30.0
RESIGN_BATCH = 256

ReplyT = TypeVar("ReplyT", StatusReply, ReleaseReply, ImageReply, SwuReply, ResignReply)


@dataclass(frozen=True, kw_only=True)
class SignedRelease:
    """What to publish: `bins` (role -> metadata) with `OnlineRepository.publish`, the OpenSSF bundles beside the files."""

    bins: dict[str, bytes]
    bundle: bytes
    entry_bundle: bytes


class ReleaseStatements(TypedDict):
    """What every call about a release carries: `policy_chain` is `OnlineRepository.policy_chain()`."""

    manifest: bytes
    source_envelope: bytes
    gate_envelopes: Sequence[bytes]
    policy_chain: PolicyChain


def renew_bins(signer: "SignerClient", repository: OnlineRepository, now: datetime) -> int:
    """Have every bin with less than a third of its life left signed and published; return how many there were.

    Call it daily: without it the bins expire after 90 days, and updates stop. A crash in between is made good by the
    next call.
    """
    renewed = 0
    while bins := signer.resign(now + BIN_LIFE / 3, repository.versions()):
        repository.publish(bins, {}, now)
        renewed += len(bins)
    return renewed


class SignerClient:
    """Calls the signer process.

    Args:
        socket_path: where `modelfleet-signer serve` listens; a function, where that changes.
        timeout_seconds: total time of one call.
    """

    def __init__(self, socket_path: Path | Callable[[], Path], *, timeout_seconds: float = CALL_SECONDS) -> None:
        self._find_socket = socket_path if callable(socket_path) else lambda: socket_path
        self._timeout_seconds = timeout_seconds

    def status(self) -> dict[str, str | int]:
        """Return `keyid`, `tenant`, `bins` and `targets` of the signer (SignerUnavailableError: it does not answer)."""
        reply = self._call(StatusRequest(), StatusReply)
        return {"keyid": reply.keyid, "tenant": reply.tenant, "bins": reply.bins, "targets": reply.targets}

    def release(self, **statements: Unpack[ReleaseStatements]) -> SignedRelease:
        """Have one variant signed; the same manifest again returns the same bins.

        Raises:
            UntrustedError: the signer refuses; the class says which check failed.
            SignerUnavailableError: it does not answer; try again.
        """
        request = ReleaseRequest(**_fields(statements))
        reply = self._call(request, ReleaseReply)
        return SignedRelease(bins=reply.bins, bundle=reply.bundle, entry_bundle=reply.entry_bundle)

    def image(
        self,
        *,
        group: str,
        approvals: Sequence[bytes],
        downgrade: bool = False,
        **statements: Unpack[ReleaseStatements],
    ) -> bytes:
        """Have the data image of a signed release made, and return its header; what follows it is the file `weights.bin`.

        Args:
            approvals: DSSE envelopes of k persons who approve of this manifest for `group`.
            downgrade: whether a device may take it over a higher release counter.

        Raises:
            UntrustedError, PlanError: the signer refuses. SignerUnavailableError: it does not answer; try again.
        """
        request = ImageRequest(
            **_fields(statements),
            group=group,
            approvals=tuple(approvals),
            downgrade=downgrade,
        )
        return self._call(request, ImageReply).header

    def swu(
        self,
        *,
        slot: str,
        group: str,
        approvals: Sequence[bytes],
        **statements: Unpack[ReleaseStatements],
    ) -> SwuReply:
        """Have the `.swu` container of a signed release described and signed.

        Args:
            approvals: DSSE envelopes of k persons who approve of this manifest for `group`.

        Raises:
            UntrustedError, PlanError: the signer refuses. SignerUnavailableError: it does not answer; try again.
        """
        request = SwuRequest(
            **_fields(statements),
            slot=slot,
            group=group,
            approvals=tuple(approvals),
        )
        return self._call(request, SwuReply)

    def resign(self, before: datetime, published: Mapping[str, int] | None = None) -> dict[str, bytes]:
        """Have a batch of the bins that expire before `before` signed anew; call again until it returns none.

        Args:
            published: role -> version as served; bins that were signed but never published come as well.
        """
        request = ResignRequest(before=before, published=dict(published or {}), limit=RESIGN_BATCH)
        return self._call(request, ResignReply).bins

    def _call(self, request: Request, kind: type[ReplyT]) -> ReplyT:
        reply = self._exchange(request)
        if isinstance(reply, ErrorReply):
            raise error_of(reply)
        if not isinstance(reply, kind):
            raise SignerUnavailableError(f"expected a {kind.__name__}, got a {type(reply).__name__}")
        return reply

    def _exchange(self, request: Request) -> Reply:
        ends = time.monotonic() + self._timeout_seconds
        try:
            with self._connected(ends) as connection:
                send_message(connection, request, ends)
                return parse_reply(receive_message(connection, ends))
        except OSError as error:  # TimeoutError among them
            raise SignerUnavailableError(
                f"the signer at {self._find_socket()} did not answer ({error}): is `modelfleet-signer serve` running?"
            ) from error

    @contextmanager
    def _connected(self, ends: float) -> Generator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(max(0.01, ends - time.monotonic()))
            connection.connect(str(self._find_socket()))
            yield connection


def _fields(statements: ReleaseStatements) -> dict[str, Any]:
    chain = statements["policy_chain"]
    return {
        "manifest": statements["manifest"],
        "source": statements["source_envelope"],
        "gates": tuple(statements["gate_envelopes"]),
        "targets": chain.targets,
        "policy": chain.policy,
        "roots": chain.roots[-MAX_ROOTS:],
    }
