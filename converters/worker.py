"""The converter worker: `python -m modelfleet.converters.worker --request FILE --out DIR`, one process per variant.

It tries the profile's precisions in order and takes the first that is proved and passes the gates. Models are only opened in
child processes of its own, which know nothing of the gate key; the worker opens the key last, to sign what it measured.
Progress goes to stdout, one JSON object a line; the result or the error into `<request>.result`.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.converters.attest import Measured, attest
from modelfleet.converters.child import ChildError, ChildLimits, run_child, seconds_left
from modelfleet.converters.confine import die_with_parent
from modelfleet.converters.errors import ConversionError, GateError, ScanError
from modelfleet.converters.request import BuildRequest, BuildResult, BuiltFile, Progress, decode, encode
from modelfleet.hardware_profiles.profile import Precision
from modelfleet.policies.gates import Evidence, Failure, judge
from modelfleet.signer.errors import SignerError
from modelfleet.signer.manifest import ManifestLimits, Role, Tensor, Tolerance

GOLDEN: Final = "golden.npz"
LOCATE_SHARE: Final = 0.3
"""Of the time left to a step: kept for finding the node where it ran past its limits, 10 s at most."""
_LIBRARIES: Final = ("numpy", "onnx", "onnxruntime", "onnxconverter-common", "modelfleet")
Report = Callable[[Progress], None]


class WorkerError(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no variant, as it travels to the server."""

    kind: str
    message: str
    node: str = ""
    failures: tuple[Failure, ...] = ()


class WorkerReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker leaves behind: one of both."""

    result: BuildResult | None = None
    error: WorkerError | None = None


def main() -> int:
    """Build the variant; 0: it is there, 1: it is not, and the reply says why."""
    parser = argparse.ArgumentParser(description="Build one variant.")
    parser.add_argument("--request", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--timeout-seconds", type=float, default=120.0)
    parser.add_argument("--memory-bytes", type=int, default=4 * 1024**3)
    asked = parser.parse_args()
    die_with_parent(asked.parent)
    request = decode(asked.request.read_bytes(), BuildRequest)
    reply = _attempt(request, asked.out, asked.timeout_seconds, asked.memory_bytes)
    asked.request.with_suffix(".result").write_bytes(encode(reply))
    return 0 if reply.result else 1


def build(request: BuildRequest, out: Path, deadline: float, memory_bytes: int, report: Report) -> BuildResult:
    """Return the first precision's variant that is proved and passes the gates, its files in `out`.

    Args:
        request: the variant asked for.
        out: an empty folder.
        deadline: by `time.monotonic`.
        memory_bytes: the limit of each child process.
        report: called as every step begins.

    Raises:
        ScanError, GoldenSetError: the upload is refused, for every precision alike.
        ConversionError, GateError: no precision passed; says why each did not.
    """
    refused: dict[Precision, ConversionError | GateError] = {}
    for precision in request.profile.precisions:
        folder = out / precision
        try:
            return _build_one(request, precision, folder, deadline, memory_bytes, report)
        except (ConversionError, GateError) as error:
            refused[precision] = error
    raise _joined(refused, request.profile.name)


def _build_one(
    request: BuildRequest, precision: Precision, out: Path, deadline: float, memory_bytes: int, report: Report
) -> BuildResult:
    started_at = datetime.now(UTC)
    variant = _Variant(request, precision, out, deadline, memory_bytes)
    report(Progress(step="convert", precision=precision))
    converted = variant.step("convert", {"work": str(variant.work), "out": str(out)})
    entry, golden = out / converted["entry"], out / GOLDEN
    report(Progress(step="prove", precision=precision))
    proof = variant.step("prove", {"entry": str(entry), "device_golden": str(golden)})
    report(Progress(step="benchmark", precision=precision))
    asked = {"entry": str(entry), "device_golden": str(golden), "tolerance": proof["tolerance"], "runs": request.runs}
    bench = variant.step("benchmark", asked)
    files = (*(_file(out / name, "model") for name in converted["files"]), _file(golden, "golden"))
    evidence = _evidence(precision, proof["parity"], bench, files)
    _require_gates(request, evidence, proof)
    report(Progress(step="sign", precision=precision))
    results = {
        "gate": evidence.to_dict(),
        "parity": proof["parity"],
        "benchmark": bench,
        "scan": converted["scan"],
        "limits": msgspec.to_builtins(_limits(request, evidence)),
        "versions": _versions(),
    }
    measured = Measured(
        precision=precision,
        files=files,
        source_sha256=_file(request.source, "extra").sha256,
        golden_sha256=_file(request.golden, "extra").sha256,
        results=results,
        started_at=started_at,
    )
    attested = attest(request, measured)
    return BuildResult(
        precision=precision,
        runtime=request.profile.runtime,
        files=files,
        entry=converted["entry"],
        golden=GOLDEN,
        inputs=msgspec.convert(proof["inputs"], tuple[Tensor, ...]),
        outputs=msgspec.convert(proof["outputs"], tuple[Tensor, ...]),
        tolerance=msgspec.convert(proof["tolerance"], Tolerance),
        limits=_limits(request, evidence),
        evidence=results,
        gate_envelope=attested.gate_envelope,
        attestations=attested.attestations,
    )


class _Variant:
    """One precision's child processes: what every step is told, and how its failures become a ConversionError."""

    def __init__(
        self, request: BuildRequest, precision: Precision, out: Path, deadline: float, memory_bytes: int
    ) -> None:
        self._request, self._precision, self._deadline, self._memory_bytes = request, precision, deadline, memory_bytes
        self.work = out.with_name(f"{out.name}.work")
        out.mkdir(parents=True)
        self.work.mkdir()

    def step(self, name: str, asked: Mapping[str, object]) -> dict[str, Any]:
        profile = self._request.profile.name
        try:
            return run_child(name, self._told(asked), self._limits(), profile)
        except ChildError as error:
            node = error.node or self._locate()
            raise ConversionError(node, profile, f"{self._precision}: {error.reason}") from error

    def _told(self, asked: Mapping[str, object]) -> dict[str, object]:
        told: dict[str, object] = {"source": str(self._request.source), "golden": str(self._request.golden)}
        told |= {"profile": msgspec.to_builtins(self._request.profile), "precision": str(self._precision)}
        return told | dict(asked)

    def _limits(self) -> ChildLimits:
        left = seconds_left(self._deadline)
        return ChildLimits(timeout_seconds=left - min(left * LOCATE_SHARE, 10.0), memory_bytes=self._memory_bytes)

    def _locate(self) -> str:
        trail = self.work / "trail"
        seconds = min(seconds_left(self._deadline), 10.0)
        limits = ChildLimits(timeout_seconds=seconds, memory_bytes=self._memory_bytes)
        try:
            return str(run_child("locate", self._told({"trail": str(trail)}), limits)["node"])
        except ChildError as error:
            return trail.read_text(encoding="utf-8") if error.stopped and trail.exists() else error.node


