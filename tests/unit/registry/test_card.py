import pytest

from modelfleet.registry.card import parse_card
from modelfleet.registry.errors import CardError

GOOD = {
    "name": '"ui/detector"',
    "version": '"1.2.0-rc.1"',
    "channel": '"preview"',
    "license": '"MIT"',
    "summary": '"Finds elements."',
    "intended_use": '"Screens."',
}


def card(**changed: str | None) -> bytes:
    return "\n".join(f"{key} = {value}" for key, value in {**GOOD, **changed}.items() if value is not None).encode()


def faults(data: bytes) -> list[str]:
    with pytest.raises(CardError) as caught:
        parse_card(data)
    assert all(line in str(caught.value) for line in caught.value.errors)
    return list(caught.value.errors)


def test_reads_a_card_with_its_defaults() -> None:
    found = parse_card(card())
    assert (found.name, found.version, found.channel) == ("ui/detector", "1.2.0-rc.1", "preview")
    assert found.profiles == ()
    assert found.limits.latency_ms is None
    assert dict(found.parameters) == {}


def test_reads_limits_parameters_and_profiles() -> None:
    data = card(profiles='["linux-cpu-int8"]') + b"\n[limits]\nlatency_ms = 20\n[parameters]\nn = 3\nname = 'x'\n"
    found = parse_card(data)
    assert found.profiles == ("linux-cpu-int8",)
    assert found.limits.latency_ms == 20.0
    assert found.parameters == {"n": 3, "name": "x"}


def test_names_every_missing_field_at_once() -> None:
    assert faults(b"") == [f"{name}: missing" for name in GOOD]


def test_names_missing_unknown_and_wrong_fields_in_one_error() -> None:
    found = faults(card(license=None, licence='"MIT"', version='"1.2"', summary="7"))
    assert len(found) == 4
    assert found[0].startswith("licence: unknown")
    assert {line.split(":")[0] for line in found} == {"licence", "license", "version", "summary"}


@pytest.mark.parametrize(
    "version", ["1.0", "v1.0.0", "1.0.0+build", "01.0.0", "1.0.0-", "1.0.0 ", "latest", "1.0.0-A", "1.0.0-01", "-1.0.0"]
)
def test_refuses_what_is_not_semver(version: str) -> None:
    (line,) = faults(card(version=f'"{version}"'))
    assert line.startswith("version:")
    assert "SemVer 2.0.0" in line


@pytest.mark.parametrize("name", ["../x", "a//b", "A", "a/b/c/d/e", "", "a b", "a%2e", ".a", "a\\\\b"])
def test_refuses_names_that_are_no_model_names(name: str) -> None:
    assert faults(card(name=f'"{name}"'))[0].startswith("name:")


@pytest.mark.parametrize(
    "text",
    [
        "[limits]\nlatency = 3\n",
        "[limits]\nlatency_ms = 0\n",
        "[limits]\nlatency_ms = nan\n",
        "[limits]\nlatency_ms = inf\n",
        "[limits]\naccuracy = 1.1\n",
        "[limits]\naccuracy = nan\n",
        "[limits]\nmemory_bytes = 1.5\n",
        "[limits]\nlatency_ms = 'fast'\n",
    ],
)
def test_refuses_limits_that_bound_nothing(text: str) -> None:
    assert faults(card() + b"\n" + text.encode())[0].startswith("limits:")


@pytest.mark.parametrize("value", ["1.5", "true", "[1]", "{a = 1}", str(2**53), "1979-05-27"])
def test_refuses_parameters_that_are_neither_text_nor_integers(value: str) -> None:
    assert faults(card() + f"\n[parameters]\nx = {value}\n".encode())[0].startswith("parameters:")


@pytest.mark.parametrize("channel", ["beta", "", "Stable"])
def test_refuses_an_unknown_channel(channel: str) -> None:
    assert faults(card(channel=f'"{channel}"'))[0].startswith("channel:")


@pytest.mark.parametrize("data", [b"name = ", b"\xff\xfe", b"\x00", b"a = 1\na = 2", b"[" * 5000, b"a=" + b"[" * 5000])
def test_refuses_what_is_not_toml(data: bytes) -> None:
    assert faults(data)[0].startswith("not TOML")
