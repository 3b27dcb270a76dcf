"""The report of a version: one HTML page with plots and a table of every precision tried, per profile.

It loads nothing: style and plots stand in it, and its own policy forbids every request. Names and reasons come from uploads
and libraries, so that all text is escaped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from modelfleet.converters.candidate import Candidate
from modelfleet.converters.plots import Limit, PlotRow, bars, dots, logarithmic_dots

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page's Content-Security-Policy: whoever serves it sends it as a header too."""
STYLE: Final = (Path(__file__).with_name("report.css")).read_text(encoding="utf-8")
_UNITS: Final = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))
COLUMNS: Final[Mapping[str, Callable[[Candidate], str]]] = {
    "precision": lambda row: row.precision,
    "verdict": lambda row: row.verdict,
    "size": lambda row: shown_bytes(row.size_bytes),
    "smaller": lambda row: "" if row.ratio is None else f"{row.ratio:.2f} ×",
    "memory": lambda row: shown_bytes(row.memory_bytes),
    "p50 ms": lambda row: shown_number(row.p50_ms),
    "p95 ms": lambda row: shown_number(row.p95_ms),
    "max error": lambda row: shown_number(row.max_error),
    "mean error": lambda row: shown_number(row.mean_error),
    "accuracy": lambda row: "" if row.accuracy is None else f"{row.accuracy:.4f}",
    "points lost": lambda row: "" if row.points_lost is None else f"{row.points_lost:.2f}",
    "best batch": lambda row: shown_batch(row),
    "reason": lambda row: shown_reason(row),
}
"""The table's columns, on the page and in a terminal."""
_FIGURES: Final = tuple(name for name in COLUMNS if name != "reason")


@dataclass(frozen=True, kw_only=True)
class ReportProfile:
    """One profile of a version: what was tried for it. limits None: not known; note: what went wrong, "" for nothing."""

    name: str
    summary: str
    candidates: Sequence[Candidate]
    latency_limit_ms: float | None = None
    accuracy_limit: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """A version, or a model that was converted here: its facts as (name, value), and its profiles."""

    title: str
    facts: Sequence[tuple[str, str]]
    profiles: Sequence[ReportProfile]
    note: str = ""


def render(page: ReportPage) -> str:
    """Return the page as one HTML document."""
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY, quote=True)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.facts)
    note = f"<p>{escape(page.note)}</p>" if page.note else ""
    body = "".join(_section(profile) for profile in page.profiles)
    return f"{head}<body><h1>{escape(page.title)}</h1>{note}<dl>{facts}</dl>{body}{_LEGEND}</body></html>\n"


def shown_bytes(value: int | None) -> str:
    """Return bytes with a unit, "" for None."""
    if value is None:
        return ""
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def shown_number(value: float | None) -> str:
    """Return three significant digits, "" for None."""
    return "" if value is None else f"{value:.3g}"


def shown_batch(row: Candidate) -> str:
    """Return the batch size that answers most samples a second, with that figure; "" where the batch is fixed."""
    if row.batch is None:
        return ""
    best = row.batch.get("best")
    speed = row.batch.get("samples_per_s", {}).get(str(best))
    return f"{best}" if speed is None else f"{best} ({speed:,.0f}/s)"


def shown_reason(row: Candidate) -> str:
    """Return why a row was refused, which layers stayed in float, and whose times these are where they are not the variant's."""
    elsewhere = f"times are not the device's: {row.not_run_here}" if row.not_run_here else ""
    kept = f"in float: {', '.join(row.float_layers)}" if row.float_layers else ""
    return "; ".join(part for part in (kept, row.reason, elsewhere) if part)


def _section(profile: ReportProfile) -> str:
    note = f'<p class="bad">{escape(profile.note)}</p>' if profile.note else ""
    plots = f'<div class="plots">{"".join(_plots(profile))}</div>'
    tried = f"{plots}{_table(profile.candidates)}" if profile.candidates else ""
    return (
        f'<section><h2>{escape(profile.name)}</h2><p class="soft">{escape(profile.summary)}</p>{note}{tried}</section>'
    )


def _plots(profile: ReportProfile) -> Iterator[str]:
    latency, accuracy = profile.latency_limit_ms, profile.accuracy_limit
    sizes = _rows(profile, lambda row: row.size_bytes, lambda row: shown_bytes(row.size_bytes))
    times = _rows(profile, lambda row: row.p95_ms, lambda row: shown_number(row.p95_ms))
    errors = _rows(profile, lambda row: row.max_error, lambda row: shown_number(row.max_error))
    shares = _rows(profile, lambda row: row.accuracy, COLUMNS["accuracy"])
    if sizes:
        yield bars("Size", sizes)
    if times and all(row.not_run_here for row in profile.candidates if row.p95_ms is not None):
        yield bars("Latency p95 on the building machine, ms", times)  # no limit: it is the device's to judge
    elif times:
        yield bars("Latency p95, ms", times, None if latency is None else Limit(value=latency, shown=f"{latency:g} ms"))
    if errors:
        yield logarithmic_dots("Largest error against the original", errors)
    if shares:
        yield dots(
            "Accuracy on the golden set",
            shares,
            None if accuracy is None else Limit(value=accuracy, shown=f"{accuracy:g}"),
        )


def _rows(
    profile: ReportProfile, value: Callable[[Candidate], float | None], shown: Callable[[Candidate], str]
) -> list[PlotRow]:
    """Return the candidates whose value is known."""
    return [
        PlotRow(label=row.precision, value=value(row), shown=shown(row), verdict=row.verdict)
        for row in profile.candidates
        if value(row) is not None
    ]


def _table(candidates: Sequence[Candidate]) -> str:
    head = "".join(f"<th{_text(name)}>{escape(name)}</th>" for name in _FIGURES)
    rows = "".join(_table_rows(row) for row in candidates)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _table_rows(row: Candidate) -> str:
    """Return the figures, and below them the reason, which is a sentence and not a column."""
    verdict = escape(row.verdict.replace(" ", "-"), quote=True)
    cells = "".join(f"<td{_text(name, row)}>{escape(COLUMNS[name](row))}</td>" for name in _FIGURES)
    reason = shown_reason(row)
    if not reason:
        return f'<tr class="{verdict}">{cells}</tr>'
    below = f'<tr class="why"><td colspan="{len(_FIGURES)}">{escape(reason)}</td></tr>'
    return f'<tr class="{verdict} explained">{cells}</tr>{below}'


def _text(name: str, row: Candidate | None = None) -> str:
    if name != "verdict":
        return ""
    kind = {"chosen": " good", "refused": " bad"}.get(row.verdict, "") if row else ""
    return f' class="text{kind}"'


_LEGEND: Final = (
    '<p class="soft">★ chosen; ✕ refused: not within tolerance, limits or gates. Errors are absolute, against ONNX Runtime on '
    "the original; “smaller” is the original file's bytes over the variant's; “points lost” are points of 100 of accuracy on the "
    "golden set; times are of single samples on the machine that built the variant, not on the device. Of a "
    "microcontroller, “size” is flash (weights and code) and “memory” RAM (workspace, stack, inputs and outputs).</p>"
)
