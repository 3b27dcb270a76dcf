"""The demo's fleet: real agents, each with a folder, a key and an identity of its own, and labelled traffic through them."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples.demo.faults import BrokenKernel
from modelfleet.agent_client import open_model
from modelfleet.agent_client.agent import Agent
from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.errors import AgentError
from modelfleet.agent_client.model import Model

SLOT = "classifier"
STOP_TIMEOUT_SECONDS = 15

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class DemoDevice:
    """One device: its folder, its agent on a thread, and the application's handle on the active model."""

    name: str
    root: Path
    group: str
    profile: str
    runtimes: Mapping[str, Any]
    agent: Agent | None = None
    model: Model | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Run the agent, as `modelfleet-agent run` does."""
        self._stop = threading.Event()
        self.agent = Agent(self.root, runtimes=self.runtimes)
        self._thread = threading.Thread(
            target=self.agent.run, args=(self._stop,), name=f"agent-{self.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the agent and the application."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_SECONDS)
        self.close_model()

    def close_model(self) -> None:
        """Close the application's handle."""
        if self.model is not None:
            self.model.close()
            self.model = None

    def status(self) -> dict[str, Any]:
        """What `modelfleet-agent status` shows."""
        assert self.agent is not None
        return self.agent.status()


class Devices:
    """Every device of the demo, and the application traffic on each."""

    def __init__(self, root: Path, traffic: Path, *, per_second: float) -> None:
        self.all: list[DemoDevice] = []
        self.fault = BrokenKernel()
        self._root, self._interval = root, 1.0 / per_second
        with np.load(traffic, allow_pickle=False) as arrays:
            self._images, self._labels = arrays["input.image"], arrays["label"]
        self._running = ExitStack()
        self._pause: set[str] = set()

    def enrol(self, url: str, plan: Sequence[tuple[str, str, str]], *, broken_profile: str | None) -> None:
        """Enrol one device per (group, profile, claim token); those of `broken_profile` get the faulty runtime."""

        def one(number: int, group: str, profile: str, token: str) -> DemoDevice:
            name = f"{group}-{number:02}"
            root = self._root / name
            enroll(root, url, token, profile=profile)
            runtimes = {"onnxruntime": self.fault} if profile == broken_profile else {}
            return DemoDevice(name=name, root=root, group=group, profile=profile, runtimes=runtimes)

        with ThreadPoolExecutor(4) as pool:
            made = [pool.submit(one, number, *row) for number, row in enumerate(plan, 1)]
            self.all = [future.result() for future in made]

    def start(self) -> None:
        """Start every agent, and the traffic."""
        for device in self.all:
            device.start()
        stop = threading.Event()
        thread = threading.Thread(target=self._replay, args=(stop,), name="traffic", daemon=True)
        thread.start()
        self._running.callback(thread.join, STOP_TIMEOUT_SECONDS)
        self._running.callback(stop.set)

    def stop(self) -> None:
        """Stop the traffic, then every agent."""
        self._running.close()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(DemoDevice.stop, self.all))

    def without_traffic(self, device: DemoDevice) -> None:
        """No more traffic on this device (it is about to be attacked)."""
        self._pause.add(device.name)

    def _replay(self, stop: threading.Event) -> None:
        """Replay labelled traffic through `open_model` on every device, each at the same rate and in an order of its own."""
        samples = {device.name: self._samples(seed) for seed, device in enumerate(self.all)}
        while not stop.is_set():
            until = time.monotonic() + self._interval
            for device in self.all:
                if device.name not in self._pause:
                    self._infer(device, *next(samples[device.name]))
            stop.wait(max(0.0, until - time.monotonic()))

    def _samples(self, seed: int) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
        rng = np.random.default_rng(seed)
        while True:
            for index in rng.permutation(len(self._labels)):
                yield self._images[index : index + 1], int(self._labels[index])

    @staticmethod
    def _infer(device: DemoDevice, image: np.ndarray[Any, Any], label: int) -> None:
        """What the application does: ask the active model, and report an answer that the label contradicts."""
        try:
            if device.model is None:
                device.model = open_model(SLOT, root=device.root, openers=device.runtimes or None)
            outputs = device.model.run({"image": image})
            if int(np.argmax(next(iter(outputs.values()))[0])) != label:
                device.model.report_error()
        except AgentError:
            pass  # no model yet, or a failed inference: counted by open_model itself
