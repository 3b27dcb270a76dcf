from pathlib import Path

from modelfleet.agent_client.outbox import Outbox
from modelfleet.agent_client.storage import Disk


def test_letters_outlive_the_process_in_their_order(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox", Disk())
    for number in range(12):
        box.add("topic", str(number).encode())
    again = Outbox(tmp_path / "outbox", Disk())
    assert [letter.payload for letter in again.waiting()] == [str(number) for number in range(12)]
    again.add("topic", b"last")
    assert again.waiting()[-1].payload == "last"


def test_a_letter_is_gone_once_it_was_acknowledged(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox", Disk())
    box.add("topic", b"one")
    box.add("topic", b"two")
    box.acknowledged(box.waiting()[0].number)
    assert [letter.payload for letter in Outbox(tmp_path / "outbox", Disk()).waiting()] == ["two"]


def test_keeps_the_newest_beyond_its_limit(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox", Disk(), limit=3)
    for number in range(5):
        box.add("topic", str(number).encode())
    assert [letter.payload for letter in box.waiting()] == ["2", "3", "4"]
    assert len(list((tmp_path / "outbox").iterdir())) == 3


def test_a_damaged_letter_stops_no_other(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox", Disk())
    box.add("topic", b"one")
    (tmp_path / "outbox" / "000000000000.json").write_bytes(b"\x00")
    assert [letter.payload for letter in Outbox(tmp_path / "outbox", Disk()).waiting()] == ["one"]
