"""Errors of the rollout package, split by what the caller does next; `problems` maps each to an HTTP status."""


class RolloutError(Exception):
    """Base of every error that this package raises."""


class RolloutNotFoundError(RolloutError):
    """There is no such rollout in this tenant."""


class RolloutInputError(RolloutError):
    """What was asked for cannot be rolled out (unknown group, no variant, no devices): correct it."""


class RolloutConflictError(RolloutError):
    """Another rollout stands in the way, or the fleet has moved on: end that one first."""


class TransitionError(RolloutError):
    """This rollout's state does not allow that; nothing was changed."""


class StaleRevisionError(RolloutError):
    """Somebody changed the rollout in between: read it again; nothing was changed."""


class NotLeadingError(RolloutError):
    """Another controller leads by now: what this one was about to change is left to that one; nothing was changed."""


class BrokerError(RolloutError):
    """The broker refused or did not answer: retried with backoff."""


class WebhookInputError(RolloutError):
    """No endpoint or pattern of events as asked: mend the request."""


class WebhookNotFoundError(RolloutError):
    """The tenant has no such webhook, or no such delivery."""


class WebhookDeliveryError(RolloutError):
    """An endpoint did not take a delivery: sent again after a pause."""


class WebhookKeyError(RolloutError):
    """The file that secrets of webhooks come from is damaged: restore it."""