def _file(path: Path, role: Role) -> BuiltFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return BuiltFile(name=path.name, path=path, sha256=digest, length=path.stat().st_size, role=role)


def _evidence(
    precision: Precision, parity: Mapping[str, Any], bench: Mapping[str, Any], files: tuple[BuiltFile, ...]
) -> Evidence:
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
        size_bytes=sum(file.length for file in files if file.role != "golden"),
    )


def _require_gates(request: BuildRequest, evidence: Evidence, proof: Mapping[str, Any]) -> None:
    limits = _limits(request, evidence)
    gate = request.gate.limited(
        latency_ms=limits.latency_ms,
        accuracy=limits.accuracy,
        memory_bytes=limits.memory_bytes,
        max_mismatch_share=proof["tolerance"]["mismatch_share"],
    )
    failures = judge(evidence, gate, request.baseline)
    if failures:
        raise GateError(request.profile.name, failures)


def _limits(request: BuildRequest, evidence: Evidence) -> ManifestLimits:
    profile, asked = request.profile.limits, request.limits
    accuracy = max(profile.accuracy, asked.accuracy or 0.0)
    return ManifestLimits(
        latency_ms=min(profile.latency_ms, asked.latency_ms or profile.latency_ms),
        memory_bytes=min(profile.memory_bytes, asked.memory_bytes or profile.memory_bytes),
        accuracy=None if evidence.accuracy is None else accuracy,
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _joined(refused: Mapping[Precision, ConversionError | GateError], profile: str) -> ConversionError | GateError:
    errors = list(refused.values())
    if len(errors) == 1:
        return errors[0]
    failures = [failure for error in errors if isinstance(error, GateError) for failure in error.failures]
    if all(isinstance(error, GateError) for error in errors):
        return GateError(profile, failures)
    node = next(error.node for error in errors if isinstance(error, ConversionError))
    return ConversionError(node, profile, "no precision passed: " + "; ".join(f"{p}: {e}" for p, e in refused.items()))


def _attempt(request: BuildRequest, out: Path, timeout_seconds: float, memory_bytes: int) -> WorkerReply:
    deadline = time.monotonic() + timeout_seconds
    try:
        return WorkerReply(result=build(request, out, deadline, memory_bytes, _report))
    except GateError as error:
        return WorkerReply(error=WorkerError(kind="GateError", message=str(error), failures=error.failures))
    except (ConversionError, ScanError) as error:  # to whoever asked for a variant both say: not from this model
        return WorkerReply(error=WorkerError(kind="ConversionError", message=error.reason, node=error.node))
    except GoldenSetError as error:
        return WorkerReply(error=WorkerError(kind="GoldenSetError", message=str(error)))
    except (SignerError, OSError) as error:
        return WorkerReply(error=WorkerError(kind="BuildFailedError", message=f"{type(error).__name__}: {error}"))


def _report(progress: Progress) -> None:
    sys.stdout.write(encode(progress).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
