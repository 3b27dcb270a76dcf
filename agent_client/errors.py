"""Errors of the agent, split by what it does next.

`TransferError`, `LocalBuildError`: retry with backoff. `ActivationError`, `UnhealthyError`: return to the old slot.
`BenchmarkError`, `IncompatibleReleaseError`: reject this digest for good. Trust is refused with the classes of `signer.errors`.
"""

from modelfleet.agent_client.protocol import Bench, WaitReason


class AgentError(Exception):
    """Base of every error that this package raises."""


class StorageError(AgentError):
    """A file of the agent's own folder is missing or damaged: restore it, or enrol the device again."""


class LockedError(AgentError):
    """Another agent works in this folder: stop it first."""


class NotEnrolledError(AgentError):
    """The folder holds no identity: run `modelfleet-agent enroll` first."""


class EnrolmentError(AgentError):
    """The server refused the enrolment: get a new claim token, or fix what the message names."""


class TransferError(AgentError):
    """Bytes did not arrive (network, deadline, server): retry with backoff."""


class HttpStatusError(TransferError):
    """The server answered with an HTTP status that is not success; `status` carries it, `body` what it said."""

    def __init__(self, message: str, *, status: int, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class TooLongError(TransferError):
    """The answer is longer than what was asked for may be; no more of it was read."""


class InsecureUrlError(TransferError):
    """The server would be reached over plain http from another machine: use https, or allow it."""


class BundleError(TransferError):
    """The bundle cannot be read to its end (cut off, a file missing, pulled out): plug it in, or copy it, again."""


class MetadataRefusedError(TransferError):
    """The repository as it stands is not to be believed (frozen, replayed, unsigned): wait for a better one.

    The cause says which class of trust error it was. It is no fault of the release, which is not rejected for it.
    """


class BytesRefusedError(TransferError):
    """What came is not what was signed (a hostile or broken mirror, a rotten store): fetch it again later.

    The cause says which class of trust error it was. It is no fault of the release, which is not rejected for it.
    """


class KeyRefusedError(TransferError):
    """What came as the key of a confidential variant does not open it here: ask again later; the old model runs on.

    The cause says which class of trust error it was. It is no fault of the release, which is not rejected for it.
    """


class NoSpaceError(TransferError):
    """The device has too little free space: free some; the model that runs is untouched."""


class PreemptedError(AgentError):
    """Desired state asks for something else now: what was going on is dropped; `late`: the deadline has passed."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class ConditionsError(AgentError):
    """The device is not, or no longer, where the update may go on: what is there is kept, and it goes on by itself later.

    `reasons` says what it waits for. It is no failure, neither of the release nor of the device.
    """

    def __init__(self, message: str, *, reasons: tuple[WaitReason, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class StoppingError(AgentError):
    """The agent was asked to end: what is going on is left as it is, and resumed at the next start."""


class TimeoutInStateError(AgentError):
    """A state took longer than its timer allows."""


class ActivationError(AgentError):
    """A verified variant did not open or could not be switched to: return to the old slot."""


class UnhealthyError(AgentError):
    """The candidate's own error share in probation passed the limit: return to the old slot."""


class BenchmarkError(AgentError):
    """Measured on this device, the variant misses a limit: reject its digest; `bench` holds the figures, if any."""

    def __init__(self, message: str, *, bench: Bench | None = None) -> None:
        super().__init__(message)
        self.bench = bench


class LocalBuildError(AgentError):
    """Building on this device did not end (time, memory, a signal): retry with backoff; the model that runs is untouched."""


class IncompatibleReleaseError(AgentError):
    """The variant is for another profile, runtime or machine: reject its digest."""


class NoModelError(AgentError):
    """The slot holds no model yet: wait for the agent, or ask for a rollout to this slot."""


class ModelError(AgentError):
    """The active model cannot be opened or answered wrongly; the message names slot, version and cause."""
