"""What the evidence for a release does not prove, in figures: what an approver is shown before signing."""

import math
from collections.abc import Mapping

from modelfleet.policies.bounds import clopper_pearson
from modelfleet.policies.plan import Plan


def canaries(plan: Plan, devices: int) -> int:
    """Return how many of a profile's devices the first stage takes."""
    return min(devices, max(plan.min_canaries, math.ceil(plan.stages[0] * devices - 1e-9)))


def residual_risk(plan: Plan, devices: Mapping[str, int]) -> list[str]:
    """Return one sentence per thing that remains unproved even when every gate passes.

    Args:
        plan: the rollout's.
        devices: profile -> how many devices could take the candidate.
    """
    found = [_of_canaries(plan, profile, number) for profile, number in sorted(devices.items())]
    found.append(
        f"A stage may advance although the true error share is {plan.error_threshold:.2%} with probability {plan.beta:.0%};"
        f" a good release is rolled back by mistake with probability {plan.alpha:.0%} per hardware profile at most."
    )
    if plan.p0_reason:
        found.append(f"The plan calls {plan.error_threshold:.2%} errors good: {plan.p0_reason}")
    if plan.limits.accuracy is None:
        found.append("The plan sets no limit for the accuracy on devices.")
    found.append("Errors that neither the runtime nor the application notices are not counted at all.")
    return found


def unseen_failures(trials: int, confidence: float = 0.95) -> str:
    """Return what no failure in `trials` proves (Clopper-Pearson; the rule of three is its approximation)."""
    upper = clopper_pearson(0, trials, confidence)[1]
    return f"0 failures in {trials} only bounds failures below {upper * 100:.1f} % (at {confidence:.0%} confidence)"


def _of_canaries(plan: Plan, profile: str, number: int) -> str:
    first = canaries(plan, number)
    return (
        f"{profile}: of {number} devices {first} go first: {unseen_failures(first)}; with all of them {_all(number)}."
    )


def _all(number: int) -> str:
    return f"below {clopper_pearson(0, number)[1] * 100:.1f} %"
