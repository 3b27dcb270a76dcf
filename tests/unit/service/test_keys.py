"""`modelfleet keys`, as people use it: a ceremony, the air gap, a rotation, a status that warns."""

import json
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelfleet.service.cli import main
from modelfleet.signer.files import folder_lock
from modelfleet.signer.key_book import locate
from modelfleet.signer.keys import key_id, public_key
from modelfleet.signer.passphrase import ask_passphrase, passphrase_file
from modelfleet.signer.rotate import renewal
from modelfleet.signer.stage import publish, sign_here

PASSPHRASE = "correct horse battery staple"
Keys = Callable[..., Result]


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    return tmp_path / "passphrase"


@pytest.fixture
def keys(tmp_path: Path, passphrase: Path) -> Keys:
    """Runs `modelfleet keys ...` on a fleet whose offline keys are encrypted."""
    runner = CliRunner()

    def run(*arguments: str, rc: int = 0, env: dict[str, str] | None = None) -> Result:
        done = runner.invoke(main, ["keys", *arguments], env={"MODELFLEET_PASSPHRASE": None, **(env or {})})
        assert done.exit_code == rc, done.output
        return done

    made = run(
        "init", *at(tmp_path), "--bits", "2", "--approver", "anna", "--passphrase-file", str(passphrase), "--json"
    )
    assert set(json.loads(made.output)["tokens"]) == {"admin"}
    return run


def at(folder: Path) -> tuple[str, ...]:
    return ("--data", str(folder / "fleet"), "--tenant", "acme")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_makes_the_layout_of_init_with_encrypted_offline_keys(keys: Keys, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["init", "--data", str(tmp_path / "tryout"), "--tenant", "acme", "--bits", "2", "--approver", "anna"]
    )
    assert done.exit_code == 0, done.output
    assert without_digests(files(tmp_path / "fleet")) == without_digests(files(tmp_path / "tryout"))
    for path in (tmp_path / "fleet" / "offline").iterdir():
        assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert PASSPHRASE not in (tmp_path / "fleet" / "keys.json").read_text()


def without_digests(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith("trust/acme/targets/")}


def test_takes_m_of_n_keys_that_are_there_already(tmp_path: Path) -> None:
    runner = CliRunner()
    for name in ("one", "two", "anna"):
        assert runner.invoke(main, ["keys", "make", f"file:{tmp_path}/{name}.pem"]).exit_code == 0
    shown = runner.invoke(main, ["keys", "public", f"file:{tmp_path}/anna.pem"])
    (tmp_path / "anna.pub.pem").write_text(shown.stdout)
    given = [f"--root-key=file:{tmp_path}/{name}.pem" for name in ("one", "two")]
    options = ["--no-encrypt", "--root-threshold=1", f"--approver=anna=file:{tmp_path}/anna.pub.pem", "--json"]
    done = runner.invoke(main, ["keys", "init", *at(tmp_path), "--bits=2", *given, *options])
    assert done.exit_code == 0, done.output
    status = json.loads(runner.invoke(main, ["keys", "status", *at(tmp_path), "--json"]).stdout)
    roles = {row["role"]: row for row in status["roles"]}
    assert (roles["root"]["threshold"], len(roles["root"]["keys"])) == (1, 2)
    assert roles["approver"]["keys"][0]["keyid"] == key_id(public_key(f"file:{tmp_path}/anna.pem"))
    assert not list((tmp_path / "fleet" / "people").glob("approver-*"))


