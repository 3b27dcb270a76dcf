"""Charts over time as inline SVG, beside `plots`: lines, stacked areas and distribution functions. No script, no request.

Colours say which series; each series is also named at its end or in the legend, and told in the chart's label, for who sees none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 260
_LEFT: Final = 56
_RIGHT: Final = 12
_TOP: Final = 30
_BOTTOM: Final = 34
COLOURS: Final = (
    "#2563eb",
    "#d97706",
    "#059669",
    "#dc2626",
    "#7c3aed",
    "#0891b2",
    "#be185d",
    "#65a30d",
    "#64748b",
    "#a16207",
)
MOST_POINTS: Final = 600
"""Points a series keeps: more cannot be seen, and make the page long."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A line across the chart at a value of one axis, with what it means."""

    value: float
    shown: str
    across: bool = True
    """True: at a height; False: at a place of the horizontal axis."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What the axes mean: their units as words, and how their values are written."""

    x: str
    y: str
    low: float = 0.0
    high: float | None = None


Points = Sequence[tuple[float, float]]


def lines(title: str, series: Mapping[str, Points], axes: Axes, marks: Sequence[Mark] = ()) -> str:
    """Return one line a series, (x, y) in order of x each; what is no finite number leaves a gap."""
    frame = _Frame.around(series, axes, marks)
    drawn = [
        f'<path class="line" style="stroke:{_colour(place)}" d="{_path(thinned(points), frame)}"/>'
        for place, points in enumerate(series.values())
    ]
    return _chart(title, series, drawn, frame, axes, marks)


def areas(title: str, series: Mapping[str, Points], axes: Axes) -> str:
    """Return areas stacked over each other, the first at the bottom; all series have the same places."""
    below: list[float] = []
    stacked: dict[str, Points] = {}
    drawn: list[tuple[Points, Points]] = []
    for name, given in series.items():
        points = thinned(given)
        below = below or [0.0] * len(points)
        above = [low + value for low, (_, value) in zip(below, points, strict=True)]
        places = [x for x, _ in points]
        drawn.append((list(zip(places, above, strict=True)), list(zip(places, below, strict=True))))
        stacked[name] = drawn[-1][0]
        below = above
    frame = _Frame.around(stacked, axes, ())
    paths = [
        f'<path class="area" style="fill:{_colour(place)}" d="{_path(top, frame)} {_path(bottom[::-1], frame, "L")} Z"/>'
        for place, (top, bottom) in enumerate(drawn)
    ]
    return _chart(title, series, paths, frame, axes, ())


def distribution(title: str, series: Mapping[str, Sequence[float]], unit: str, marks: Sequence[Mark] = ()) -> str:
    """Return the empirical distribution function of each series: the share of its values up to each value."""
    steps: dict[str, Points] = {}
    for name, values in series.items():
        ordered = sorted(value for value in values if math.isfinite(value))
        found: list[tuple[float, float]] = []
        for place, value in enumerate(ordered):
            found += [(value, place / len(ordered)), (value, (place + 1) / len(ordered))]
        steps[name] = found
    return lines(title, steps, Axes(x=unit, y="share", high=1.0), marks)


def thinned(points: Points) -> Points:
    """Return at most `MOST_POINTS` points, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(place * step)] for place in range(MOST_POINTS)]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, series: Mapping[str, Points], axes: Axes, marks: Sequence[Mark]) -> "_Frame":
        points = [point for each in series.values() for point in each if math.isfinite(point[1])]
        across = [mark.value for mark in marks if mark.across]
        along = [mark.value for mark in marks if not mark.across]
        places = [x for x, _ in points] + along or [0.0]
        highest = axes.high if axes.high is not None else max([y for _, y in points] + across, default=1.0)
        lowest = min([axes.low, *(y for _, y in points)])
        return cls(
            left=min(places), right=max(max(places), min(places) + 1e-9), low=lowest, high=max(highest, lowest + 1e-9)
        )

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _path(points: Points, frame: _Frame, first: str = "M") -> str:
    parts: list[str] = []
    command = first
    for x, y in points:
        if not math.isfinite(y):
            command = "M"
            continue
        parts.append(f"{command}{frame.x(x):.1f} {frame.y(y):.1f}")
        command = "L"
    return " ".join(parts)


def _chart(
    title: str, series: Mapping[str, object], drawn: Sequence[str], frame: _Frame, axes: Axes, marks: Sequence[Mark]
) -> str:
    label = escape(f"{title}; {axes.y} over {axes.x}: {', '.join(series)}", quote=True)
    parts = [f'<text class="title" x="0" y="17">{escape(title)}</text>', *_grid(frame, axes), *drawn]
    parts += [_mark(mark, frame) for mark in marks]
    legend = "".join(
        f'<span><i style="background:{_colour(place)}"></i>{escape(name)}</span>' for place, name in enumerate(series)
    )
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="chart">{picture}<figcaption>{legend}</figcaption></figure>'


def _grid(frame: _Frame, axes: Axes) -> list[str]:
    parts: list[str] = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{shown(value)}</text>')
    for value in ticks(frame.left, frame.right):
        parts.append(f'<text class="tick" x="{frame.x(value):.1f}" y="{HEIGHT - _BOTTOM + 16}">{shown(value)}</text>')
    parts.append(f'<text class="tick end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 2}">{escape(axes.x)}</text>')
    return parts


def _mark(mark: Mark, frame: _Frame) -> str:
    if mark.across:
        y = frame.y(mark.value)
        line = f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        return f'{line}<text class="tick end" x="{WIDTH - _RIGHT}" y="{y - 4:.1f}">{escape(mark.shown)}</text>'
    x = frame.x(mark.value)
    line = f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
    return f'{line}<text class="tick" x="{x:.1f}" y="{_TOP - 4}">{escape(mark.shown)}</text>'


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round values between the ends: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [step * place for place in range(first, math.floor(high / step + 1e-9) + 1)]


def shown(value: float) -> str:
    """Return the value as an axis tells it."""
    return f"{value:,.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.3g}"


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
