"""Every operation of the table is tested, and every one that the converter writes is in the table."""

import ast
from pathlib import Path

from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from modelfleet.converters.mil_evaluator.table import OPERATIONS
from tests.unit.converters.mil_evaluator.packages import TARGETS, Function
from tests.unit.converters.mil_evaluator.test_compression import BUILDERS
from tests.unit.converters.mil_evaluator.test_inference import CASES
from tests.unit.converters.mil_evaluator.test_operations import KNOWN, PEERS

CONVERTER = Path(__file__).parents[4] / "converters/coreml"
OF_PROGRAMS = {"cond", "const", "while_loop", *(name for name in OPERATIONS if "list" in name)}
"""Those of test_program.py."""


def covered() -> set[str]:
    return {case.op for case in (*CASES, *(one.case for one in (*PEERS, *KNOWN)))} | OF_PROGRAMS | compressed()


def compressed() -> set[str]:
    found = set[str]()
    for opset, build in BUILDERS.values():
        with Function({}, opset_version=TARGETS[opset]) as function:
            build()
        found |= {operation.op_type for operation in function.operations}
    return found


def written() -> set[str]:
    """Names after `mb.`, and strings that name an operation: the converter has tables of them."""
    names = set[str]()
    for path in CONVERTER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("mb", "_mb"):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names & set(SSAOpRegistry.core_ops)


def test_every_operation_of_the_table_is_tested() -> None:
    assert sorted(set(OPERATIONS) - covered()) == []


def test_every_operation_that_the_converter_writes_is_evaluated_and_tested() -> None:
    assert len(written()) > 30
    assert sorted(written() - covered()) == []
