"""What a machine says of its surroundings, from directory trees as Linux lays them out, and NetworkManager's own words."""

from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from modelfleet.agent_client.conditions import Facts
from modelfleet.agent_client.surroundings import (
    FRESH_SECONDS,
    Sources,
    Surroundings,
    default_device,
    read_metered,
    read_power,
    read_zone,
)

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wwan0\t00000000\t0100000A\t0003\t0\t0\t700\t00000000\t0\t0\t0
eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
NMCLI = """#!/bin/sh
[ "$*" = "-t -f GENERAL.DEVICE,GENERAL.METERED dev show" ] || exit 2
cat <<END
GENERAL.DEVICE:eth0
GENERAL.METERED:{eth0}

GENERAL.DEVICE:wwan0
GENERAL.METERED:yes (guessed)

GENERAL.DEVICE:lo
GENERAL.METERED:unknown
END
"""


def supply(folder: Path, name: str, **values: str) -> None:
    """Write a power supply as the kernel's power_supply class shows it."""
    (folder / name).mkdir(parents=True)
    for key, value in values.items():
        (folder / name / key).write_text(value + "\n")


def network_manager(folder: Path, script: str) -> Sources:
    """A machine whose `nmcli` answers so, with eth0 as the default route."""
    (folder / "bin").mkdir()
    (folder / "bin" / "nmcli").write_text(script)
    (folder / "bin" / "nmcli").chmod(0o755)
    (folder / "route").write_text(ROUTES)
    return Sources(routes=folder / "route", environment={"PATH": f"{folder / 'bin'}:/usr/bin:/bin"})


def test_without_any_supply_a_device_is_on_mains(tmp_path: Path) -> None:
    assert read_power(tmp_path) == read_power(tmp_path / "missing") == (True, None)


@pytest.mark.parametrize(
    ("mains", "status", "external"),
    [
        ("1", "Charging", True),
        ("1", "Discharging", True),  # a charger that is too weak
        ("0", "Discharging", False),
        ("0", "Full", True),
        (None, "Discharging", False),
        (None, "Charging", True),
        (None, "Unknown", True),
    ],
)
def test_power_is_weighed_as_systemd_does(tmp_path: Path, mains: str | None, status: str, external: bool) -> None:
    supply(tmp_path, "BAT0", type="Battery", present="1", status=status, capacity="42")
    if mains is not None:
        supply(tmp_path, "AC", type="Mains", online=mains)
    assert read_power(tmp_path) == (external, 0.42)


