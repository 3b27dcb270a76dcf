"""One fleet for the whole story: real service, signer, broker, agents, on loopback and free ports."""

from collections.abc import Iterator

import pytest

from examples.demo.display import Display
from examples.demo.story import Scenario, Story


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    story = Story(tmp_path_factory.mktemp("story"), Scenario(devices=8), Display(quiet=True))
    yield story
    story.stop()