def test_a_change_crosses_the_air_gap_and_back(keys: Keys, tmp_path: Path, passphrase: Path) -> None:
    """The offline keys are on two other machines; the change travels there and back as one file."""
    fleet, stick = tmp_path / "fleet", tmp_path / "stick.json"
    (fleet / "offline").rename(tmp_path / "safe")
    staged = json.loads(keys("revoke", "--minimum", "digits=7", *at(tmp_path), "--json").stdout)
    assert staged["state"] == "staged"
    assert "policy: least release counter of digits 0 -> 7" in staged["changes"]
    assert staged["missing"][0].startswith("targets needs 2 more signatures")
    keys("rotate", "gate", *at(tmp_path), rc=2)  # one change at a time
    keys("export", "-o", str(stick), *at(tmp_path))
    assert "safe" not in stick.read_text()
    assert "keys.json" not in stick.read_text()
    root = str(fleet / "root.json")
    for n, state in ((1, "staged"), (3, "published")):
        key = f"file:{tmp_path}/safe/targets-{n}.pem"
        keys("sign", str(stick), "--key", key, "--root", root, "--yes", rc=2)  # no passphrase, nobody to ask
        signed = keys("sign", str(stick), "--key", key, "--root", root, "--yes", "--passphrase-file", str(passphrase))
        assert "least release counter of digits 0 -> 7" in signed.stderr
        imported = keys("import", str(stick), *at(tmp_path), "--json")
        assert json.loads(imported.stdout)["state"] == state
    assert locate(fleet, "acme").repository().policy().minimum_counter == {"digits": 7}
    keys("export", "-o", str(stick), *at(tmp_path), rc=2)


def test_nothing_is_signed_without_a_yes_or_under_another_root(keys: Keys, tmp_path: Path, passphrase: Path) -> None:
    stick, other = tmp_path / "stick.json", tmp_path / "other.json"
    (tmp_path / "fleet" / "offline").rename(tmp_path / "safe")
    keys("renew", "targets", *at(tmp_path))
    keys("export", "-o", str(stick), *at(tmp_path))
    before = stick.read_bytes()
    key = ("--key", f"file:{tmp_path}/safe/targets-1.pem", "--passphrase-file", str(passphrase))
    keys("sign", str(stick), *key, "--root", str(tmp_path / "fleet" / "root.json"), rc=1)
    other.write_bytes((tmp_path / "fleet" / "root.json").read_bytes() + b" ")
    keys("sign", str(stick), *key, "--root", str(other), "--yes", rc=3)
    keys("sign", str(stick), *key, "--yes", rc=2)  # held against nothing, seen by nobody
    assert stick.read_bytes() == before
    keys("discard", *at(tmp_path))
    keys("renew", "targets", *at(tmp_path))


def test_a_change_that_the_signer_was_in_the_way_of_is_published_later(keys: Keys, tmp_path: Path) -> None:
    env, before = {"MODELFLEET_PASSPHRASE": PASSPHRASE}, locate(tmp_path / "fleet", "acme")
    with folder_lock(before.signer_state):
        refused = keys("rotate", "releases", *at(tmp_path), env=env, rc=1)
    assert "modelfleet keys publish" in refused.stderr
    assert locate(tmp_path / "fleet", "acme") == before
    assert json.loads(keys("publish", *at(tmp_path), "--json").stdout)["state"] == "published"
    assert locate(tmp_path / "fleet", "acme").releases_key != before.releases_key
    keys("publish", *at(tmp_path), rc=2)


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "releases", "director", "approver:anna"])
def test_a_role_is_rotated_at_once_where_the_keys_are(keys: Keys, tmp_path: Path, role: str) -> None:
    env = {"MODELFLEET_PASSPHRASE": PASSPHRASE}
    done = json.loads(keys("rotate", role, *at(tmp_path), "--json", env=env).stdout)
    assert done["state"] == "published"
    name = role.partition(":")[0]
    assert any(line.startswith(f"{name}: key ") and line.endswith("is removed") for line in done["changes"])
    for path in (tmp_path / "fleet" / "offline").iterdir():
        assert b"ENCRYPTED" in path.read_bytes(), f"{path.name} lies in the clear"
    keys("status", *at(tmp_path))


