"""A warm process for `tests.mutate`: it has third-party modules imported, and forks a child for each run of tests.

What is under test is imported by the child alone, from the tree that its request names. One request a line comes in on
standard input (`Asked`), one answer a line goes out (`Answer`).
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WARM = (
    "PyKCS11",
    "alembic.command",
    "alembic.autogenerate",
    "alembic.config",
    "alembic.operations",
    "asn1crypto.core",
    "boto3",
    "click.testing",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.hpke",
    "cryptography.hazmat.primitives.serialization",
    "cryptography.x509",
    "fastapi",
    "fastapi.responses",
    "fastapi.testclient",
    "http.server",
    "httpx",
    "hypothesis",
    "hypothesis.strategies",
    "jwt",
    "msgspec",
    "numpy",
    "numpy.random",
    "onnx",
    "onnx.helper",
    "paho.mqtt.client",
    "pydantic_settings",
    "pytest",
    "pytest_timeout",
    "rich.console",
    "rich.progress",
    "rich.table",
    "securesystemslib.dsse",
    "securesystemslib.signer",
    "sqlalchemy",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
    "sqlite3",
    "tink",
    "tuf.api.metadata",
    "urllib3",
    "uvicorn",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.h11_impl",
)
"""What the named tests import for more than a few milliseconds; onnxruntime is not here, which starts a thread."""
WITHOUT = ("cacheprovider", "benchmark", "hypothesispytest", "xdist", "xdist.looponfail", "anyio", "platformdirs")
"""Plugins of pytest that no named test needs."""
OURS = ("modelfleet", "tests")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Tests to run on a tree; with `bytecode`, what is compiled for them is kept there."""

    tree: str
    tests: list[str]
    scratch: str
    bytecode: bool = False
    timeout: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How each test went, by its id (`passed`, `failed`, `error`, `skipped`); `wrong` says why the run did not end."""

    outcomes: dict[str, str] = field(default_factory=dict[str, str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    output: str = ""
    wrong: str | None = None


class Outcomes:
    """Plugin of pytest: notes how each test went. A test fails by itself, not by what is set up before or cleaned up after."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "call":
            self.outcomes[report.nodeid] = report.outcome
        elif report.when == "setup" and not report.passed:
            self.outcomes[report.nodeid] = "skipped" if report.skipped else "error"


def warm() -> None:
    """Import what the tests import of others; no thread may run where a child is forked."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else numpy starts threads
    with warnings.catch_warnings(action="ignore"):
        for name in WARM:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else every child looks through, and so copies, all that is imported here
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"expected one thread before forking, got {threads}: take out of WARM what starts threads")
    if ours := [name for name in sys.modules if name.partition(".")[0] in OURS]:
        raise SystemExit(f"expected nothing imported of what is tested, got {ours}")


def run(asked: Asked) -> Answer:
    """Run the tests in a child, for as long as it may take; what it started ends with it."""
    scratch = Path(asked.scratch)
    scratch.mkdir(exist_ok=True)
    answer, output = scratch / "answer.json", scratch / "output"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        _child(asked, answer, output)
    ended = os.pidfd_open(child)
    try:
        in_time = bool(select.select([ended], [], [], asked.timeout)[0])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(ended)
    said = output.read_text(errors="replace")[-4000:]
    if not in_time:
        return Answer(output=said, wrong=f"did not end within {asked.timeout:.0f} s")
    if not answer.exists():
        return Answer(output=said, wrong=f"its process ended with the status {os.waitstatus_to_exitcode(status)}")
    return Answer(**json.loads(answer.read_text()), output=said)


def _child(asked: Asked, answer: Path, output: Path) -> None:
    """Be the child: import from the tree, run, and leave without what cleans up after a whole interpreter."""
    status = 1
    try:
        said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number, fd in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said), (2, said)):
            os.dup2(fd, number)
        os.chdir(asked.tree)
        places = [str(Path(asked.tree) / ".types"), asked.tree]
        sys.path[:0] = places  # before the finder of the installed package, which asks last
        os.environ["PYTHONPATH"] = os.pathsep.join(places)
        sys.dont_write_bytecode = not asked.bytecode
        if asked.bytecode:
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        else:
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        import pytest

        plugins = [word for name in WITHOUT for word in ("-p", f"no:{name}")]
        options = ["-q", "--no-header", "--tb=short", "--disable-warnings", f"--basetemp={asked.scratch}/t"]
        found = Outcomes()
        pytest.main([*plugins, *options, *asked.tests], plugins=[found])
        _require_from(asked.tree)
        partial = answer.with_suffix(".new")
        partial.write_text(json.dumps({"outcomes": found.outcomes, "seconds": found.seconds}))
        partial.rename(answer)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _require_from(tree: str) -> None:
    """Refuse results of code that lies elsewhere than in the tree."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    elsewhere = [
        f"{name} from {file}"
        for name, file in files.items()
        if name.partition(".")[0] in OURS and file is not None and not Path(file).is_relative_to(tree)
    ]
    if elsewhere:
        raise RuntimeError(f"expected every module under test from {tree}, got {elsewhere}")


def main() -> None:
    """Answer requests until there are no more."""
    sys.path.pop(0)  # the folder of this file
    started = time.monotonic()
    warm()
    print(f"{time.monotonic() - started:.1f}", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(run(Asked(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
