"""Errors of the registry, split by what the caller does next; `problems` maps each to an HTTP status."""

from collections.abc import Sequence

UNTRUSTED_PROBLEM = "urn:modelfleet:problem:untrusted:"
"""How the `type` of a problem begins that stands for an `UntrustedError`."""


class RegistryError(Exception):
    """Base of every error that this package raises."""


class BadInputError(RegistryError):
    """What was sent cannot be accepted: correct it and send it again. `errors` lists every fault that was found."""

    def __init__(self, message: str, errors: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class PublishError(BadInputError):
    """The model, its golden set or its statement is not publishable; nothing was stored."""


class CardError(PublishError):
    """The model card lacks fields, or has some that are unknown or of the wrong type; all are named at once."""


class CsrError(BadInputError):
    """The certificate request is no P-256 request signed by its own key."""


class ConflictError(RegistryError):
    """The name is taken by something else: choose another one."""


class VersionConflictError(ConflictError):
    """The version exists with other bytes; versions are immutable: publish under a new version number."""


class NotFoundError(RegistryError):
    """There is no such thing in this tenant."""


class UploadTooLargeError(RegistryError):
    """More bytes were sent than this server takes. `max_bytes` is the limit."""

    def __init__(self, what: str, max_bytes: int) -> None:
        super().__init__(f"{what}: expected at most {max_bytes} bytes, got more; ask the operator to raise the limit")
        self.max_bytes = max_bytes


class UnauthenticatedError(RegistryError):
    """No valid credential came with the request: send an API token, or a device token that is still valid."""


class ForbiddenError(RegistryError):
    """The credential is valid, but does not allow this: ask an administrator."""


class ClaimTokenError(ForbiddenError):
    """The claim token is unknown, used up or expired: ask for a new one."""


class TooManyTokensError(RegistryError):
    """A device signs more tokens than the server remembers: slow down, and try again in a few minutes."""


class FleetCaError(RegistryError):
    """The fleet CA's key or certificate is missing, damaged or another tenant's: restore it from a backup."""


class StoreError(RegistryError):
    """The blob store did not answer: retry later."""


class StoreFullError(StoreError):
    """The blob store has no space left; nothing was stored: free space, then retry."""


class KekError(RegistryError):
    """The key-encryption key is missing, or does not open what it should: the operator sets it right, then try again."""


class CancelledError(RegistryError):
    """A person gave up what was still to be done; publish a new version, or retry the job."""


class AuditError(RegistryError):
    """The trail is append-only: a record was about to be changed or removed, or the log is not what was signed."""


class ClientError(Exception):
    """Base of what `client.ApiClient` raises."""


class ServerUnreachableError(ClientError):
    """The server did not answer: check the URL and that `modelfleet serve` runs."""


class UnansweredError(ServerUnreachableError):
    """What was asked for may have been done, and may not: look, before it is asked for again."""


class ApiError(ClientError):
    """The server refused. `status` is HTTP's; `problem` is the problem+json it sent."""

    def __init__(self, status: int, problem: dict[str, object]) -> None:
        self.status = status
        self.problem = problem
        detail = str(problem.get("detail") or problem.get("title") or "no detail")
        found = problem.get("errors")
        lines = [str(line) for line in found] if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        super().__init__("\n  - ".join([f"{status}: {detail}", *lines]) if len(lines) > 1 else f"{status}: {detail}")

    @property
    def untrusted(self) -> bool:
        """Whether the server refused because of a signature, a scope or an age, not because of the request's form."""
        return str(self.problem.get("type", "")).startswith(UNTRUSTED_PROBLEM)
