"""docs/security.md names tests that exist, and every test of an attack has a guard whose removal makes it fail."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


def attacks() -> set[str]:
    """Return the names of all tests of attacks."""
    return {name for path in (ROOT / "tests" / "attacks").glob("test_*.py") for name in TEST.findall(path.read_text())}


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    table = set(re.findall(r"`(test_\w+)`", page.split("| an attacker holds |", 1)[1].split("\n\n", 1)[0]))
    assert len(table) > 50
    assert table - attacks() == set()
    everywhere = {name for path in (ROOT / "tests").rglob("test_*.py") for name in TEST.findall(path.read_text())}
    assert named - everywhere == set()


def test_every_row_of_the_table_is_shown_by_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.split("| an attacker holds |", 1)[1].split("\n\n", 1)[0]
    assert [row for row in table.splitlines()[2:] if "`test_" not in row] == []


def test_every_test_of_an_attack_fails_without_its_guard() -> None:
    """`python -m tests.mutate` shows it; here: that it is asked of every one, or that a reason says why not."""
    tests = ROOT / "tests"
    files = sorted((tests / "attacks").glob("test_*.py"))
    attacks = {f"{path.relative_to(ROOT)}::{name}" for path in files for name in TEST.findall(path.read_text())}
    lists = [tomllib.loads(path.read_text()) for path in tests.rglob("mutations.toml")]
    exempt: dict[str, str] = {test: why for found in lists for test, why in found.get("exempt", {}).items()}
    entries = [row["test"] for found in lists for row in found.get("mutation", [])]
    named = {test.partition("[")[0] for entry in entries for test in ([entry] if isinstance(entry, str) else entry)}
    assert attacks - named - exempt.keys() == set()
    assert exempt.keys() <= attacks - named
    assert all(exempt.values())
