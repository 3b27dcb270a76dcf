"""What the evidence for a release does not prove, in figures: what an approver is shown before signing.

How long a rollout takes at the least, what alpha and beta mean, which failures its canaries can miss, and which error share is
caught while a stage bakes, given the fleet's size and traffic.
"""

import math
from collections.abc import Callable, Mapping

from modelfleet.policies.bounds import clopper_pearson
from modelfleet.policies.plan import Plan
from modelfleet.rollout.decisions.statistics import Counts, log_alarm, log_over_starts, log_promotion

ASSUMED_PER_MINUTE = 20.0
"""Inferences a minute over a stage's devices, where none were counted yet: the requirement's figure."""
CAUGHT = 0.95
"""How probably an error share is caught that is called detectable."""


def canaries(plan: Plan, devices: int) -> int:
    """Return how many of a profile's devices the first stage takes."""
    return min(devices, max(plan.min_canaries, math.ceil(plan.stages[0] * devices - 1e-9)))


def residual_risk(
    plan: Plan,
    devices: Mapping[str, int],
    traffic: Mapping[str, float | None] | None = None,
    *,
    emergency: bool = False,
) -> list[str]:
    """Return one sentence per thing that remains unproved even when every gate passes.

    Args:
        plan: the rollout's.
        devices: profile -> how many devices could take the candidate.
        traffic: profile -> inferences a minute over all of these, as last counted; None where nothing was.
        emergency: whether it skips its waits.
    """
    rates = traffic or {}
    found: list[str] = []
    for profile, number in sorted(devices.items()):
        found.append(_of_canaries(plan, profile, number))
        if not emergency:
            found.append(_of_detection(plan, profile, number, rates.get(profile)))
    found.append(_of_time(emergency=emergency, plan=plan))
    found += _of_errors(plan)
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


def smallest_caught(plan: Plan, inferences: int, probability: float = CAUGHT) -> float | None:
    """Return the smallest error share that trips the first stage's alarm within so many inferences; None: no share surely does.

    The alarm looks all the time; here it is asked only at the end, so what is really caught is this or smaller. It trips from
    X errors on; the share p with P(Binomial(inferences, p) >= X) = `probability` is an upper Clopper-Pearson bound of X - 1.
    """
    limit = math.log(1 / plan.guardrail_alpha)

    def trips(errors: int) -> bool:
        evidence = log_alarm(Counts(n=inferences, errors=errors), plan.error_threshold)
        return log_over_starts([evidence], len(plan.stages), ()) >= limit

    if inferences < 1 or not trips(inferences):
        return None
    least = _first(trips, math.ceil(plan.error_threshold * inferences), inferences)
    share = clopper_pearson(max(0, least - 1), inferences, probability)[1]
    return None if share >= 1.0 else share


def inferences_to_promote(plan: Plan) -> int:
    """Return how many inferences without any error let a stage advance."""
    limit = math.log(1 / plan.beta)

    def suffices(n: int) -> bool:
        return log_promotion(Counts(n=n, errors=0), plan.error_threshold) >= limit

    enough = 1
    while not suffices(enough):
        enough *= 2
    return _first(suffices, 1, enough)


def least_minutes(plan: Plan) -> list[float]:
    """Return how long each stage takes at the least, and the soak: minutes."""
    return [seconds / 60 for seconds in (*plan.bake_seconds, plan.soak_seconds)]


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest number in [low, high] for which `holds`, which holds at `high` and goes on holding once it does."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _of_canaries(plan: Plan, profile: str, number: int) -> str:
    first = canaries(plan, number)
    return (
        f"{profile}: of {number} devices {first} go first: {unseen_failures(first)}; with all of them {_all(number)}."
    )


def _of_detection(plan: Plan, profile: str, number: int, rate: float | None) -> str:
    """Say which error share the first stage catches while it bakes."""
    of_stage = ASSUMED_PER_MINUTE if rate is None else rate * canaries(plan, number) / max(1, number)
    known = "assumed, none were counted yet" if rate is None else "as last counted"
    minutes = plan.bake_seconds[0] / 60
    seen = f"{profile}: {of_stage:.3g} inferences a minute on the first stage's devices ({known}), {minutes:.0f} min of bake time"
    share = smallest_caught(plan, round(of_stage * minutes))
    if share is None:
        return f"{seen}: no error share is sure to be caught in it."
    return f"{seen}: an error share of {share:.1%} or more is caught with {CAUGHT:.0%} probability, a smaller one may go on."


def _of_time(plan: Plan, *, emergency: bool) -> str:
    if emergency:
        return (
            "An emergency waits for no bake time, no soak and no evidence of inferences: each stage begins once"
            f" {plan.min_canaries} devices of a profile have committed. Faults that take time to show reach every device."
        )
    shares = [f"{share:.0%}" for share in plan.stages] + ["soak"]
    times = [f"{name} {minutes:.0f} min" for name, minutes in zip(shares, least_minutes(plan), strict=True)]
    return (
        f"At the least it takes {sum(least_minutes(plan)):.0f} min: {', '.join(times)}; a stage without"
        f" {inferences_to_promote(plan)} inferences free of errors waits for more, up to {plan.max_hold_seconds / 3600:.3g} h."
    )


def _of_errors(plan: Plan) -> list[str]:
    return [
        f"alpha = {plan.alpha:.2%}: a good release, one with at most {plan.error_threshold:.2%} errors, is rolled back by mistake"
        f" with that probability per hardware profile at most, however long it runs.",
        f"beta = {plan.beta:.0%}: a stage may advance although the true error share is {plan.error_threshold:.2%}"
        " with that probability.",
    ]


def _all(number: int) -> str:
    return f"below {clopper_pearson(0, number)[1] * 100:.1f} %"
