"""Plots as inline SVG, made here: no script, no font, no request. Every text is escaped.

A row is a precision; its colour says what became of it, and its mark and the table beside say so too, for who sees no colours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 460
_LABEL: Final = 128
_VALUE: Final = 84
_ROW: Final = 26
_HEAD: Final = 30
_FOOT: Final = 26
_MARKS: Final = {"chosen": "★", "held": "", "refused": "✕", "not tried": "–"}


@dataclass(frozen=True, kw_only=True)
class PlotRow:
    """One row: its label, value (None: unknown), the value as it is shown, and the verdict that gives its colour."""

    label: str
    value: float | None
    shown: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A line across the plot: what a variant must stay under, or over."""

    value: float
    shown: str


def bars(title: str, rows: Sequence[PlotRow], limit: Limit | None = None) -> str:
    """Return horizontal bars from 0; a limit far beyond every bar is told in words alone, so that bars stay readable."""
    highest = max((row.value for row in rows if row.value is not None), default=0.0)
    drawn = limit if limit is not None and limit.value <= 4 * highest else None
    top = max(highest, drawn.value if drawn else 0.0) or 1.0

    def mark(row: PlotRow, y: float) -> str:
        width = max(_span(row.value or 0.0, 0.0, top), 1.5)
        return f'<rect class="{_class(row)}" x="{_LABEL}" y="{y + 5:.1f}" width="{width:.1f}" height="{_ROW - 10}" rx="3"/>'

    return _plot(title, rows, mark, _Frame(low=0.0, high=top, ticks=[("0", 0.0)], limit=limit, line=drawn))


def dots(title: str, rows: Sequence[PlotRow], limit: Limit | None = None) -> str:
    """Return dots between the lowest and the highest value, for what has no meaningful zero (shares of nearly 1)."""
    values = [row.value for row in rows if row.value is not None] + ([limit.value] if limit else [])
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = (high - low) * 0.08 or 0.01
    low, high = low - margin, min(high + margin, max(1.0, high))
    ticks = [(f"{low:.3f}", low), (f"{high:.3f}", high)]
    frame = _Frame(low=low, high=high, ticks=ticks, limit=limit, line=limit)
    return _plot(title, rows, lambda row, y: _dot(row, y, row.value or 0.0, low, high), frame)


def logarithmic_dots(title: str, rows: Sequence[PlotRow]) -> str:
    """Return dots on a scale of powers of ten; values of 0 stand at its start."""
    exponents = [math.log10(row.value) for row in rows if row.value is not None and 0 < row.value < math.inf]
    low, high = math.floor(min(exponents, default=-6.0)), math.ceil(max(exponents, default=0.0))
    low = low - 1 if low == high else low

    def mark(row: PlotRow, y: float) -> str:
        value = row.value or 0.0
        place = low if value <= 0 else high if value == math.inf else math.log10(value)
        return _dot(row, y, place, low, high)

    step = max(1, (high - low) // 4)
    ticks = [(f"1e{exponent}", float(exponent)) for exponent in range(low, high + 1, step)]
    return _plot(title, rows, mark, _Frame(low=low, high=high, ticks=ticks))


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What lies around the marks: the ends of the scale, the places on it that are named, the limit and its line."""

    low: float
    high: float
    ticks: Sequence[tuple[str, float]]
    limit: Limit | None = None
    line: Limit | None = None


def _plot(title: str, rows: Sequence[PlotRow], mark: Callable[[PlotRow, float], str], frame: _Frame) -> str:
    height = _HEAD + _ROW * len(rows) + _FOOT
    bottom = _HEAD + _ROW * len(rows)
    parts = [f'<text class="title" x="0" y="17">{escape(title)}</text>', *_ticks(frame, bottom)]
    for position, row in enumerate(rows):
        y = _HEAD + _ROW * position
        parts.append(_labelled(row, y, mark(row, y) if row.value is not None else ""))
    if frame.limit is not None:
        parts.append(_limit(frame, frame.limit, bottom))
    label = escape(f"{title}: " + ", ".join(f"{row.label} {row.shown}" for row in rows), quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _ticks(frame: _Frame, bottom: float) -> Iterator[str]:
    for shown, value in frame.ticks:
        x = _LABEL + _span(value, frame.low, frame.high)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_HEAD}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 15}">{escape(shown)}</text>'


def _labelled(row: PlotRow, y: float, mark: str) -> str:
    middle = y + _ROW / 2 + 4
    sign = _MARKS.get(row.verdict, "")
    label = f"{row.label} {sign}".strip()
    return (
        f"<g><title>{escape(f'{row.label}: {row.shown} ({row.verdict})')}</title>"
        f'<text class="label" x="{_LABEL - 10}" y="{middle:.1f}">{escape(label)}</text>{mark}'
        f'<text class="value" x="{WIDTH}" y="{middle:.1f}">{escape(row.shown)}</text></g>'
    )


def _limit(frame: _Frame, limit: Limit, bottom: float) -> str:
    text = f'<text class="tick end" x="{WIDTH}" y="17">limit {escape(limit.shown)}</text>'
    if frame.line is None:
        return text
    x = _LABEL + _span(frame.line.value, frame.low, frame.high)
    return f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_HEAD - 4}" y2="{bottom}"/>{text}'


def _dot(row: PlotRow, y: float, value: float, low: float, high: float) -> str:
    x, middle = _LABEL + _span(value, low, high), y + _ROW / 2
    line = f'<line class="grid" x1="{_LABEL}" x2="{x:.1f}" y1="{middle}" y2="{middle}"/>'
    return f'{line}<circle class="{_class(row)}" cx="{x:.1f}" cy="{middle}" r="5"/>'


def _span(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.0
    return min(max(share, 0.0), 1.0) * (WIDTH - _LABEL - _VALUE)


def _class(row: PlotRow) -> str:
    return row.verdict.replace(" ", "-") if row.verdict in _MARKS else "refused"