def test_several_batteries_are_one_and_those_of_a_mouse_or_an_empty_bay_are_none(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", present="1", status="Discharging", capacity="20")
    supply(tmp_path, "BAT1", type="Battery", present="1", status="Unknown", capacity="100")
    supply(tmp_path, "BAT2", type="Battery", present="0", status="Unknown", capacity="0")
    supply(tmp_path, "hid-mouse", type="Battery", scope="Device", status="Discharging", capacity="1")
    assert read_power(tmp_path) == (False, 0.6)


def test_a_battery_that_tells_no_charge_counts_as_none(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    assert read_power(tmp_path) == (False, None)


def test_a_usb_supply_is_external_power(tmp_path: Path) -> None:
    supply(tmp_path, "ucsi", type="USB", online="2")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="90")
    assert read_power(tmp_path) == (True, 0.9)


@pytest.mark.parametrize(
    ("eth0", "metered"),
    [("no", False), ("no (guessed)", False), ("unknown", False), ("yes", True), ("yes (guessed)", True)],
)
def test_the_device_of_the_default_route_says_whether_the_network_is_metered(
    tmp_path: Path, eth0: str, metered: bool
) -> None:
    assert read_metered(network_manager(tmp_path, NMCLI.format(eth0=eth0))) is metered


def test_without_a_default_route_any_metered_device_counts(tmp_path: Path) -> None:
    sources = network_manager(tmp_path, NMCLI.format(eth0="no"))
    (tmp_path / "route").write_text("")
    assert read_metered(sources)


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 8\n", "#!/bin/sh\nprintf '\\377'\n", "no program"])
def test_a_network_that_nobody_calls_metered_is_not(tmp_path: Path, script: str) -> None:
    assert not read_metered(network_manager(tmp_path, script))


def test_without_network_manager_a_network_is_not_metered(tmp_path: Path) -> None:
    assert not read_metered(Sources(environment={"PATH": str(tmp_path)}))


def test_the_default_device_is_that_of_the_least_metric(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTES)
    assert default_device(tmp_path / "route") == "eth0"
    assert default_device(tmp_path / "missing") is None


def test_the_zone_is_that_of_tz_then_of_localtime_then_utc(tmp_path: Path) -> None:
    zones = tmp_path / "zoneinfo" / "Asia"
    zones.mkdir(parents=True)
    (zones / "Tokyo").write_bytes(b"not read")
    (tmp_path / "localtime").symlink_to(zones / "Tokyo")
    localtime = tmp_path / "localtime"
    assert str(read_zone(Sources(localtime=localtime, environment={"TZ": ":Europe/Berlin"}))) == "Europe/Berlin"
    assert str(read_zone(Sources(localtime=localtime, environment={}))) == "Asia/Tokyo"
    assert str(read_zone(Sources(localtime=tmp_path / "missing", environment={"TZ": "Nowhere"}))) == "UTC"


def test_a_localtime_that_is_a_copy_is_read_itself(tmp_path: Path) -> None:
    data = files("tzdata.zoneinfo.Europe").joinpath("Berlin").read_bytes()
    (tmp_path / "localtime").write_bytes(data)
    zone = read_zone(Sources(localtime=tmp_path / "localtime", environment={}))
    assert datetime(2026, 7, 1, tzinfo=zone).utcoffset() == timedelta(hours=2)
    (tmp_path / "localtime").write_bytes(b"rotten")
    assert str(read_zone(Sources(localtime=tmp_path / "localtime", environment={}))) == "UTC"


def machine(tmp_path: Path, **options: object) -> Surroundings:
    sources = Sources(
        power_supplies=tmp_path / "supplies",
        routes=tmp_path / "route",
        localtime=tmp_path / "localtime",
        environment={"PATH": str(tmp_path), "TZ": "Europe/Berlin"},
    )
    return Surroundings(tmp_path, sources=sources, **options)  # type: ignore[arg-type]


def test_what_an_integrator_writes_counts_in_place_of_what_was_found(tmp_path: Path) -> None:
    supply(tmp_path / "supplies", "AC", type="Mains", online="1")
    (tmp_path / "conditions.json").write_text(
        '{"metered": true, "external_power": false, "battery": 0.4, "zone": "Asia/Tokyo"}'
    )
    found = machine(tmp_path, metered="no")()
    assert (found.metered, found.external_power, found.battery_share, found.zone) == (
        True,
        False,
        0.4,
        ZoneInfo("Asia/Tokyo"),
    )


def test_a_hook_may_tell_a_part_only(tmp_path: Path) -> None:
    (tmp_path / "conditions.json").write_text('{"battery": 0.1}')
    found = machine(tmp_path, metered="yes")()
    assert (found.metered, found.external_power, found.battery_share, str(found.zone)) == (
        True,
        True,
        0.1,
        "Europe/Berlin",
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"battery": 40}', '{"metered": "very"}', "\xff"])
def test_a_hook_that_cannot_be_read_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "conditions.json").write_text(content, encoding="latin-1")
    assert machine(tmp_path)() == Facts(zone=ZoneInfo("Europe/Berlin"))


def test_facts_are_looked_up_anew_after_a_while(tmp_path: Path) -> None:
    now = [0.0]
    facts = machine(tmp_path, monotonic=lambda: now[0])
    assert not facts().metered
    (tmp_path / "conditions.json").write_text('{"metered": true}')
    now[0] = FRESH_SECONDS - 0.1
    assert not facts().metered
    now[0] = FRESH_SECONDS
    assert facts().metered
