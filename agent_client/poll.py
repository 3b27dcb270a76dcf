"""The fallback where MQTT cannot be held: the same documents and the same messages over HTTPS.

`GET /v1/device/desired` with an ETag, `POST /v1/device/messages` for what waits in the outbox.
"""

from collections.abc import Callable
from typing import Annotated

import msgspec

from modelfleet.agent_client.errors import TransferError
from modelfleet.agent_client.link import full_jitter
from modelfleet.agent_client.outbox import Outbox
from modelfleet.agent_client.transport import Client
from modelfleet.signer.errors import FormatError
from modelfleet.signer.parse import parse_json

MAX_DESIRED_BYTES = 512 * 1024
LETTERS_PER_POST = 64
LONGEST_DELAY_SECONDS = 300.0

Text = Annotated[str, msgspec.Meta(max_length=256)]


class Poller:
    """Asks the server at intervals; `due` says when.

    Args:
        deliver: called with the DSSE bytes, the assignment's first: `deliver_assignment`, then `deliver_group`.
        seconds: the interval, drawn anew each time from its half to its whole.
    """

    def __init__(
        self,
        client: Client,
        server: str,
        *,
        deliver_assignment: Callable[[bytes], None],
        deliver_group: Callable[[bytes], None],
        outbox: Outbox,
        seconds: float,
    ) -> None:
        self._client = client
        self._server = server.rstrip("/")
        self._deliver_assignment = deliver_assignment
        self._deliver_group = deliver_group
        self._outbox = outbox
        self._seconds = seconds
        self._etag = ""
        self._attempt = 0
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time, on the monotonic clock."""
        return now >= self._next

    def wait(self, now: float, seconds: float) -> None:
        """Do not ask before `seconds` from now."""
        self._next = now + seconds

    def poll(self, now: float, metrics: list[tuple[str, bytes]]) -> None:
        """Send what waits and `metrics` ((topic, payload) each), and take what is new.

        Raises:
            TransferError: the server did not answer; the next poll is due after a longer, random wait.
            FormatError: it answered something else.
        """
        try:
            self._post(metrics)
            self._get()
        except TransferError:
            longest = max(LONGEST_DELAY_SECONDS, self._seconds)
            self._next = now + full_jitter(self._attempt, first_seconds=self._seconds, longest_seconds=longest)
            self._attempt += 1
            raise
        self._attempt = 0
        self._next = (
            now + self._seconds / 2 + full_jitter(0, first_seconds=self._seconds / 2, longest_seconds=self._seconds)
        )

    def _get(self) -> None:
        headers = {"If-None-Match": self._etag} if self._etag else {}
        answer = self._client.get(f"{self._server}/v1/device/desired", max_bytes=MAX_DESIRED_BYTES, headers=headers)
        if answer.status == 304:
            return
        found = parse_json(answer.body, max_bytes=MAX_DESIRED_BYTES)
        if not isinstance(found, dict):
            raise FormatError("expected an object of group and assignment, got something else")
        documents = msgspec.convert(found, dict[str, object])
        for name, deliver in (("assignment", self._deliver_assignment), ("group", self._deliver_group)):
            if documents.get(name) is not None:
                deliver(msgspec.json.encode(documents[name]))
        self._etag = answer.etag  # only now: a document that could not be handed on is asked for again

    def _post(self, metrics: list[tuple[str, bytes]]) -> None:
        letters = self._outbox.waiting()[:LETTERS_PER_POST]
        messages = [{"topic": letter.topic, "payload": letter.payload} for letter in letters]
        messages += [{"topic": topic, "payload": payload.decode()} for topic, payload in metrics]
        if messages:
            self._client.post_json(f"{self._server}/v1/device/messages", {"messages": messages}, max_bytes=64 * 1024)
        for letter in letters:
            self._outbox.acknowledged(letter.number)
