"""docs/security.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


def attacks() -> set[str]:
    """Return the names of all tests of attacks."""
    return {name for path in (ROOT / "tests" / "attacks").glob("test_*.py") for name in TEST.findall(path.read_text())}


def test_every_test_that_the_table_names_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 50
    assert named - attacks() == set()


def test_every_row_of_the_table_is_shown_by_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.split("| an attacker holds |", 1)[1].split("\n\n", 1)[0]
    assert [row for row in table.splitlines()[2:] if "`test_" not in row] == []
