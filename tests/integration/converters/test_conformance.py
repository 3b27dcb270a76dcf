"""No target falls behind its committed conformance table: nothing wrong, and every case once right still right.

A part of the cases runs for each commit, another for the next; all of them with MODELFLEET_ALL=1, or by
`make bench SUITE=conformance`.
"""

from collections import Counter

import pytest

from modelfleet.benchmarks.suites._cases import cases_of, rules
from modelfleet.benchmarks.suites._conformance import TABLES, read_table, run_cases
from modelfleet.benchmarks.suites._trial import DISPROVED, REFUSED, RIGHT, WRONG, Verdict
from tests.integration.converters.zoo import missing
from tests.turns import has_its_turn

TARGETS = sorted(path.stem for path in TABLES.glob("*.tsv"))
PARTS = {"browser": 6, "c99": 24, "coreml": 8, "mlx": 4, "onnxruntime": 4, "tflite": 16}
"""Target -> into how many parts its cases are divided, one of which runs."""


@pytest.mark.parametrize("target", TARGETS)
def test_a_committed_table_has_every_case_and_holds_its_share(target: str):
    rule, table = rules()[target], read_table(target)
    assert sorted(table) == sorted(cases_of(rule))
    assert len(table) == rule.denominator
    counts = Counter(verdict.outcome for verdict in table.values())
    assert set(counts) <= {RIGHT, REFUSED, DISPROVED}
    assert counts[RIGHT] / rule.denominator >= rule.at_least
    assert not [case for case, verdict in table.items() if verdict.outcome != RIGHT and not verdict.reason]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_no_case_is_wrong_and_none_is_right_no_longer(target: str):
    if missing(target):
        pytest.skip(missing(target))
    rule, table = rules()[target], read_table(target)
    found = run_cases(rule, [case for case in cases_of(rule) if has_its_turn(case, PARTS[target])])
    assert not [verdict for verdict in found.values() if verdict.outcome == WRONG]
    lost = lost_of(table, found)
    again = run_cases(rule, lost, workers=1)  # a busy machine ends a case in time that it would answer
    assert not [again[case] for case in lost_of(table, again)]


def lost_of(table: dict[str, Verdict], found: dict[str, Verdict]) -> list[str]:
    return [case for case, verdict in found.items() if table[case].outcome == RIGHT and verdict.outcome != RIGHT]
