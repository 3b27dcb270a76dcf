"""The report of a simulation: one HTML page with charts, which loads nothing."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.converters.charts import Axes, Mark, areas, distribution, lines
from modelfleet.converters.report import POLICY, STYLE
from modelfleet.service.simulate.ledger import GUARDRAILS, Ledger, Sample
from modelfleet.service.simulate.outcome import REQUIRED_SECONDS, TARGET_SECONDS, summary

MORE_STYLE: Final = (Path(__file__).with_name("report.css")).read_text(encoding="utf-8")
_TARGETS: Final = (
    Mark(value=TARGET_SECONDS / 60, shown="5 min", across=False),
    Mark(value=REQUIRED_SECONDS / 60, shown="15 min", across=False),
)


def render(title: str, facts: Sequence[tuple[str, str]], outcome: dict[str, Any], ledger: Ledger) -> str:
    """Return the page as one HTML document.

    Args:
        facts: what was simulated, as (name, value).
        outcome: see `outcome_of`.
        ledger: its samples are what is drawn.
    """
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY, quote=True)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{MORE_STYLE}</style></head>'
    )
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    told = escape("\n".join(summary(outcome)))
    charts = "".join(_charts(ledger))
    return f"{head}<body><h1>{escape(title)}</h1><dl>{listed}</dl><pre>{told}</pre>{charts}</body></html>\n"


def _charts(ledger: Ledger) -> Iterator[str]:
    samples = ledger.samples
    hours = samples[-1].seconds > 7200 if samples else False
    unit, scale = ("hours", 3600.0) if hours else ("minutes", 60.0)
    states = [state.value for state in DeviceState if any(sample.states.get(state.value) for sample in samples)]
    by_state = {name: [(each.seconds / scale, each.states.get(name, 0)) for each in samples] for name in states}
    yield areas("Devices per state", by_state, Axes(x=unit, y="devices"))
    versions = sorted({version for sample in samples for version in sample.running})
    by_version = {name: [(each.seconds / scale, each.running.get(name, 0)) for each in samples] for name in versions}
    by_version["online"] = [(each.seconds / scale, each.online) for each in samples]
    yield lines("Devices per version, and online", by_version, Axes(x=unit, y="devices"))
    profiles = sorted({profile for sample in samples for profile in sample.verdicts})
    cohort = {name: [(each.seconds / scale, each.cohort.get(name, 0.0)) for each in samples] for name in profiles}
    yield lines("Cohort: share of the devices that may have the candidate", cohort, Axes(x=unit, y="share", high=1.0))
    for profile in profiles:
        yield _guardrails(profile, samples, unit, scale)
    if ledger.deployed:
        minutes = {name: [value / 60 for value in values] for name, values in sorted(ledger.deployed.items())}
        yield distribution("Deployment time: from hearing of the candidate to running it", minutes, "minutes", _TARGETS)


def _guardrails(profile: str, samples: Sequence[Sample], unit: str, scale: float) -> str:
    series = {
        name: [
            (each.seconds / scale, max(-10.0, each.e_values[profile][name]))
            for each in samples
            if profile in each.e_values
        ]
        for name in GUARDRAILS
    }
    limit = next((each.limits[profile] for each in reversed(samples) if profile in each.limits), 0.0)
    title = f"Guardrails of {profile}: logarithm of the e-value (drawn from -10 up)"
    return lines(title, series, Axes(x=unit, y="log e", high=1.2 * limit), [Mark(value=limit, shown="alarm")])
