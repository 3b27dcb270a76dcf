"""`make bench SUITE=canary`: what rules for rolling back do to good releases, and how fast they catch bad ones.

Simulated, seeded, through the product's own functions; a sample of the runs goes through `decide` look by look, and both
must agree. Beside ours: the requirement's rule read literally, with and without a minimum sample, and the checks that Argo
Rollouts and Flagger document, with the requirement's 1 % in place of their thresholds. At the edge of the null, where both arms
err at p0, the alarms alone are watched: Ville's bound must hold there too. ARGS="--quick" takes a tenth of the runs,
ARGS="--report canary.html" writes a page with plots.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelfleet.benchmarks.suites._canary_report import Outcome, page, sparkline
from modelfleet.benchmarks.suites._canary_rules import (
    NEVER,
    ORDER,
    SHARE,
    Rule,
    failed_checks,
    literal,
    ours,
    plans,
    promoted,
    replayed,
    tripped,
    without_restarts,
)
from modelfleet.benchmarks.suites._canary_traffic import LOOK_MINUTES, Scenario, draw
from modelfleet.benchmarks.suites._report import Target, bar, console, show, verdict
from modelfleet.policies.bounds import clopper_pearson
from modelfleet.policies.plan import parse_plan

SEED = 20260101
RUNS, CHUNK, REPLAYED = 10_000, 1000, 12
DAY, FOUR_HOURS, HOUR = 24 * 60, 4 * 60, 60
GOOD = tuple(Scenario(name=f"good, {rate}/min", rate=rate, minutes=DAY) for rate in (20, 100, 170))
"""170 a minute hold 5,100 in the window: where the literal rule from 5,000 on errs most."""
BAD = tuple(
    Scenario(name=f"{share:.1%} errors", rate=20, minutes=DAY, errors=share) for share in (0.015, 0.02, 0.05, 0.2)
)
LATE = Scenario(name="5 % errors from the 3rd hour on", rate=20, minutes=DAY, errors=0.05, fault_minute=120)
LATE_MINUTES = 12
CAUGHT = BAD[2]
EDGE = Scenario(name="1 % errors in both arms", rate=100, minutes=DAY, errors=SHARE, stable_errors=SHARE)

DEFAULT, UNSPLIT = plans()
WITHOUT, BEGINNING = "literal, no minimum", "literal, no minimum, from the first minute"
OURS, OURS_UNSPLIT, STAGES_ONLY = "ours", "ours, alpha not split", "ours, were it to start with stages only"
RULES: Mapping[str, Rule] = {
    WITHOUT: literal(0),
    BEGINNING: literal(0, full_window=False),
    "literal, from 3,000": literal(3000),
    f"literal, from {DEFAULT.literal.min_inferences:,}": literal(DEFAULT.literal.min_inferences),
    # analysis.md of argo-rollouts: interval: 5m, failureLimit: 3 (fails beyond it); successCondition >= 0.99 in place of 0.95
    "Argo: 5m, failureLimit 3": failed_checks(5, 3),
    # usage/metrics.md and the examples of flagger: interval: 1m, threshold: 5 (rolls back at it), thresholdRange.min: 99
    "Flagger: 1m, threshold 5": failed_checks(1, 4),
    STAGES_ONLY: without_restarts(DEFAULT),
    OURS_UNSPLIT: ours(UNSPLIT),
    OURS: ours(DEFAULT),
}


def main(arguments: Sequence[str]) -> int:
    """Simulate, show, judge; return the exit status."""
    options = _options(arguments)
    runs = RUNS // 10 if options.quick else RUNS
    random = np.random.default_rng(SEED)
    good = [simulate(scenario, runs, random) for scenario in GOOD]
    bad = [simulate(scenario, runs // 5, random) for scenario in (*BAD, LATE)]
    promotions = {rate: promotion_minutes(rate, runs // 2, random) for rate in (20, 100)}
    edge = edge_share(runs, random)
    differing = disagreements(random)
    _show_good(good, runs)
    _show_bad(bad)
    _show_detection(next(each for each in bad if each.scenario is CAUGHT))
    _show_promotions(promotions)
    console.print(
        f"The design says that the rule read literally rolls back 49 % of good models within 4 hours at 20 inferences a minute;"
        f" here {good[0].share_within(WITHOUT, FOUR_HOURS):.1%}, looked at every minute once the window is full,"
        f" {good[0].share_within(BEGINNING, FOUR_HOURS):.1%} from the first minute on."
    )
    console.print(
        f"At the edge of the null ({EDGE.name}) the alarms roll back {edge:.2%} within a day; alpha is {DEFAULT.alpha:.0%}."
    )
    console.print(f"Replayed through decide(): {REPLAYED} runs of each scenario, {differing} disagree.")
    if options.report is not None:
        options.report.write_text(page(good, bad, promotions, CAUGHT), encoding="utf-8")
        console.print(f"wrote {options.report}")
    return verdict("canary", _targets(good, bad, promotions, edge, differing))


def simulate(scenario: Scenario, runs: int, random: np.random.Generator) -> Outcome:
    """Return when each rule would have rolled back `runs` rollouts; a fault's time counts from when it began."""
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in RULES}
    for _ in range(max(1, runs // CHUNK)):
        traffic = draw(scenario, min(runs, CHUNK), random)
        for name, rule in RULES.items():
            found[name].append(_minutes(rule(traffic)) - scenario.fault_minute)
    return Outcome(scenario=scenario, minutes={name: np.concatenate(each) for name, each in found.items()})


def promotion_minutes(rate: int, runs: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Return when the evidence of good releases suffices to end a stage that has no bake time, in minutes."""
    scenario = Scenario(name="promotion", rate=rate, minutes=DAY)
    traffic = draw(scenario, min(runs, 2 * CHUNK), random)
    return _minutes(promoted(DEFAULT, traffic))


def edge_share(runs: int, random: np.random.Generator) -> float:
    """Return the share of rollouts that the alarms alone roll back where both arms err exactly at p0."""
    plan = parse_plan({"literal": {"min_inferences": 10**9}})
    chunks = [tripped(plan, draw(EDGE, min(runs, CHUNK), random)).look for _ in range(max(1, runs // CHUNK))]
    return float((np.concatenate(chunks) != NEVER).mean())


def disagreements(random: np.random.Generator) -> int:
    """Return how many runs `decide` itself rolls back at another look, or for another reason, than the tables say."""
    differing = 0
    for scenario in (
        Scenario(name="good", rate=100, minutes=HOUR),
        Scenario(name="bad", rate=20, minutes=HOUR, errors=0.05),
        Scenario(name="borderline", rate=200, minutes=HOUR, errors=0.012),
        Scenario(name="late", rate=20, minutes=HOUR, errors=0.08, fault_minute=HOUR // 2),
    ):
        traffic = draw(scenario, REPLAYED, random)
        quick = tripped(DEFAULT, traffic)
        for run in range(REPLAYED):
            look, guardrail = replayed(DEFAULT, traffic, run, scenario.looks)
            expected = "" if quick.look[run] == NEVER else ORDER[int(quick.guardrail[run])]
            differing += (look, guardrail) != (quick.look[run], expected)
    return differing


def _minutes(looks: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(looks == NEVER, np.inf, (looks + 1) * LOOK_MINUTES)


def _show_good(good: Sequence[Outcome], runs: int) -> None:
    columns = ["rolled back though good"]
    for each in good:
        columns += [f"{each.scenario.rate}/min, 4 h", f"{each.scenario.rate}/min, 24 h"]
    rows = [
        [name, *(_share(each.share_within(name, hours), runs) for each in good for hours in (FOUR_HOURS, DAY))]
        for name in RULES
    ]
    show(f"good releases: true error 0.5 %, {runs} rollouts (95 % upper bound of none)", columns, rows)


def _show_bad(bad: Sequence[Outcome]) -> None:
    columns = ["minutes to the rollback: median / p90", *(each.scenario.name for each in bad)]
    rows = [
        [name, *(f"{_time(each.quantile(name, 0.5))} / {_time(each.quantile(name, 0.9))}" for each in bad)]
        for name in RULES
    ]
    show("bad releases at 20 inferences a minute over the cohort", columns, rows)


def _show_detection(caught: Outcome) -> None:
    rows = [
        (
            name,
            f"{caught.quantile(name, 0.5):.1f}",
            bar(min(caught.quantile(name, 0.5), HOUR), HOUR),
            sparkline(minutes, HOUR),
        )
        for name, minutes in caught.minutes.items()
    ]
    show(
        "5 % errors at 20 a minute: median, and who is rolled back by when (0 to 60 minutes)",
        ("rule", "min", "", ""),
        rows,
    )


def _show_promotions(promotions: Mapping[int, NDArray[np.float64]]) -> None:
    rows = [
        (
            f"{rate}/min",
            *(_time(float(np.quantile(minutes, q, method="higher"))) for q in (0.1, 0.5, 0.9)),
            sparkline(minutes, 180),
        )
        for rate, minutes in promotions.items()
    ]
    show(
        "a stage of a good release, bake excluded: minutes until the evidence suffices",
        ("cohort", "p10", "median", "p90", ""),
        rows,
    )


def _targets(
    good: Sequence[Outcome],
    bad: Sequence[Outcome],
    promotions: Mapping[int, NDArray[np.float64]],
    edge: float,
    differing: int,
) -> list[Target]:
    caught = next(each for each in bad if each.scenario is CAUGHT)
    late = next(each for each in bad if each.scenario is LATE)
    false = [
        Target(
            what=f"good releases rolled back, {each.scenario.rate}/min, {hours // 60} h",
            got=100 * each.share_within(OURS, hours),
            limit=1.0,
            unit="%",
        )
        for each in good
        for hours in (FOUR_HOURS, DAY)
    ]
    return [
        *false,
        Target(
            what="rolled back by the alarms at 1 % errors, 24 h", got=100 * edge, limit=100 * DEFAULT.alpha, unit="%"
        ),
        Target(
            what="5 % errors caught, median, alpha = 0.01", got=caught.quantile(OURS_UNSPLIT, 0.5), limit=10, unit="min"
        ),
        Target(
            what=f"the same, alpha = 0.01 / {DEFAULT.alpha / DEFAULT.guardrail_alpha:.0f}",
            got=caught.quantile(OURS, 0.5),
            limit=10,
            unit="min",
        ),
        Target(
            what="5 % errors after two good hours, median, the same",
            got=late.quantile(OURS, 0.5),
            limit=LATE_MINUTES,
            unit="min",
        ),
        Target(what="a stage of a good release, median", got=float(np.median(promotions[100])), limit=30, unit="min"),
        Target(what="runs in which decide() disagrees", got=differing, limit=0),
    ]


def _share(share: float, runs: int) -> str:
    return f"{share:.2%}" if share else f"0 (≤ {clopper_pearson(0, runs)[1]:.2%})"


def _time(minutes: float) -> str:
    if np.isnan(minutes):
        return "all before"
    return f"{minutes:.1f}" if minutes < DAY + 1 else "> 24 h"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="canary", description="Rules for rolling back, simulated")
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--report", type=Path, help="write an HTML page with plots there")
    return parser.parse_args(list(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
