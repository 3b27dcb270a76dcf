"""Convert on this machine, without registry or keys: the same choice, proof and gates as a build, and the proof as JSON.

Everything happens in a folder beside `out`, which becomes `out` at the end by a rename and is removed however the work ends.
Nothing is signed: for a fleet, a version is published and built by its registry.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from modelfleet.converters.attempt import Proved, Report, Wanted, built_file
from modelfleet.converters.candidate import Candidate
from modelfleet.converters.child import ChildError, ChildLimits, run_child
from modelfleet.converters.choose import Choice, choose
from modelfleet.converters.errors import BuildFailedError, ConversionError
from modelfleet.converters.report import ReportPage, ReportProfile, shown_bytes
from modelfleet.converters.results import installed_versions, results_of
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision, Prefer, Runtime
from modelfleet.policies.gates import load_gate

PROOF: Final = "proof.json"
GOLDEN_SET, RANDOM_INPUTS = "golden set", "random inputs"
MEMORY_BYTES: Final = 4 * 1024**3


@dataclass(frozen=True, kw_only=True)
class LocalRequest:
    """A model to convert here. golden None: random inputs stand in; out None: nothing is kept.

    precisions: those to try, of the profile's; empty: all. seconds: for everything.
    """

    model: Path
    profile: HardwareProfile
    golden: Path | None = None
    out: Path | None = None
    prefer: Prefer | None = None
    precisions: Sequence[Precision] = ()
    seconds: float = 1800.0
    runs: int = 100


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What came of it; `proof` as it is written, and the choice (its files are in `out` by now, or gone)."""

    choice: Choice
    profile: HardwareProfile
    proof: dict[str, Any]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """One row per precision tried."""
        return self.choice.candidates


def convert_here(request: LocalRequest, report: Report) -> LocalResult:
    """Choose a variant; its files and the proof then lie in `out`, where one holds.

    Args:
        request: what to convert.
        report: called as every step begins; an exception from it ends the work and is raised.

    Raises:
        ConversionError: the model may not be opened, or a precision is none of the profile's. GoldenSetError: the golden set is
            none, or does not fit. BuildFailedError: `out` is not empty, or cannot be made.
    """
    profile = _profile(request)
    with _work_folder(request.out) as work:
        source = work / "source.onnx"
        shutil.copyfile(request.model, source)  # the model given is never opened where it lies
        wanted = Wanted(
            profile=profile,
            source=source,
            golden=_golden(request, source, work),
            gate=load_gate(),
            deadline=time.monotonic() + request.seconds,
            memory_bytes=MEMORY_BYTES,
            runs=request.runs,
            random_inputs=request.golden is None,
        )
        choice = choose(wanted, work / "variants", report)
        proof = _proof(request, profile, wanted, choice)
        if choice.chosen is not None and request.out is not None:
            _keep(choice.chosen, profile, proof, request.out)
    return LocalResult(choice=choice, profile=profile, proof=proof)


def page_of(result: LocalResult) -> ReportPage:
    """Return the report of a conversion."""
    proof = result.proof
    facts = [
        (
            "Source",
            f"{proof['source']['name']}, {shown_bytes(proof['source']['bytes'])}, sha256 {proof['source']['sha256']}",
        ),
        ("Proved on", proof["proved_on"]),
        ("Preferred", proof["prefer"]),
        ("Made", proof["made_at"]),
        ("Libraries", ", ".join(f"{name} {version}" for name, version in proof["versions"].items())),
    ]
    section = ReportProfile(
        name=result.profile.name,
        summary=result.profile.summary,
        candidates=result.candidates,
        latency_limit_ms=result.profile.limits.latency_ms,
        accuracy_limit=result.profile.limits.accuracy,
    )
    return ReportPage(title=f"{proof['source']['name']} for {result.profile.name}", facts=facts, profiles=[section])


