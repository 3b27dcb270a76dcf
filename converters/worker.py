"""The converter worker: `python -m modelfleet.converters.worker --request FILE --out DIR`, one process per variant.

It tries the profile's precisions and takes the preferred one of those that are proved and pass the gates (`choose`). Models are
only opened in child processes of its own, which know nothing of the gate key; the worker opens the key last, to sign what it
measured. Progress goes to stdout, one JSON object a line; the result or the error into `<request>.result`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.converters.attempt import GOLDEN, Proved, Report, Wanted, built_file
from modelfleet.converters.attest import Measured, attest
from modelfleet.converters.choose import choose
from modelfleet.converters.confine import die_with_parent
from modelfleet.converters.errors import BuildFailedError, ConversionError, GateError
from modelfleet.converters.request import BuildRequest, BuildResult, Progress, decode, encode
from modelfleet.converters.results import results_of
from modelfleet.policies.gates import Failure
from modelfleet.signer.errors import SignerError
from modelfleet.signer.manifest import Tensor, Tolerance


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
    """Return the variant that the profile prefers of those that hold, attested, its files in `out/PRECISION`.

    Args:
        request: the variant asked for.
        out: an empty folder.
        deadline: by `time.monotonic`.
        memory_bytes: the limit of each child process.
        report: called as every step begins.

    Raises:
        GoldenSetError: the golden set is refused, for every precision alike.
        ConversionError, GateError: the model may not be opened, or no precision passed; says why each did not.
    """
    wanted = Wanted(
        profile=request.profile,
        source=request.source,
        golden=request.golden,
        gate=request.gate,
        deadline=deadline,
        memory_bytes=memory_bytes,
        limits=request.limits,
        baseline=request.baseline,
        runs=request.runs,
    )
    choice = choose(wanted, out, report)
    chosen = choice.require(request.profile.name)
    report(Progress(step="sign", precision=chosen.precision))
    return _signed(request, chosen, results_of(chosen, choice.candidates))


def _signed(request: BuildRequest, chosen: Proved, results: dict[str, Any]) -> BuildResult:
    measured = Measured(
        precision=chosen.precision,
        files=chosen.files,
        source_sha256=built_file(request.source, "extra").sha256,
        golden_sha256=built_file(request.golden, "extra").sha256,
        results=results,
        started_at=chosen.started_at,
    )
    attested = attest(request, measured)
    return BuildResult(
        precision=chosen.precision,
        runtime=request.profile.runtime,
        files=chosen.files,
        entry=chosen.entry,
        golden=GOLDEN,
        inputs=msgspec.convert(chosen.proof["inputs"], tuple[Tensor, ...]),
        outputs=msgspec.convert(chosen.proof["outputs"], tuple[Tensor, ...]),
        tolerance=msgspec.convert(chosen.proof["tolerance"], Tolerance),
        limits=chosen.limits,
        evidence=results,
        gate_envelope=attested.gate_envelope,
        attestations=attested.attestations,
    )


def _attempt(request: BuildRequest, out: Path, timeout_seconds: float, memory_bytes: int) -> WorkerReply:
    deadline = time.monotonic() + timeout_seconds
    try:
        return WorkerReply(result=build(request, out, deadline, memory_bytes, _report))
    except GateError as error:
        return WorkerReply(error=WorkerError(kind="GateError", message=str(error), failures=error.failures))
    except ConversionError as error:
        return WorkerReply(error=WorkerError(kind="ConversionError", message=error.reason, node=error.node))
    except GoldenSetError as error:
        return WorkerReply(error=WorkerError(kind="GoldenSetError", message=str(error)))
    except BuildFailedError as error:
        return WorkerReply(error=WorkerError(kind="BuildFailedError", message=str(error)))
    except (SignerError, OSError) as error:
        return WorkerReply(error=WorkerError(kind="BuildFailedError", message=f"{type(error).__name__}: {error}"))


def _report(progress: Progress) -> None:
    sys.stdout.write(encode(progress).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
