"""Every transition is told, once per id, signed; what does not arrive is sent again, longer and longer, and then given up."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from sqlalchemy import select

from modelfleet.policies.roles import Role
from modelfleet.registry import people, problems
from modelfleet.rollout.errors import WebhookDeliveryError, WebhookKeyError
from modelfleet.rollout.tables import WebhookDelivery
from modelfleet.rollout.webhooks import outbox
from modelfleet.rollout.webhooks.commands import webhooks
from modelfleet.rollout.webhooks.routes import router
from modelfleet.rollout.webhooks.send import PAUSES_SECONDS, Sender, post
from modelfleet.rollout.webhooks.signature import WebhookKey, sign, verify
from tests.unit.registry.conftest import serve

FLOAT = "linux-cpu-float"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Receiver(ThreadingHTTPServer):
    """A real HTTP server that keeps what it is sent, and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 204
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hooks?x=1"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def key(tmp_path: Path) -> WebhookKey:
    return WebhookKey(tmp_path / "service" / "webhooks.key")


@pytest.fixture
def sender(fleet, key: WebhookKey) -> Sender:
    return Sender(fleet.registry.sessions, "acme", key, private=True, jitter=lambda: 0.5)


@pytest.fixture
def listening(fleet, receiver: Receiver) -> str:
    with fleet.registry.sessions.begin() as session:
        asked = outbox.EndpointRequest(url=receiver.url)
        return outbox.add_endpoint(session, "acme", asked, actor="root", now=fleet.now).id


def deliveries(fleet) -> list[WebhookDelivery]:
    with fleet.registry.sessions() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id)))


def draft(fleet) -> str:
    fleet.enrol(FLOAT, 4)
    fleet.publish("1.0.0", 1)
    return fleet.create("1.0.0")


def test_every_transition_is_told_with_what_it_rests_on(fleet, receiver, sender, listening) -> None:
    rollout = draft(fleet)
    while sender.send_due(fleet.now):
        pass
    told = [json.loads(body) for _, body in receiver.got]
    assert {each["type"] for each in told} == {"rollout.validate", "rollout.request-approval"}
    assert {each["data"]["rollout"] for each in told} == {rollout}
    assert {each["data"]["version"] for each in told} == {"1.0.0"}
    assert all(each["data"]["after"] and each["data"]["groups"] for each in told)
    assert [row.state for row in deliveries(fleet)] == ["DELIVERED"] * 2


def test_a_receiver_verifies_by_the_standard_alone(fleet, receiver, sender, listening, key) -> None:
    draft(fleet)
    sender.send_due(fleet.now)
    headers, body = receiver.got[0]
    secret = base64.b64decode(key.secret(listening, 1).removeprefix("whsec_"))
    text = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = base64.b64encode(hmac.new(secret, text, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert verify(key.secret(listening, 1), headers, body, fleet.now)
    assert not verify(key.secret(listening, 1), headers, body + b" ", fleet.now)
    assert not verify(key.secret(listening, 2), headers, body, fleet.now)
    assert not verify(key.secret(listening, 1), headers, body, fleet.now + timedelta(minutes=6))


def test_a_change_that_is_undone_is_not_told(fleet, listening) -> None:
    with pytest.raises(RuntimeError), fleet.registry.sessions.begin() as session:
        outbox.enqueue(session, "acme", "rollout.halt", {}, fleet.now)
        raise RuntimeError
    assert deliveries(fleet) == []


def test_what_did_not_arrive_comes_again_under_the_same_id_and_is_given_up_in_the_end(
    fleet, receiver, sender, listening
) -> None:
    receiver.status = 500
    with fleet.registry.sessions.begin() as session:
        outbox.try_endpoint(session, "acme", listening, actor="root", now=fleet.now)
    now, waited = fleet.now, []
    assert sender.send_due(now) == 1
    while (row := deliveries(fleet)[0]).state == "PENDING":
        waited.append((row.next_at - now).total_seconds())
        now = row.next_at
        assert sender.send_due(now - timedelta(seconds=1)) == 0
        assert sender.send_due(now) == 1
    assert waited == pytest.approx(PAUSES_SECONDS)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len(receiver.got) == len(PAUSES_SECONDS) + 1
    assert (row.state, row.error) == ("FAILED", "expected a status 2xx, got 500")
    receiver.status = 200
    with fleet.registry.sessions.begin() as session:
        outbox.send_again(session, "acme", row.id, actor="root", now=now)
    assert sender.send_due(now) == 1
    assert deliveries(fleet)[0].state == "DELIVERED"


def test_of_two_processes_one_sends_and_who_dies_leaves_it_to_the_other(fleet, receiver, key, listening) -> None:
    with fleet.registry.sessions.begin() as session:
        outbox.try_endpoint(session, "acme", listening, actor="root", now=fleet.now)
    one, other = (Sender(fleet.registry.sessions, "acme", key, private=True) for _ in range(2))
    name = deliveries(fleet)[0].id
    assert one._claim(name, fleet.now) is not None  # and dies here
    assert other._claim(name, fleet.now) is None
    assert other.send_due(fleet.now + timedelta(seconds=59)) == 0
    assert other.send_due(fleet.now + timedelta(seconds=61)) == 1
    assert len(receiver.got) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 404, 500])
