"""Try one precision: convert, prove, benchmark, each in a child process with limits, and judge the gates.

What comes out is a variant that agrees with the original and holds tolerance, limits and gates, its files in a folder, or one
error that says why not and carries the figures known by then.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from modelfleet.converters.allowance import memory_allowance
from modelfleet.converters.child import ChildError, ChildLimits, run_child, seconds_left
from modelfleet.converters.errors import ConversionError, GateError, ParityError
from modelfleet.converters.request import AskedLimits, BuiltFile, Progress
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision
from modelfleet.policies.gates import Evidence, Gate, judge
from modelfleet.signer.manifest import ManifestLimits, Role

GOLDEN: Final = "golden.npz"
LOCATE_SHARE: Final = 0.3
"""Of the time left to a step: kept for finding the node where it ran past its limits, 10 s at most."""
SAMPLES_ELSEWHERE: Final = 20
"""Timed of what is not what the device runs: an evaluator may take seconds for each."""
Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What every attempt of a choice has in common.

    random_inputs: `golden` was made up (`stand_in`), so that only float precisions can be proved. memory_bytes is the address
    space of each child process, before what the profile's runtime needs beyond it; deadline is by `time.monotonic`.
    """

    profile: HardwareProfile
    source: Path
    golden: Path
    gate: Gate
    deadline: float
    memory_bytes: int
    limits: AskedLimits = field(default_factory=AskedLimits)
    baseline: Evidence | None = None
    runs: int = 200
    random_inputs: bool = False

    def until(self, deadline: float) -> "Wanted":
        """Return the same with an earlier deadline."""
        return replace(self, deadline=min(self.deadline, deadline))


@dataclass(frozen=True, kw_only=True)
class Proved:
    """A variant that holds: its files in `folder`, and every figure.

    proof: parity, tolerance, inputs, outputs (`prove.prove`); bench: figures of `prove.benchmark`; scan: of the source;
    converted: the converter's own report; figures: what a row of the table shows; float_layers: nodes that were kept in float.
    """

    precision: Precision
    folder: Path
    entry: str
    files: tuple[BuiltFile, ...]
    evidence: Evidence
    limits: ManifestLimits
    proof: Mapping[str, Any]
    bench: Mapping[str, Any]
    scan: Mapping[str, Any]
    converted: Mapping[str, Any]
    figures: Mapping[str, Any]
    float_layers: tuple[str, ...]
    started_at: datetime
    seconds: float


def attempt(
    wanted: Wanted, precision: Precision, folder: Path, report: Report, float_layers: tuple[str, ...] = ()
) -> Proved:
    """Make the variant in `folder`, which must not exist; a folder `NAME.work` beside it holds files in between.

    Raises:
        ScanError, GoldenSetError: the upload is refused, for every precision alike.
        ConversionError: it cannot be converted, or (ParityError) its answers lie outside the tolerance.
        GateError: it is right, but not good enough.
    """
    begun, started_at = time.monotonic(), datetime.now(UTC)
    steps = Steps(wanted, precision, folder)
    report(Progress(step="convert", precision=precision))
    kept = list(float_layers)
    converted = steps.run("convert", {"work": str(steps.work), "out": str(folder), "keep_float": kept})
    entry, golden = folder / converted["entry"], folder / GOLDEN
    models = tuple(built_file(folder / name, "model") for name in converted["files"])
    stated: Mapping[str, int] = converted["report"].get("stated", {})
    size_bytes = stated.get("size_bytes", sum(file.length for file in models))
    report(Progress(step="prove", precision=precision))
    try:
        proof = steps.run("prove", {"entry": str(entry), "device_golden": str(golden)})
    except ParityError as error:
        raise error.with_figures({"size_bytes": size_bytes}) from error
    report(Progress(step="benchmark", precision=precision))
    limits = limits_of(wanted, labelled=proof["parity"]["accuracy"] is not None)
    asked = {"entry": str(entry), "device_golden": str(golden), "tolerance": proof["tolerance"], "runs": wanted.runs}
    elsewhere = not_run_here(converted["report"])
    if elsewhere:
        asked |= {"samples": SAMPLES_ELSEWHERE}
    else:
        asked |= {"latency_ms": limits.latency_ms, "batch_bytes": limits.memory_bytes}
    bench = steps.run("benchmark", asked)
    evidence = _evidence(precision, proof["parity"], {**bench, **_stated_peak(stated)}, size_bytes)
    figures = {**figures_of(evidence, bench), "not_run_here": elsewhere}
    gate = _gate_of(wanted, limits, proof, elsewhere)
    if "memory_bytes" in stated:  # it holds on the device, wherever the rest was measured
        gate = gate.limited(memory_bytes=limits.memory_bytes)
    _require_gates(gate, wanted, evidence, figures)
    return Proved(
        precision=precision,
        folder=folder,
        entry=converted["entry"],
        files=(*models, built_file(golden, "golden")),
        evidence=evidence,
        limits=limits,
        proof=proof,
        bench=bench,
        figures=figures,
        scan=converted["scan"],
        converted=converted["report"],
        float_layers=float_layers,
        started_at=started_at,
        seconds=time.monotonic() - begun,
    )


