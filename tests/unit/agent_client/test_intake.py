"""What waits to be taken in: the newest of each topic, and what is tried again."""

import time

import pytest

from modelfleet.agent_client import intake
from modelfleet.agent_client.intake import Inbox


def test_of_one_topic_only_the_newest_waits() -> None:
    inbox = Inbox()
    for payload in (b"1", b"2"):
        inbox.put("a", payload)
    inbox.put("b", b"3")
    assert inbox.take(time.monotonic()) == {"a": b"2", "b": b"3"}
    assert inbox.take(time.monotonic()) == {}


def test_what_is_tried_again_comes_back_once_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "RETRY_DOCUMENT_SECONDS", 100.0)
    inbox = Inbox()
    inbox.try_again("a", b"1")
    assert inbox.take(time.monotonic() + 90) == {}
    assert inbox.take(time.monotonic() + 110) == {"a": b"1"}
    assert inbox.take(time.monotonic() + 110) == {}


def test_what_is_newer_goes_before_what_is_tried_again() -> None:
    inbox = Inbox()
    later = time.monotonic() + 2 * intake.RETRY_DOCUMENT_SECONDS
    inbox.try_again("a", b"old")
    inbox.put("a", b"new")
    assert inbox.take(later) == {"a": b"new"}
    assert inbox.take(later) == {}
    inbox.try_again("a", b"old")
    inbox.drop("a")
    assert inbox.take(later) == {}