def test_what_isvs_are_given_follows_the_releases_key(keys: Keys, tmp_path: Path) -> None:
    keys("rotate", "releases", *at(tmp_path), env={"MODELFLEET_PASSPHRASE": PASSPHRASE})
    now = public_key(locate(tmp_path / "fleet", "acme").releases_key).keyval["public"]
    assert (tmp_path / "fleet" / "releases.pub").read_text() == now


def test_status_warns_by_its_exit_status(keys: Keys, tmp_path: Path, passphrase: Path) -> None:
    shown = keys("status", *at(tmp_path))
    assert "file:offline/root-1.pem" in shown.stdout
    paths, then = locate(tmp_path / "fleet", "acme"), datetime.now(UTC) - timedelta(days=160)
    secrets = passphrase_file(passphrase)
    old = renewal(paths, paths.repository().policy_chain(), ["targets"], then)
    publish(paths, sign_here(paths, old, secrets)[0], datetime.now(UTC), secrets=secrets)
    warned = keys("status", *at(tmp_path), rc=1)
    assert "warning: targets.json has 20.0 days left: run `modelfleet keys renew targets`" in warned.stderr
    keys("renew", "targets", *at(tmp_path), "--passphrase-file", str(passphrase))
    assert json.loads(keys("status", *at(tmp_path), "--json").stdout)["level"] == "ok"


def test_status_of_a_folder_that_is_named_asks_no_server(keys: Keys, tmp_path: Path) -> None:
    elsewhere = {"MODELFLEET_URL": "http://127.0.0.1:1"}
    assert "file:offline/root-1.pem" in keys("status", *at(tmp_path), env=elsewhere).stdout
    keys("status", *at(tmp_path), "--url", "http://127.0.0.1:1", rc=4)


@pytest.mark.parametrize(
    ("arguments", "rc", "says"),
    [
        (("rotate", "admin"), 2, "expected a role of root"),
        (("rotate", "gate", "--tenant", "nobody"), 2, "found none: check --data and --tenant"),
        (("rotate", "gate", "--new-key", "vault:a"), 2, "expected a key URI with a scheme"),
        (("revoke", "--minimum", "digits"), 2, "expected MODEL=COUNTER"),
        (("import", __file__), 2, "no change waits"),
        (("make", "file:/proc/nowhere.pem"), 1, "Error:"),
    ],
)
def test_says_what_is_wrong(keys: Keys, tmp_path: Path, arguments: tuple[str, ...], rc: int, says: str) -> None:
    place = () if arguments[0] == "make" else at(tmp_path)
    assert says in keys(arguments[0], *place, *arguments[1:], rc=rc).stderr


def test_a_key_can_be_made_anywhere_and_is_never_overwritten(keys: Keys, tmp_path: Path, passphrase: Path) -> None:
    uri = f"file:{tmp_path}/anna.pem"
    made = json.loads(keys("make", uri, "--passphrase-file", str(passphrase), "--json").stdout)
    assert made["keyid"] == key_id(public_key(uri, passphrase_file(passphrase)))
    keys("make", uri, rc=2)
    keys("public", uri, rc=2)


def test_passphrases_come_from_the_environment_or_a_file_never_from_an_empty_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelfleet.signer.errors import KeyUriError

    monkeypatch.setenv("MODELFLEET_PASSPHRASE", "from the environment")
    assert ask_passphrase("file:/a.pem") == "from the environment"
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(KeyUriError):
            passphrase_file(tmp_path / name)


def test_a_rotation_survives_being_moved(keys: Keys, tmp_path: Path) -> None:
    """The data folder is found wherever it lies: keys.json names files in it by relative URIs."""
    env = {"MODELFLEET_PASSPHRASE": PASSPHRASE}
    keys("rotate", "timestamp", *at(tmp_path), env=env)
    shutil.move(tmp_path / "fleet", tmp_path / "moved")
    keys("rotate", "root", "--data", str(tmp_path / "moved"), "--tenant", "acme", env=env)
