"""Distributions as text and as a page: empirical distribution functions, inline SVG, no script, no font, no request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from modelfleet.benchmarks.suites._canary_traffic import Scenario

BLOCKS = " ▁▂▃▄▅▆▇█"
CELLS = 24
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 760, 260, 44, 30, 34, 14
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "4 4", "1 3", "10 2 2 2", "14 3 1 3")
COLOURS = ("#b3261e", "#e2711d", "#b08900", "#6a994e", "#7b2d8b", "#33658a", "#5c7a99", "#0b6e4f", "#8c5e3c")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:.25rem .6rem;border-bottom:1px solid #dde3e9;text-align:right}
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}text{font-size:12px;fill:currentColor}
.grid{stroke:#dde3e9}
@media(prefers-color-scheme:dark){body{background:#12181f;color:#dfe7ef}.grid,th,td{stroke:#33414f;border-color:#33414f}}"""


MIN_RUNS = 20
"""Where fewer runs come to the fault, nearly all were rolled back before it: there is no time to tell."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """When each run was rolled back under each rule, in minutes from the fault on; infinite: never, not above 0: before it."""

    scenario: Scenario
    minutes: Mapping[str, NDArray[np.float64]]

    def share_within(self, rule: str, minutes: float) -> float:
        """Return the share of the runs that were rolled back within `minutes`."""
        return float((self.minutes[rule] <= minutes).mean())

    def quantile(self, rule: str, share: float) -> float:
        """Return by when `share` of the runs that came to the fault were rolled back, infinite where fewer ever were."""
        minutes = self.minutes[rule]
        caught = minutes[minutes > 0]
        return float(np.quantile(caught, share, method="higher")) if len(caught) >= MIN_RUNS else np.nan


def sparkline(minutes: NDArray[np.float64], longest: float) -> str:
    """Return the share that has happened by each of 24 moments up to `longest`, a block high as the share."""
    moments = longest * np.arange(1, CELLS + 1) / CELLS
    shares = [(minutes <= moment).mean() for moment in moments]
    return "".join(BLOCKS[round(share * (len(BLOCKS) - 1))] for share in shares)


def page(
    good: Sequence[Outcome],
    bad: Sequence[Outcome],
    promotions: Mapping[int, NDArray[np.float64]],
    caught: Scenario,
) -> str:
    """Return the whole report as HTML."""
    found = next(each for each in bad if each.scenario is caught)
    parts = [
        "<h1>What rules for rolling back do</h1>",
        *(_good(each) for each in good),
        curves(
            "5 % errors at 20 inferences a minute: rolled back by minute", found.minutes, 60, "minutes since the start"
        ),
        *(_times(each) for each in bad),
        curves(
            "a stage of a good release: evidence suffices by minute",
            {f"{rate} inferences a minute": minutes for rate, minutes in promotions.items()},
            180,
            "minutes since the stage began, bake excluded",
        ),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>canary rules</title><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def curves(title: str, lines: Mapping[str, NDArray[np.float64]], longest: float, axis: str) -> str:
    """Return empirical distribution functions as SVG, each with a colour and a dash pattern of its own, and a legend."""
    right, bottom = WIDTH - RIGHT, TOP + HEIGHT
    total = bottom + BOTTOM + 18 * len(lines)

    def x(minute: float) -> float:
        return LEFT + (right - LEFT) * minute / longest

    def y(share: float) -> float:
        return bottom - HEIGHT * share

    parts = [f'<text x="0" y="16" style="font-weight:600">{escape(title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for minute in np.linspace(0, longest, 7):
        parts.append(f'<text x="{x(minute):.1f}" y="{bottom + 15}" text-anchor="middle">{minute:g}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">{escape(axis)}</text>')
    moments = np.linspace(0, longest, 181)
    for place, (name, minutes) in enumerate(lines.items()):
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
        points = " ".join(f"{x(moment):.1f},{y(float((minutes <= moment).mean())):.1f}" for moment in moments)
        pen = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        row = bottom + BOTTOM + 18 * place + 8
        parts.append(f'<polyline {pen} points="{points}"><title>{escape(name)}</title></polyline>')
        parts.append(f'<line {pen} x1="{LEFT}" x2="{LEFT + 40}" y1="{row}" y2="{row}"/>')
        parts.append(f'<text x="{LEFT + 50}" y="{row + 4}">{escape(name)}</text>')
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {total}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _good(outcome: Outcome) -> str:
    rows = [
        (name, f"{outcome.share_within(name, 240):.2%}", f"{outcome.share_within(name, 1440):.2%}")
        for name in outcome.minutes
    ]
    return _table(f"Rolled back though {outcome.scenario.name}", ("rule", "within 4 h", "within 24 h"), rows)


def _times(outcome: Outcome) -> str:
    def shown(minutes: float) -> str:
        if np.isnan(minutes):
            return "all before the fault"
        return f"{minutes:.1f}" if np.isfinite(minutes) else "never in 24 h"

    rows = [(name, shown(outcome.quantile(name, 0.5)), shown(outcome.quantile(name, 0.9))) for name in outcome.minutes]
    return _table(f"{outcome.scenario.name}, 20 inferences a minute: minutes", ("rule", "median", "p90"), rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><tr>{header}</tr>{body}</table>"
