"""Which actions the audit trail knows: every one that the code appends stands in docs/audit.md, and no other."""

import ast
import re
from pathlib import Path

from modelfleet.rollout.states import Event

ROOT = Path(__file__).resolve().parents[3]
ACTION = re.compile(r"[a-z]+(?:-[a-z]+)*\.[a-z]+(?:-[a-z]+)*")
APPENDING = {"Entry", "append", "_append", "_audit", "_note", "_record", "record"}
OPEN = {"rollout.": {event.value for event in Event}, "version.": {"ready", "failed"}}
"""Actions whose verb is a value: the state table's events, a version's end."""


def appended() -> set[str]:
    """Return every action that a call of an appending function names."""
    found: set[str] = set()
    for folder in ("registry", "rollout", "service"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and name_of(node.func) in APPENDING:
                    for value in (*node.args, *(keyword.value for keyword in node.keywords)):
                        found |= actions_of(value)
    return found


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def actions_of(value: ast.expr) -> set[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and ACTION.fullmatch(value.value):
        return {value.value}
    if isinstance(value, ast.JoinedStr) and isinstance(value.values[0], ast.Constant):
        begins = str(value.values[0].value)
        return {begins + verb for verb in OPEN.get(begins, ())}
    return set()


def documented() -> set[str]:
    table = (ROOT / "docs" / "audit.md").read_text().split("| action |", 1)[1].split("\n\n", 1)[0]
    return {action for row in table.splitlines()[2:] for action in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_every_action_of_the_code_is_documented_and_every_documented_one_is_there() -> None:
    assert sorted(appended()) == sorted(documented())


def test_the_trail_covers_people_devices_versions_rollouts_and_trust() -> None:
    nouns = {action.split(".")[0] for action in appended()}
    assert {"user", "group", "claim-token", "device", "certificate", "version", "variant", "rollout"} <= nouns
    assert {"desired", "policy", "metadata", "tenant", "device-key", "bundle"} <= nouns
