"""Choose the precision: try those that the profile allows, keep the preferred one of those that hold, and tell of every one.

Builds of the registry and `modelfleet convert` choose alike. A quantized precision that fails by its answers alone is tried again
with its most sensitive layers in float: 1, 2, 4, then 8 of them, for as long as that brings it nearer.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from modelfleet.converters.attempt import Proved, Report, Steps, Wanted, attempt
from modelfleet.converters.candidate import Candidate, Row
from modelfleet.converters.errors import ConversionError, GateError, ParityError, ScanError
from modelfleet.converters.request import Progress
from modelfleet.hardware_profiles.profile import Precision, Prefer

KEPT_IN_FLOAT: Final = (1, 2, 4, 8)
MIN_JUDGED: Final = 2
"""One layer alone changes nothing where what flows between two of them is what eight bits cannot hold."""
QUANTIZED: Final = frozenset(
    precision
    for precision in Precision
    if precision.startswith(("int", "palette"))  # pruned variants have other nodes than the model that is ranked
)
Refusal = ConversionError | GateError


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, None where no precision holds; a row for each that was tried, in the profile's order; every refusal."""

    chosen: Proved | None
    candidates: tuple[Candidate, ...]
    refused: Mapping[Precision, Refusal]

    def require(self, profile: str) -> Proved:
        """Return what was chosen (ConversionError, GateError: nothing was; says why each precision was refused)."""
        if self.chosen is None:
            raise joined(self.refused, profile)
        return self.chosen


def choose(wanted: Wanted, out: Path, report: Report, precisions: Sequence[Precision] = ()) -> Choice:
    """Try precisions and keep the preferred one that holds, its files in `out/PRECISION`.

    Args:
        wanted: the profile's `prefer` decides.
        out: a folder for the attempts; only the chosen one's is left in it, nothing where none holds or it raises.
        report: called as every step begins; what it raises ends the choice.
        precisions: those to try; all of the profile's where none is given.

    Raises:
        ConversionError: the model may not be opened (as `scan_model`), whatever the precision. GoldenSetError: the golden set is
            none, or does not fit the model.
    """
    tried = precisions or wanted.profile.precisions
    try:
        return _choose(wanted, out, report, tried)
    except BaseException as error:
        for precision in tried:
            _remove(out / precision)
        if isinstance(error, ScanError):
            raise ConversionError(error.node, wanted.profile.name, error.reason) from error
        raise


def _choose(wanted: Wanted, out: Path, report: Report, wanted_precisions: Sequence[Precision]) -> Choice:
    table = _Table(wanted)
    for position, precision in enumerate(wanted_precisions):
        if table.best is not None and (wanted.profile.prefer is Prefer.ORDER or table.out_of_time()):
            table.skip(precision)
            continue
        shared = wanted.until(_slice(wanted, len(wanted_precisions) - position))
        try:
            table.add(_try(shared, precision, out / precision, report))
        except (ConversionError, GateError) as error:
            table.refuse(precision, error)
            _remove(out / precision)
    return table.choice()


def joined(refused: Mapping[Precision, Refusal], profile: str) -> Refusal:
    """Return one error that says why each precision was refused."""
    errors = list(refused.values())
    if len(errors) == 1:
        return errors[0]
    failures = [failure for error in errors if isinstance(error, GateError) for failure in error.failures]
    if all(isinstance(error, GateError) for error in errors):
        return GateError(profile, failures)
    node = next(error.node for error in errors if isinstance(error, ConversionError))
    return ConversionError(node, profile, "no precision passed: " + "; ".join(f"{p}: {e}" for p, e in refused.items()))