def test_anything_but_2xx_is_no_delivery_and_no_redirect_is_followed(receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(WebhookDeliveryError, match=f"got {status}"):
        post(receiver.url, b"{}", {}, private=True)
    assert len(receiver.got) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0"])
def test_a_webhook_does_not_reach_into_the_operators_network(host: str) -> None:
    with pytest.raises(WebhookDeliveryError, match=r"not a public address|cannot be resolved"):
        post(f"http://{host}:9/", b"{}", sign("whsec_aGk=", "msg_1", NOW, b"{}"), private=False)


def test_nobody_answers(receiver: Receiver) -> None:
    with pytest.raises(WebhookDeliveryError, match="no answer"):
        post("http://127.0.0.1:1/", b"{}", {}, private=True)


def test_an_endpoint_is_told_of_what_it_asked_for_and_nothing_after_it_is_removed(fleet, listening) -> None:
    with fleet.registry.sessions.begin() as session:
        wanted = outbox.EndpointRequest(url="https://hooks.example/", events=["rollout.roll-back", "rollout.ad*"])
        outbox.add_endpoint(session, "acme", wanted, actor="root", now=fleet.now)
        assert outbox.enqueue(session, "acme", "rollout.halt", {}, fleet.now) == 1
        assert outbox.enqueue(session, "acme", "rollout.roll-back", {}, fleet.now) == 2
        assert outbox.enqueue(session, "other", "rollout.roll-back", {}, fleet.now) == 0
        outbox.remove_endpoint(session, "acme", listening, actor="root", now=fleet.now)
        assert outbox.enqueue(session, "acme", "rollout.halt", {}, fleet.now) == 0
    assert sorted(row.state for row in deliveries(fleet)) == ["FAILED", "FAILED", "PENDING"]


def test_a_damaged_key_is_told_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.key"
    made = WebhookKey(path).secret("a", 1)
    assert WebhookKey(path).secret("a", 1) == made
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"short")
    with pytest.raises(WebhookKeyError, match="restore it"):
        WebhookKey(path).secret("a", 1)


@pytest.fixture
def command(fleet, key: WebhookKey) -> Iterator[Callable[..., object]]:
    app = FastAPI()
    problems.install(app)
    app.include_router(router)
    app.state.registry, app.state.webhook_key = fleet.registry, key
    with fleet.registry.sessions.begin() as session:
        tokens = {
            name: people.make_user(session, "acme", name=name, role=role, actor="test", now=fleet.now)[1]
            for name, role in (("root", Role.ADMIN), ("vic", Role.VIEWER))
        }
    with serve(app) as url:

        def run(*arguments: str, user: str = "root", status: int = 0) -> object:
            environment = {"MODELFLEET_URL": url, "MODELFLEET_TOKEN": tokens[user]}
            done = CliRunner(env=environment).invoke(webhooks, [*arguments, "--json"])
            assert done.exit_code == status, done.output
            return json.loads(done.stdout) if status == 0 else json.loads(done.stderr)

        yield run


def test_a_pattern_that_matches_no_event_is_refused(command, receiver) -> None:
    refused = command("create", receiver.url, "--event", "rollout.rollback", status=1)
    assert "matches no event: expected some of" in refused["detail"]
    assert "rollout.roll-back" in refused["detail"]
    assert command("list") == []


def test_the_commands_tell_the_secret_once(command, receiver, sender, fleet) -> None:
    made = command("create", receiver.url, "--event", "rollout.*")
    assert made["secret"].startswith("whsec_")
    (listed,) = command("list")
    assert "secret" not in listed
    command("test", made["id"])
    now = datetime.now(UTC)
    assert sender.send_due(now) == 1
    headers, body = receiver.got[0]
    assert verify(made["secret"], headers, body, now)
    (delivery,) = command("deliveries", made["id"])
    assert (delivery["event"], delivery["state"], delivery["next_at"]) == ("webhook.test", "DELIVERED", None)
    rotated = command("rotate", made["id"])
    assert rotated["secret"] != made["secret"]
    command("retry", delivery["id"])
    command("remove", made["id"])
    assert command("list") == []
    assert command("deliveries", made["id"], status=1)["status"] == 404


@pytest.mark.parametrize(
    "url",
    ["ftp://hooks.example/", "https://", "https://user:pass@hooks.example/", "no url", "http://[::1", "https://a:0/"],
)
def test_what_is_no_url_is_refused(command, url: str) -> None:
    assert command("create", url, status=1)["status"] == 422


@pytest.mark.parametrize("event", ["", "ROLLOUT", "rollout.[a-z]", "a" * 65])
def test_what_is_no_pattern_is_refused(command, event: str) -> None:
    assert command("create", "https://hooks.example/", "--event", event, status=1)["status"] == 422


def test_only_an_admin_reads_and_writes_webhooks(command) -> None:
    assert command("list", user="vic", status=1)["status"] == 403
    assert command("create", "https://hooks.example/", user="vic", status=1)["status"] == 403
