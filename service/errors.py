"""Errors of the service package: what an operator has to mend before the service can run."""


class ServiceError(Exception):
    """Base of every error that this package raises."""


class SettingsError(ServiceError):
    """A setting is missing or contradicts another; the message names the variable."""


class NotInitialisedError(ServiceError):
    """The data folder holds no tenant yet: run `modelfleet init` first."""


class DatabaseUnreachableError(ServiceError):
    """The database did not answer, or is none: start it, or mend its URL."""


class BrokerStartError(ServiceError):
    """The embedded broker did not come up."""


class SignerStartError(ServiceError):
    """The signer process did not come up."""


class NameTakenError(ServiceError):
    """Another process runs under this executor's name."""

    def __init__(self, executor: str, where: str) -> None:
        super().__init__(
            f"expected the name {executor!r} to be free, another process runs under it {where}:"
            " set MODELFLEET_EXECUTOR to a name of its own"
        )
        self.executor = executor
