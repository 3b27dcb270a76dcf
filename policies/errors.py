"""Errors of the policies package: something asked for is not allowed, or a policy file does not say what it must."""

from collections.abc import Sequence


class PolicyError(Exception):
    """Base of every error that this package raises."""


class PlanError(PolicyError):
    """A rollout plan is wrong; `problems` names every bad field."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the plan is refused: " + "; ".join(problems))
        self.problems = tuple(problems)


class ApprovalRefusedError(PolicyError):
    """An approval does not cover this rollout, or may not be given by this person."""


class AuthorApprovedError(ApprovalRefusedError):
    """The author of a rollout approved it: another person must."""


class NotEnoughApprovalsError(ApprovalRefusedError):
    """Fewer valid approvals by distinct persons than the trust policy requires."""


class IncompatibleError(PolicyError):
    """A device is not of the kind that a variant was built for; `reasons` holds every mismatch, expected and got."""

    def __init__(self, profile: str, reasons: Sequence[str]) -> None:
        super().__init__(f"not a {profile}: " + "; ".join(reasons))
        self.profile = profile
        self.reasons = tuple(reasons)


class OfflineRefusedError(PolicyError):
    """A bundle for offline devices is asked for that would hold too long, or be for too many: ask for less."""


class GateFileError(PolicyError):
    """A file of quality gates does not say what it must: fix the file."""
