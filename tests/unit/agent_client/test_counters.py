"""What an application counts reaches the file that the agent reads, whoever puts it there."""

import threading
from pathlib import Path

import pytest

from modelfleet.agent_client import counters
from modelfleet.agent_client.counters import Counters, read_counts


def test_counts_put_into_their_file_by_two_threads_at_once_are_the_last_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counters(tmp_path, 1)
    real, begun, go = counters.encode_struct, threading.Event(), threading.Event()

    def slow(value: object) -> bytes:
        encoded = real(value)
        if not begun.is_set():
            begun.set()
            go.wait(10)
        return encoded

    monkeypatch.setattr(counters, "encode_struct", slow)
    monkeypatch.setattr(counters.FLUSHER, "wake", lambda: None)  # these two threads alone
    counted.count(1.0, wrong=False, slow=False)
    first = threading.Thread(target=counted.flush)
    first.start()
    assert begun.wait(10)
    counted.count(1.0, wrong=False, slow=False)
    second = threading.Thread(target=counted.flush)
    second.start()
    second.join(0.3)
    go.set()
    for thread in (first, second):
        thread.join(10)
    assert read_counts(tmp_path, 1).n == 2
