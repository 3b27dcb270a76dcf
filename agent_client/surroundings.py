"""What the machine says of its surroundings: power, battery, metered network, time zone.

Sources: Linux' power_supply class (Documentation/ABI/testing/sysfs-class-power; mains and batteries weighed as systemd's
`on_ac_power()` does), NetworkManager's `GENERAL.METERED` of the device that holds the default route, TZ and /etc/localtime. An
integrator who knows better keeps `conditions.json` in the agent's folder, any of `{"metered": true, "external_power": false,
"battery": 0.4, "zone": "Europe/Berlin"}`: what stands there counts in place of what was found.
"""

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec

from modelfleet.agent_client.conditions import Facts
from modelfleet.signer.windows import zone_named

HOOK_NAME = "conditions.json"
FRESH_SECONDS = 10.0
NMCLI_SECONDS = 5.0
_EXTERNAL = frozenset({"Mains", "USB", "Wireless"})
_MAX_BYTES = 64 * 1024

Metered = Literal["auto", "yes", "no"]

log = logging.getLogger(__name__)


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """The integrator's `conditions.json`; what is left out is found out."""

    metered: bool | None = None
    external_power: bool | None = None
    battery: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    zone: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the machine keeps what it knows; tests lay out trees of their own."""

    power_supplies: Path = Path("/sys/class/power_supply")
    routes: Path = Path("/proc/net/route")
    localtime: Path = Path("/etc/localtime")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


class Surroundings:
    """Returns the machine's `Facts`; looked up at most every ten seconds.

    Args:
        root: the agent's folder, for the integrator's hook.
        metered: auto: as NetworkManager says; unknown is unmetered.
    """

    def __init__(
        self,
        root: Path,
        *,
        metered: Metered = "auto",
        sources: Sources | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hook = root / HOOK_NAME
        self._metered: Metered = metered
        self._sources = sources or Sources()
        self._monotonic = monotonic
        self._found: Facts | None = None
        self._found_at = 0.0
        self._complained = ""

    def __call__(self) -> Facts:
        """Return the facts as they are now."""
        now = self._monotonic()
        if self._found is None or now - self._found_at >= FRESH_SECONDS:
            self._found, self._found_at = self._look_up(), now
        return self._found

    def _look_up(self) -> Facts:
        told = self._read_hook()
        external, battery = read_power(self._sources.power_supplies)
        zone = zone_named(told.zone) if told.zone is not None else None
        return Facts(
            external_power=external if told.external_power is None else told.external_power,
            battery_share=battery if told.battery is None else told.battery,
            metered=self._is_metered() if told.metered is None else told.metered,
            zone=zone or read_zone(self._sources),
        )

    def _is_metered(self) -> bool:
        if self._metered != "auto":
            return self._metered == "yes"
        return read_metered(self._sources)

    def _read_hook(self) -> Hook:
        try:
            with self._hook.open("rb") as file:
                hook = msgspec.json.decode(file.read(_MAX_BYTES), type=Hook)
        except FileNotFoundError:
            hook = Hook()
        except (OSError, msgspec.DecodeError) as error:
            if str(error) != self._complained:
                log.warning("%s: not read, the machine's own word counts: %s", self._hook, error)
            self._complained = str(error)
            return Hook()
        self._complained = ""
        return hook


def read_power(folder: Path) -> tuple[bool, float | None]:
    """Return whether external power is there, and the batteries' charge (0..1, their mean; None: there is no battery)."""
    online: list[bool] = []
    draining: list[bool] = []
    charges: list[float] = []
    for supply in sorted(folder.iterdir()) if folder.is_dir() else []:
        kind = _text(supply / "type")
        if _text(supply / "scope") == "Device" or _text(supply / "present") == "0":
            continue  # of a mouse; an empty bay
        if kind in _EXTERNAL:
            online.append(_text(supply / "online") not in ("", "0"))
        elif kind == "Battery":
            draining.append(_text(supply / "status") == "Discharging")
            capacity = _text(supply / "capacity")
            if capacity.isdigit():
                charges.append(min(100, int(capacity)) / 100)
    external = any(online) or not any(draining)
    return external, sum(charges) / len(charges) if charges else None


def read_metered(sources: Sources) -> bool:
    """Return what NetworkManager says of the device that holds the default route; False where nobody says anything."""
    nmcli = shutil.which("nmcli", path=sources.environment.get("PATH"))
    if nmcli is None:
        return False
    try:
        told = subprocess.run(
            [nmcli, "-t", "-f", "GENERAL.DEVICE,GENERAL.METERED", "dev", "show"],
            capture_output=True,
            text=True,
            timeout=NMCLI_SECONDS,
            check=True,
            env={**sources.environment, "LC_ALL": "C"},
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        log.info("nmcli does not say whether the network is metered: %s", error)
        return False
    return _metered_of(told, default_device(sources.routes))


def default_device(routes: Path) -> str | None:
    """Return the network device of the default IPv4 route with the least metric, or None."""
    lines = [line.split() for line in _text(routes).splitlines()[1:]]
    found = [(int(line[6]), line[0]) for line in lines if len(line) > 7 and line[1] == line[7] == "00000000"]
    return min(found)[1] if found else None


def read_zone(sources: Sources) -> tzinfo:
    """Return the machine's time zone: TZ, else /etc/localtime; UTC where neither names one."""
    named = zone_named(sources.environment.get("TZ", "").removeprefix(":"))
    if named is not None:
        return named
    try:
        _, _, name = str(sources.localtime.resolve()).rpartition("/zoneinfo/")
        found = zone_named(name) if name else None
        if found is not None:
            return found
        with sources.localtime.open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC


def _metered_of(told: str, device: str | None) -> bool:
    """Read nmcli's terse blocks, `GENERAL.DEVICE:eth0` and `GENERAL.METERED:no (guessed)`; without a default route any counts."""
    metered: dict[str, bool] = {}
    name = ""
    for line in told.splitlines():
        key, _, value = line.partition(":")
        if key == "GENERAL.DEVICE":
            name = value
        elif key == "GENERAL.METERED":
            metered[name] = value.startswith("yes")
    return metered[device] if device is not None and device in metered else any(metered.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:_MAX_BYTES].strip()
    except OSError:
        return ""
