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
