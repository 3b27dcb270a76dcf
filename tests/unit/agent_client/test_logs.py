"""A log line names its fields."""

import json
import logging

from modelfleet.agent_client.logs import StructuredFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": "rollout moved", "name": "modelfleet.rollout", "levelname": "INFO"})
    vars(made).update(extra)
    return made


def test_a_plain_line_ends_with_its_fields() -> None:
    line = StructuredFormatter().format(record(rollout="3f0c", reason="evidence suffices"))
    assert line.endswith('INFO modelfleet.rollout rollout moved rollout=3f0c reason="evidence suffices"')


def test_a_json_line_holds_its_fields_and_its_error() -> None:
    made = record(rollout="3f0c")
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        made.exc_info = (RuntimeError, error, error.__traceback__)
    found = json.loads(StructuredFormatter(as_json=True).format(made))
    assert (found["message"], found["rollout"], found["level"]) == ("rollout moved", "3f0c", "INFO")
    assert "RuntimeError: broken" in found["error"]
