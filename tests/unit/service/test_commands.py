"""Every command has help with an example, and speaks JSON."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from modelfleet.agent_client.cli import cli as agent
from modelfleet.service.cli import main as server
from modelfleet.signer.cli import main as signer

WITHOUT_JSON = {"modelfleet-signer serve"}


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for sub, inner in command.commands.items():
            yield from leaves(f"{name} {sub}", inner)
    else:
        yield name, command


COMMANDS = dict(
    [*leaves("modelfleet", server), *leaves("modelfleet-agent", agent), *leaves("modelfleet-signer", signer)]
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    shown = CliRunner().invoke(COMMANDS[name], ["--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.output, f"{name} --help shows no example"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - WITHOUT_JSON))
def test_speaks_json(name: str) -> None:
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


def test_a_command_does_not_load_the_server() -> None:
    """Half a second of every command, otherwise."""
    names = "{'fastapi', 'sqlalchemy', 'amqtt', 'onnxruntime'}"
    asked = f"import sys, modelfleet.service.cli; print(sorted({names} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_commands_of_the_main_job_are_there() -> None:
    rollout = {
        f"modelfleet rollout {verb}"
        for verb in ["create", "approve", "start", "status", "pause", "resume", "halt", "rollback"]
    }
    wanted = rollout | {"modelfleet serve", "modelfleet publish", "modelfleet devices", "modelfleet audit"}
    wanted |= {f"modelfleet-agent {verb}" for verb in ("enroll", "run", "status")}
    assert wanted <= set(COMMANDS) | {name.rpartition(" ")[0] for name in COMMANDS}  # some have become groups
