"""Which builds are begun anew: those that nobody will ever finish, and no other."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from modelfleet.service.reaper import RETRY_AFTER, is_stranded
from modelfleet.service.workflows import APPLICATION_VERSION

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LONG_AGO, JUST_NOW = NOW - RETRY_AFTER, NOW - RETRY_AFTER + timedelta(seconds=1)


def workflow(status: str, program: str = APPLICATION_VERSION, ended: datetime = NOW) -> list[Any]:
    completed = int(ended.timestamp() * 1000)
    return [SimpleNamespace(status=status, app_version=program, completed_at=completed, updated_at=completed)]


@pytest.mark.parametrize(
    ("found", "other_programs", "stranded"),
    [
        ([], False, True),
        (workflow("PENDING"), False, False),
        (workflow("ENQUEUED"), False, False),
        (workflow("PENDING", "an earlier one"), False, True),
        (workflow("ENQUEUED", "an earlier one"), True, False),
        (workflow("ERROR", ended=JUST_NOW), False, False),
        (workflow("ERROR", ended=LONG_AGO), False, True),
        (workflow("SUCCESS", ended=LONG_AGO), False, True),
        (workflow("MAX_RECOVERY_ATTEMPTS_EXCEEDED", ended=LONG_AGO), False, False),
    ],
)
def test_what_nobody_will_finish_is_begun_anew(found: list[Any], other_programs: bool, stranded: bool) -> None:
    assert is_stranded(found, NOW, other_programs=other_programs) is stranded