class _Table:
    """The attempts so far."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted, self._source_bytes = wanted, wanted.source.stat().st_size
        self._rows: dict[Precision, Candidate] = {}
        self._refused: dict[Precision, Refusal] = {}
        self._slowest_seconds = 0.0
        self.best: Proved | None = None

    def add(self, proved: Proved) -> None:
        self._slowest_seconds = max(self._slowest_seconds, proved.seconds)
        self._rows[proved.precision] = self._row(proved).ended("held")
        loser, self.best = (self.best, proved) if self._better(proved) else (proved, self.best)
        if loser is not None:
            _remove(loser.folder)

    def refuse(self, precision: Precision, error: Refusal) -> None:
        self._refused[precision] = error
        figures = error.figures if isinstance(error, (GateError, ParityError)) else {}
        row = Row(precision=precision, source_bytes=self._source_bytes, figures=figures)
        reason = str(error) if isinstance(error, GateError) else f"{_at(error)}{error.reason}"
        self._rows[precision] = row.ended("refused", reason.removeprefix(f"{self._wanted.profile.name}: "))

    def skip(self, precision: Precision) -> None:
        assert self.best is not None
        order = self._wanted.profile.prefer is Prefer.ORDER
        reason = f"{self.best.precision} holds, and comes first" if order else "no time was left"
        self._rows[precision] = Row(precision=precision, source_bytes=self._source_bytes).ended("not tried", reason)

    def out_of_time(self) -> bool:
        return self._wanted.deadline - time.monotonic() < 2 * self._slowest_seconds

    def choice(self) -> Choice:
        if self.best is not None:
            self._rows[self.best.precision] = replace(self._rows[self.best.precision], verdict="chosen")
        return Choice(chosen=self.best, candidates=tuple(self._rows.values()), refused=self._refused)

    def _row(self, proved: Proved) -> Row:
        return Row(
            precision=proved.precision,
            source_bytes=self._source_bytes,
            figures=proved.figures,
            float_layers=proved.float_layers,
        )

    def _better(self, proved: Proved) -> bool:
        if self.best is None:
            return True
        if self._wanted.profile.prefer is Prefer.FASTEST:
            return proved.evidence.latency_p95_ms < self.best.evidence.latency_p95_ms
        return proved.evidence.size_bytes < self.best.evidence.size_bytes


def _try(wanted: Wanted, precision: Precision, folder: Path, report: Report) -> Proved:
    begun = time.monotonic()
    try:
        return attempt(wanted, precision, folder, report)
    except (ParityError, GateError) as error:
        if precision not in QUANTIZED or error.hopeless:
            raise
        return _try_with_float_layers(wanted, precision, folder, report, error, time.monotonic() - begun)


def _try_with_float_layers(
    wanted: Wanted, precision: Precision, folder: Path, report: Report, first: ParityError | GateError, seconds: float
) -> Proved:
    """Return the variant with the fewest layers in float that holds; raises `first` where none does."""
    report(Progress(step="rank", precision=precision))
    normalised = folder.with_name(f"{folder.name}.work") / "normalised.onnx"
    try:
        ranked: list[str] = Steps(wanted, precision, folder).run("rank", {"normalised": str(normalised)})["nodes"]
    except ConversionError:  # then there is nothing better to say than why it was needed
        raise first from None
    for count in KEPT_IN_FLOAT:
        if count > len(ranked) or wanted.deadline - time.monotonic() < 2 * seconds:
            break
        _remove(folder)
        try:
            return attempt(wanted, precision, folder, report, tuple(ranked[:count]))
        except (ParityError, GateError) as error:
            if count >= MIN_JUDGED and not _nearer(error, first):
                break
        except ConversionError:  # nothing is left that could be quantized
            break
    raise first


def _nearer(error: ParityError | GateError, first: ParityError | GateError) -> bool:
    return error.figures.get("mean_error", 0.0) < first.figures.get("mean_error", 0.0)


def _slice(wanted: Wanted, left: int) -> float:
    """Return the deadline of one precision: all the time where the first that holds is taken, else a fair share of it."""
    if wanted.profile.prefer is Prefer.ORDER:
        return wanted.deadline
    return time.monotonic() + max(wanted.deadline - time.monotonic(), 0.1) / left


def _at(error: ConversionError) -> str:
    return f"node {error.node!r}: " if error.node else ""


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.with_name(f"{folder.name}.work"), ignore_errors=True)
