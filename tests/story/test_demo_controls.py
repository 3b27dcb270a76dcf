"""The demo without its faults: what made the versions fail was the fault, and nothing in the demo writes verdicts."""

from pathlib import Path

import pytest

from examples.demo.display import Display
from examples.demo.story import COMPLETED, FLOAT, INT8, ROLLED_BACK, Scenario, Story

BOTH = {FLOAT: COMPLETED, INT8: COMPLETED}


@pytest.mark.slow
@pytest.mark.in_turn(0, 2)
@pytest.mark.timeout(300)
def test_without_its_fault_1_2_0_completes_and_1_3_0_with_the_bytes_of_1_1_0_completes(tmp_path: Path) -> None:
    scenario = Scenario(
        devices=8,
        fault=False,
        attacks=False,
        model_of={
            "1.0.0": "digits-1.0.0.onnx",
            "1.1.0": "digits-1.1.0.onnx",
            "1.2.0": "digits-1.2.0.onnx",
            "1.3.0": "digits-1.1.0.onnx",
        },
        expected=dict.fromkeys(("1.0.0", "1.1.0", "1.2.0", "1.3.0"), BOTH),
    )
    story = Story(tmp_path, scenario, Display(quiet=True))
    try:
        assert story.run()
    finally:
        story.stop()


@pytest.mark.slow
@pytest.mark.in_turn(1, 2)
@pytest.mark.timeout(300)
def test_the_demo_fails_when_a_verdict_is_not_the_expected_one(tmp_path: Path) -> None:
    scenario = Scenario(
        devices=8,
        attacks=False,
        model_of={"1.0.0": "digits-1.0.0.onnx"},
        expected={"1.0.0": {FLOAT: COMPLETED, INT8: ROLLED_BACK}},
    )
    story = Story(tmp_path, scenario, Display(quiet=True))
    try:
        assert not story.run()
    finally:
        story.stop()
