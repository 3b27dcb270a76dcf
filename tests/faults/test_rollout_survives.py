"""A full disk, a broker that goes away, a registry that is killed: the rollout ends in the same state as without."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.demo.devices import SLOT, DemoDevice
from examples.demo.display import Display
from examples.demo.story import COMPLETED, FLOAT, INT8, Scenario, Story
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

VERSION = "1.0.0"


def make_story(folder: Path) -> Story:
    scenario = Scenario(
        devices=8,
        fault=False,
        attacks=False,
        model_of={VERSION: f"digits-{VERSION}.onnx"},
        expected={VERSION: {FLOAT: COMPLETED, INT8: COMPLETED}},
    )
    return Story(folder, scenario, Display(quiet=True))


@contextmanager
def during_the_rollout(story: Story, *, on_candidate: int, trouble: threading.Thread) -> Iterator[None]:
    """Start `trouble` once that many devices run the candidate."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            running = sum(1 for device in story.devices.all if _runs(device))
            if running >= on_candidate:
                trouble.start()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        assert trouble.ident is not None, "the rollout ended before the trouble began"
        trouble.join()


def _runs(device: DemoDevice) -> bool:
    return device.status()["slots"].get(SLOT, {}).get("version") == VERSION


def await_all_running(story: Story) -> None:
    """Return once every device runs the version: a rollout completes without those that have not come back yet."""
    until = time.monotonic() + 60
    while late := [device.status() for device in story.devices.all if not _runs(device)]:
        assert time.monotonic() < until, late
        time.sleep(0.2)


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = make_story(tmp_path)
    yield story
    story.stop()


def test_the_registry_is_killed_and_restarted_in_the_middle_of_a_rollout(story: Story) -> None:
    story.create_fleet()
    story.publish(VERSION)

    def kill_and_restart() -> None:
        story.server.kill()
        time.sleep(1)
        story.server.start()

    story.start_rollout(VERSION)
    with during_the_rollout(story, on_candidate=4, trouble=threading.Thread(target=kill_and_restart)):
        story.follow(VERSION)
    assert story.judge(), story.server.log_tail()
    await_all_running(story)


def test_the_broker_goes_away_and_comes_back_empty_in_the_middle_of_a_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = [EmbeddedBroker("acme", lambda _device, _token: True)]
    brokers[0].start()
    port = int(brokers[0].url.rpartition(":")[2])
    monkeypatch.setenv("MODELFLEET_MQTT_URL", brokers[0].url)
    monkeypatch.setenv("MODELFLEET_MQTT_VERSION", "3.1.1")  # amqtt's, as if it were somebody else's broker
    monkeypatch.setenv("MODELFLEET_MQTT_USERNAME", CONTROLLER)
    monkeypatch.setenv("MODELFLEET_MQTT_PASSWORD", brokers[0].controller_password)
    story = make_story(tmp_path)
    try:
        story.create_fleet()
        story.publish(VERSION)

        def replace() -> None:
            brokers[0].stop()
            time.sleep(3)
            password = brokers[0].controller_password
            again = EmbeddedBroker("acme", lambda _device, _token: True, port=port, controller_password=password)
            again.start()
            brokers.append(again)

        story.start_rollout(VERSION)
        with during_the_rollout(story, on_candidate=4, trouble=threading.Thread(target=replace)):
            story.follow(VERSION)
        assert story.judge(), story.server.log_tail()
        await_all_running(story)
    finally:
        story.stop()
        for broker in brokers:
            broker.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system for one device")
def test_one_devices_disk_is_full_when_the_update_comes(story: Story) -> None:
    story.create_fleet()
    story.publish(VERSION)
    device = story.devices.all[0]
    with small_disk(device) as fill:
        filler = fill()

        def make_room() -> None:
            filler.unlink()

        story.start_rollout(VERSION)
        with during_the_rollout(story, on_candidate=4, trouble=threading.Thread(target=make_room)):
            story.follow(VERSION)
        assert story.judge(), story.server.log_tail()
        assert _runs(device)
        story.stop()


@contextmanager
def small_disk(device: DemoDevice) -> Iterator[object]:
    """Move the device's folder onto a file system of 2 MiB; yields what fills it to the last block."""
    device.stop()
    copy = device.root.with_name(device.root.name + "-copy")
    subprocess.run(["cp", "-a", str(device.root), str(copy)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(device.root)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{copy}/.", str(device.root)], check=True)

        def fill() -> Path:
            filler = device.root / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"\0" * 4096)
                except OSError:
                    pass
            with filler.open("r+b") as file:  # room for the agent's own small records, not for a model
                file.truncate(filler.stat().st_size - 32 * 1024)
            return filler

        device.start()
        yield fill
    finally:
        device.stop()
        subprocess.run(["umount", "-l", str(device.root)], check=True)
