"""What a simulation came to, as plain values: for the summary, for `--json` and for the page."""

import math
from typing import Any

from modelfleet.service.simulate.ledger import share_at
from modelfleet.service.simulate.simulation import CANDIDATE, STABLE, Simulation

REQUIRED_SECONDS, TARGET_SECONDS = 900.0, 300.0
"""A device is to have a release within 15 minutes of hearing of it, and shall within 5."""
EXPECTED = {"completed": ("COMPLETED",), "rolled-back": ("ROLLED_BACK", "ROLLBACK_INCOMPLETE")}


def outcome_of(simulation: Simulation) -> dict[str, Any]:
    """Return the outcome as JSON values; seconds are of the simulation's clock."""
    setup, ledger, watch = simulation.setup, simulation.ledger, simulation.watch
    devices = simulation.fleet.devices
    running = watch.running()
    twice = sum(1 for each in devices if any(times > 1 for times in each.machine.store.installs.values()))
    return {
        "state": watch.state,
        "devices": setup.devices,
        "profiles": {name: round(share, 4) for name, share in setup.mix.items()},
        "seconds": round(simulation.scheduler.now(), 1),
        "behind_seconds": round(simulation.scheduler.behind, 1),
        "events": [{"seconds": round(at, 1), "state": state} for at, state in ledger.events],
        "verdicts": {
            profile: [{"seconds": round(at, 1), "verdict": verdict, "reason": reason} for at, verdict, reason in trail]
            for profile, trail in watch.trail.items()
        },
        "running": {"stable": running.get(STABLE, 0), "candidate": running.get(CANDIDATE, 0)},
        "deployed": {profile: _times(values) for profile, values in sorted(ledger.deployed.items())},
        "ended": {profile: dict(counts) for profile, counts in sorted(ledger.ended.items())},
        "failures": dict(ledger.failures),
        "refusals": dict(ledger.refusals),
        "restarts": ledger.restarts,
        "installed_twice": twice,
        "statuses": watch.wrong_statuses(),
        "messages": ledger.samples[-1].messages if ledger.samples else 0,
    }


def summary(outcome: dict[str, Any]) -> list[str]:
    """Return the outcome in lines."""
    lines = [
        f"{outcome['state'] or 'NOT STARTED'} after {shown_seconds(outcome['seconds'])}:"
        f" {outcome['devices']:,} devices, {outcome['running']['candidate']:,} run the candidate,"
        f" {outcome['running']['stable']:,} the stable release; {outcome['messages']:,} messages"
    ]
    for profile, trail in outcome["verdicts"].items():
        for each in trail:
            reason = f": {each['reason']}" if each["reason"] else ""
            lines.append(f"  {shown_seconds(each['seconds']):>9}  {profile}  {each['verdict']}{reason}")
    for profile, times in outcome["deployed"].items():
        lines.append(
            f"  {profile}: {times['count']:,} deployed, median {shown_seconds(times['median'])},"
            f" 95 % within {shown_seconds(times['p95'])}, {times['within_target']:.2%} within 5 minutes"
        )
    ended = {
        profile: ", ".join(f"{k} {v:,}" for k, v in counts.items()) for profile, counts in outcome["ended"].items()
    }
    lines += [f"  {profile}: {text}" for profile, text in ended.items()]
    if outcome["failures"]:
        lines.append("  failures: " + ", ".join(f"{kind} {count:,}" for kind, count in outcome["failures"].items()))
    if outcome["behind_seconds"] >= 1.0:
        late = shown_seconds(outcome["behind_seconds"])
        lines.append(f"  this machine was too slow for so many devices: their clock fell behind by up to {late}")
    statuses = outcome["statuses"]
    lines.append(
        f"  installed twice: {outcome['installed_twice']}, wrong statuses: {statuses['wrong']},"
        f" missing: {statuses['missing']}, restarts: {outcome['restarts']:,}"
    )
    return lines


def as_expected(outcome: dict[str, Any], expected: str | None) -> bool:
    """Whether the rollout ended as expected; without an expectation, whether it ended at all, and no status is wrong."""
    if expected is not None:
        return outcome["state"] in EXPECTED[expected]
    return outcome["state"] in {state for states in EXPECTED.values() for state in states}


def shown_seconds(seconds: float) -> str:
    """Return seconds as people say them."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _times(values: list[float]) -> dict[str, float]:
    within = sum(value <= TARGET_SECONDS for value in values) / len(values) if values else math.nan
    return {
        "count": len(values),
        "median": round(share_at(values, 0.5), 1),
        "p95": round(share_at(values, 0.95), 1),
        "longest": round(max(values), 1) if values else math.nan,
        "within_target": round(within, 4),
    }
