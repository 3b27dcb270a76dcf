from datetime import timedelta

import pytest

from modelfleet.policies.errors import OfflineRefusedError
from modelfleet.policies.offline import MAX_DEVICES, parse_duration, require_devices, require_validity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", timedelta(days=30)),
        ("12h", timedelta(hours=12)),
        ("90m", timedelta(minutes=90)),
        (" 2w ", timedelta(weeks=2)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "0d", "1.5d", "3y", "1d1h", "９d", "99999999d"])
def test_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(OfflineRefusedError, match="30d"):
        parse_duration(text)


def test_a_bundle_holds_for_90_days_at_most() -> None:
    require_validity(timedelta(days=90))
    with pytest.raises(OfflineRefusedError, match="90 days"):
        require_validity(timedelta(days=90, seconds=1))


def test_a_bundle_holds_for_some_time() -> None:
    with pytest.raises(OfflineRefusedError):
        require_validity(timedelta(seconds=0))


def test_a_bundle_is_for_somebody_and_not_for_everybody() -> None:
    require_devices(MAX_DEVICES)
    for count in (0, MAX_DEVICES + 1):
        with pytest.raises(OfflineRefusedError):
            require_devices(count)
