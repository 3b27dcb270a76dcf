"""A request whose answer never came may have been carried out: the client says so, and where to look, and sends it once."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import UNREACHABLE
from modelfleet.registry.errors import ServerUnreachableError, UnansweredError
from modelfleet.rollout.cli import COMMANDS


@dataclass
class Deaf:
    """A server that takes each request and closes the connection in place of an answer."""

    listener: socket.socket
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Deaf(listener)
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("path", "look"),
    [
        ("/v1/rollouts/3f0c/start", "modelfleet rollout status 3f0c"),
        ("/v1/rollouts/3f0c/retry", "modelfleet rollout devices 3f0c"),
        ("/v1/rollouts", "modelfleet rollout list"),
        ("/v1/webhooks/1/rotate", "modelfleet webhooks list"),
        ("/v1/claim-tokens", "modelfleet audit"),
    ],
)
def test_what_may_have_been_done_is_said_with_where_to_look_and_not_repeated(deaf: Deaf, path: str, look: str) -> None:
    with pytest.raises(UnansweredError, match=f"may have been done: look with `{look}`"):
        ApiClient(deaf.url).post(path)
    assert len(deaf.requests) == 1


def test_a_question_and_what_was_never_sent_are_merely_unanswered(deaf: Deaf) -> None:
    for ask in (
        lambda: ApiClient(deaf.url).get("/v1/rollouts"),
        lambda: ApiClient(deaf.url).post("/v1/rollouts/forecast"),
    ):
        with pytest.raises(ServerUnreachableError) as error:
            ask()
        assert "may have been done" not in str(error.value)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ServerUnreachableError) as error:
            ApiClient(f"http://127.0.0.1:{nobody.getsockname()[1]}").post("/v1/rollouts/3f0c/start")
    assert not isinstance(error.value, UnansweredError)


def test_the_command_says_so_and_ends_as_one_that_reached_no_server(deaf: Deaf) -> None:
    done = CliRunner().invoke(COMMANDS[0], ["start", "3f0c", "--url", deaf.url])
    assert done.exit_code == UNREACHABLE
    assert "look with `modelfleet rollout status 3f0c`" in done.stderr