class Steps:
    """One precision's child processes: what every step is told, and how its failures become a ConversionError."""

    def __init__(self, wanted: Wanted, precision: Precision, folder: Path) -> None:
        self._wanted, self._precision = wanted, precision
        self._memory_bytes = wanted.memory_bytes + memory_allowance(wanted.profile.runtime)
        self.work = folder.with_name(f"{folder.name}.work")
        folder.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)

    def run(self, name: str, asked: Mapping[str, object]) -> dict[str, Any]:
        """Run a step (errors as `run_child`; one that crashed or was ended is a ConversionError that names the node)."""
        profile = self._wanted.profile.name
        try:
            return run_child(name, self._told(asked), self._limits(), profile)
        except ChildError as error:
            node = error.node or self._locate()
            raise ConversionError(node, profile, f"{self._precision}: {error.reason}") from error

    def _told(self, asked: Mapping[str, object]) -> dict[str, object]:
        told: dict[str, object] = {"source": str(self._wanted.source), "golden": str(self._wanted.golden)}
        told |= {"profile": msgspec.to_builtins(self._wanted.profile), "precision": str(self._precision)}
        return told | {"random_inputs": self._wanted.random_inputs} | dict(asked)

    def _limits(self) -> ChildLimits:
        left = seconds_left(self._wanted.deadline)
        return ChildLimits(timeout_seconds=left - min(left * LOCATE_SHARE, 10.0), memory_bytes=self._memory_bytes)

    def _locate(self) -> str:
        trail = self.work / "trail"
        seconds = min(seconds_left(self._wanted.deadline), 10.0)
        limits = ChildLimits(timeout_seconds=seconds, memory_bytes=self._memory_bytes)
        try:
            return str(run_child("locate", self._told({"trail": str(trail)}), limits)["node"])
        except ChildError as error:
            return trail.read_text(encoding="utf-8") if error.stopped and trail.exists() else error.node


def built_file(path: Path, role: Role) -> BuiltFile:
    """Return the file with its digest and length."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return BuiltFile(name=path.name, path=path, sha256=digest, length=path.stat().st_size, role=role)


def figures_of(evidence: Evidence, bench: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row of the table shows of evidence and benchmark."""
    shown = evidence.to_dict()
    return {**shown, "p50_ms": bench["p50_ms"], "p95_ms": bench["p95_ms"], "batch": bench.get("batch")}


def not_run_here(report: Mapping[str, Any]) -> str:
    """Return why what the device runs was not run here but something equal in answers, "" where it was.

    Converters tell so by `not_run_here` (a reason) or `proved: network` in their report. Latency and memory are those of the
    substitute then, so that the limits are for the device to judge, which measures before it activates. What a converter
    knows of the device itself it tells as `stated` (size_bytes, memory_bytes): that is taken in place of files and measurements.
    """
    reason = report.get("not_run_here")
    if reason:
        return str(reason)
    return "built on the device; its network was proved" if report.get("proved") == "network" else ""


def _stated_peak(stated: Mapping[str, int]) -> dict[str, int]:
    return {"peak_memory_bytes": stated["memory_bytes"]} if "memory_bytes" in stated else {}


def limits_of(wanted: Wanted, *, labelled: bool) -> ManifestLimits:
    """Return the stricter of what the profile and the model card ask."""
    profile, asked = wanted.profile.limits, wanted.limits
    accuracy = max(profile.accuracy, asked.accuracy or 0.0)
    return ManifestLimits(
        latency_ms=min(profile.latency_ms, asked.latency_ms or profile.latency_ms),
        memory_bytes=min(profile.memory_bytes, asked.memory_bytes or profile.memory_bytes),
        accuracy=accuracy if labelled else None,
    )


def _evidence(precision: Precision, parity: Mapping[str, Any], bench: Mapping[str, Any], size_bytes: int) -> Evidence:
    return Evidence(
        precision=precision,
        samples=parity["samples"],
        max_error=parity["max_error"],
        mean_error=parity["mean_error"],
        mismatch_share=parity["mismatch_share"],
        accuracy=parity["accuracy"],
        original_accuracy=parity["original_accuracy"],
        latency_p95_ms=bench["p95_ms"],
        memory_bytes=bench["peak_memory_bytes"],
        size_bytes=size_bytes,
    )


def _gate_of(wanted: Wanted, limits: ManifestLimits, proof: Mapping[str, Any], elsewhere: str) -> Gate:
    """Return the thresholds; of a variant that was not run here, none of latency and memory."""
    gate = wanted.gate.limited(accuracy=limits.accuracy, max_mismatch_share=proof["tolerance"]["mismatch_share"])
    if elsewhere:
        return replace(gate, latency_ms=math.inf, memory_bytes=None)
    return gate.limited(
        latency_ms=limits.latency_ms,
        memory_bytes=limits.memory_bytes,
        max_mismatch_share=gate.max_mismatch_share,
    )


def _require_gates(gate: Gate, wanted: Wanted, evidence: Evidence, figures: Mapping[str, Any]) -> None:
    failures = judge(evidence, gate, wanted.baseline)
    if not failures:
        return
    perfect = replace(evidence, accuracy=evidence.original_accuracy, mismatch_share=0.0)
    hopeless = bool(judge(perfect, gate, wanted.baseline))
    raise GateError(wanted.profile.name, failures, figures=figures, hopeless=hopeless)
