"""README.md names files that exist and commands that the programs take."""

import re
import shlex
from pathlib import Path

import click
import pytest

from modelfleet.agent_client.cli import cli as agent
from modelfleet.service.cli import main as server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROGRAMS: dict[str, click.Command] = {"modelfleet": server, "modelfleet-agent": agent}


def steps() -> list[list[str]]:
    """Return the rows of the table step | file | test, as lists of cells."""
    table = README.split("| step | file | test |\n", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[1:]]


def commands() -> list[str]:
    """Return the command lines of the section on the programs."""
    shell = README.split("## The programs", 1)[1].split("```sh\n", 1)[1].split("```", 1)[0]
    return [line for line in shell.replace("\\\n", " ").splitlines() if line]


@pytest.mark.parametrize("row", steps(), ids=lambda row: row[0])
def test_every_step_names_code_and_tests_that_exist(row: list[str]) -> None:
    _, code, tests = [re.findall(r"`([^`]+)`", cell) for cell in row]
    assert code and tests
    assert [name for name in code + tests if not (ROOT / name).exists()] == []
    assert all(name.startswith("tests/") for name in tests)
    assert not any(name.startswith("tests/") for name in code)


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_its_program_takes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the files that it names are the example's
    name, *words = shlex.split(line, comments=True)
    command = PROGRAMS[name]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(name, words)  # UsageError: an option, an argument or a file is none


def test_every_page_of_the_documentation_is_in_the_navigation() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
