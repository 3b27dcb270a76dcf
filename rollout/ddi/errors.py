"""Errors of the DDI; each has the status that hawkBit's clients know for it."""

from modelfleet.registry.errors import RegistryError
from modelfleet.registry.problems import add_problem


class DdiError(RegistryError):
    """Base of every error that this package raises."""


class DdiUnauthenticatedError(DdiError):
    """No valid target or gateway token came with the request; which of tenant, device and token is wrong is not told."""


class NoSuchActionError(DdiError):
    """The device has no such action, module or file: poll again."""


class ActionGoneError(DdiError):
    """The action has ended, and with another result than the one that comes now: poll again."""


class FeedbackError(DdiError):
    """The body is no feedback as hawkBit defines it."""


class TooManyReportsError(DdiError):
    """The action has as much progress on record as is kept: only its end is taken."""


add_problem(DdiUnauthenticatedError, 401, "No valid credential")
add_problem(NoSuchActionError, 404, "Not found")
add_problem(ActionGoneError, 410, "The action has ended")
add_problem(FeedbackError, 400, "Not a feedback")
add_problem(TooManyReportsError, 429, "Too many reports")
