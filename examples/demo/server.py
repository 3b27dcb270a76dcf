"""The demo's server: `modelfleet init` and `modelfleet serve`, run as the programs they are."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_TIMEOUT_SECONDS = 60
COMMAND_TIMEOUT_SECONDS = 120


class CommandFailedError(Exception):
    """A `modelfleet` command ended with another exit status than expected; the message holds what it printed."""


class Server:
    """One data folder and the process that serves it.

    Attributes:
        url, mqtt_url: where it listens, once started.
        tokens: user name -> API token.
    """

    def __init__(self, data: Path, *, tenant: str, users: Mapping[str, str], approvers: Sequence[str]) -> None:
        self.data, self.tenant = data, tenant
        self.url, self.mqtt_url = "", ""
        self._log = data.with_suffix(".log")
        self._process: subprocess.Popen[str] | None = None
        arguments = ["init", "--data", str(data), "--tenant", tenant, "--json"]
        for approver in approvers:
            arguments += ["--approver", approver]
        for name, role in users.items():
            arguments += ["--user", f"{name}:{role}"]
        self.tokens: dict[str, str] = self._run(arguments, user=None)["tokens"]

    def start(self) -> None:
        """Serve, on the same ports after a restart, so that devices find it again."""
        port = self.url.rpartition(":")[2] or "0"
        mqtt_port = self.mqtt_url.rpartition(":")[2] or "0"
        command = [*_program(), "serve", "--data", str(self.data), "--tenant", self.tenant, "--json"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--port", port, "--mqtt-port", mqtt_port],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "MODELFLEET_TICK_SECONDS": "0.25"},
                start_new_session=True,  # Ctrl-C in the terminal ends the demo, which then ends the server in order
            )
        ready = json.loads(self._first_line())
        self.url, self.mqtt_url = ready["url"], ready["mqtt"]

    def stop(self) -> None:
        """End it as an operator would (SIGTERM), by its process id."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def run(self, *arguments: str, user: str) -> Any:
        """Run a `modelfleet` command as a user and return what it prints with --json.

        Raises:
            CommandFailedError: its exit status was not 0.
        """
        return self._run([*arguments, "--json"], user=user)

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the server's log, for a failure's message."""
        return "\n".join(self._log.read_text().splitlines()[-lines:]) if self._log.exists() else ""

    def _run(self, arguments: Sequence[str], *, user: str | None) -> Any:
        environment = dict(os.environ)
        if user is not None:
            environment |= {"MODELFLEET_URL": self.url, "MODELFLEET_TOKEN": self.tokens[user]}
        done = subprocess.run(
            [*_program(), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise CommandFailedError(
                f"modelfleet {' '.join(arguments)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
            )
        return json.loads(done.stdout)

    def _first_line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(self._process.stdout.readline()), daemon=True)  # pyright: ignore[reportOptionalMemberAccess]
        reader.start()
        reader.join(START_TIMEOUT_SECONDS)
        if not lines or not lines[0]:
            self.kill()
            raise CommandFailedError(f"modelfleet serve did not come up:\n{self.log_tail()}")
        return lines[0]

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None


def _program() -> list[str]:
    return [sys.executable, "-m", "modelfleet.service.cli"]