def _profile(request: LocalRequest) -> HardwareProfile:
    profile = request.profile
    unknown = [precision for precision in request.precisions if precision not in profile.precisions]
    if unknown:
        reason = f"expected precisions of {[str(p) for p in profile.precisions]}, got {[str(p) for p in unknown]}"
        raise ConversionError("", profile.name, reason)
    tried = tuple(p for p in profile.precisions if not request.precisions or p in request.precisions)
    tolerances = {precision: profile.tolerances[precision] for precision in tried}
    return replace(profile, precisions=tried, tolerances=tolerances, prefer=request.prefer or profile.prefer)


@contextlib.contextmanager
def _work_folder(out: Path | None) -> Generator[Path]:
    """Make the folder where all work is done, temporary files of libraries too; it is gone afterwards."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BuildFailedError(f"expected {out} to be an empty folder, or absent: choose another --out")
    parent = None
    if out is not None:
        parent = out.absolute().parent
    before, before_tempdir = os.environ.get("TMPDIR"), tempfile.tempdir
    with _temporary(parent) as name:
        os.environ["TMPDIR"] = tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before_tempdir
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def _temporary(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".convert-", dir=parent)
    except OSError as error:
        raise BuildFailedError(f"expected to write in {parent or 'the temporary folder'}: {error.strerror}") from error


def _golden(request: LocalRequest, source: Path, work: Path) -> Path:
    if request.golden is not None:
        return request.golden.absolute()
    made = work / "stand_in.npz"
    limits = ChildLimits(timeout_seconds=request.seconds / 4, memory_bytes=MEMORY_BYTES)
    profile = request.profile.name
    try:
        run_child("stand_in", {"source": str(source), "stand_in": str(made)}, limits, profile)
    except ChildError as error:
        raise ConversionError(error.node, profile, f"random inputs in place of a golden set: {error.reason}") from error
    return made


def _proof(request: LocalRequest, profile: HardwareProfile, wanted: Wanted, choice: Choice) -> dict[str, Any]:
    source = built_file(wanted.source, "extra")
    chosen = choice.chosen
    told: dict[str, Any] = {
        "source": {"name": request.model.name, "sha256": source.sha256, "bytes": source.length},
        "golden_sha256": None if request.golden is None else built_file(request.golden, "extra").sha256,
        "proved_on": RANDOM_INPUTS if request.golden is None else GOLDEN_SET,
        "profile": profile.name,
        "prefer": str(profile.prefer),
        "precision": None if chosen is None else str(chosen.precision),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": installed_versions(),
        "candidates": [candidate.to_dict() for candidate in choice.candidates],
    }
    if chosen is None:
        return told
    files = [{"name": file.name, "sha256": file.sha256, "bytes": file.length} for file in chosen.files]
    shown = {name: msgspec.to_builtins(chosen.proof[name]) for name in ("inputs", "outputs", "tolerance")}
    return {**told, **results_of(chosen, choice.candidates), "entry": chosen.entry, "files": files, **shown}


def _keep(chosen: Proved, profile: HardwareProfile, proof: dict[str, Any], out: Path) -> None:
    """Make the chosen folder `out`, with the proof beside its files."""
    if profile.runtime is Runtime.COREML:
        _lay_out(chosen)
    listed = {file.name for file in chosen.files}
    for path in chosen.folder.iterdir():  # what a proof needed beside the variant, such as the network of an engine
        if path.is_file() and path.name not in listed:
            path.unlink()
    (chosen.folder / PROOF).write_text(json.dumps(proof, indent=2) + "\n", encoding="utf-8")
    if out.exists():
        out.rmdir()
    chosen.folder.rename(out)


def _lay_out(chosen: Proved) -> None:
    """Lay CoreML's flat files out as the folder that Xcode opens, beside them."""
    from modelfleet.benchmarks.runtimes.coreml import lay_out_package

    lay_out_package(chosen.folder, chosen.folder / "model.mlpackage")
