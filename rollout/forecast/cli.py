"""`modelfleet rollout forecast`, and the answer of `create --dry-run`: what a rollout costs before it starts."""

import re
from typing import Any
from urllib.parse import urlencode

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import api_options, show

STAGE_COLUMNS = (
    "profile",
    "share",
    "devices",
    "new",
    "MB",
    "hours",
    "inferences",
    "begins_at",
    "ends_at",
)
PROFILE_COLUMNS = (
    "profile",
    "reach.devices",
    "reach.online",
    "reach.within_1_day",
    "reach.within_7_days",
    "MB",
    "saved_MB",
    "traffic.per_device_minute",
    "completes_at",
)
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)bit/s")
_POWERS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


class Speed(click.ParamType[float]):
    """Bits a second, such as `200Mbit/s`."""

    name = "SPEED"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return bits a second."""
        found = _SPEED.fullmatch(str(value))
        speed = float(found[1]) * _POWERS[found[2]] if found is not None else 0.0
        if speed <= 0:
            self.fail(f"expected a speed such as 200Mbit/s or 250kbit/s, got {value!r}", param, ctx)
        return speed


bandwidth_option = click.option("--bandwidth", type=Speed(), help="What the server sends in all, such as 200Mbit/s.")
device_bandwidth_option = click.option(
    "--device-bandwidth", type=Speed(), help="What one device receives, such as 2Mbit/s."
)


@click.command("forecast")
@click.argument("rollout_id")
@bandwidth_option
@device_bandwidth_option
@api_options
def forecast_rollout(
    client: ApiClient, as_json: bool, rollout_id: str, bandwidth: float | None, device_bandwidth: float | None
) -> None:
    """Show what is left of ROLLOUT_ID: bytes, hours, devices reachable, the earliest end of each stage.

    Example: modelfleet rollout forecast 3f0c... --bandwidth 200Mbit/s --device-bandwidth 2Mbit/s
    """
    asked = speeds(bandwidth, device_bandwidth)
    query = f"?{urlencode(asked)}" if asked else ""
    show_forecast(client.get(f"/v1/rollouts/{rollout_id}/forecast{query}"), as_json)


def speeds(bandwidth: float | None, device_bandwidth: float | None) -> dict[str, float]:
    """Return the fields by which the API is told of the fleet's lines."""
    given = {"bandwidth_bits_per_second": bandwidth, "device_bandwidth_bits_per_second": device_bandwidth}
    return {name: speed for name, speed in given.items() if speed is not None}


def show_forecast(found: dict[str, Any], as_json: bool) -> None:
    """Print a forecast: JSON whole, or tables of profiles and stages, and what stands in the way."""
    if as_json:
        show(found, as_json, ())
        return
    hours = "" if found["transfer_hours"] is None else f", {found['transfer_hours']:.2f} h at the server's bandwidth"
    click.echo(f"{found['devices']} devices, {_mb(found['bytes_to_transfer'])} MB to transfer{hours}.")
    ends = _minute(found["completes_at"]) or "never: its windows do not let it"
    click.echo(f"Starts {_minute(found['starts_at'])} UTC; ends at the earliest {ends}, if all goes well.")
    show([_profile(each) for each in found["profiles"]], as_json, PROFILE_COLUMNS)
    show([_stage(each, stage) for each in found["profiles"] for stage in each["stages"]], as_json, STAGE_COLUMNS)
    for line in _warnings(found):
        click.echo(line, err=True)
    click.echo("What the evidence will not prove:")
    for line in found["not_proved"]:
        click.echo(f"  - {line}")


def _profile(each: dict[str, Any]) -> dict[str, Any]:
    megabytes = {"MB": _mb(each["bytes_to_transfer"]), "saved_MB": _mb(each["saved_bytes"])}
    return each | megabytes | {"completes_at": _minute(each["completes_at"])}


def _stage(each: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    return {
        "profile": each["profile"],
        "share": f"{stage['share']:.0%}",
        "devices": stage["devices"],
        "new": stage["new_devices"],
        "MB": _mb(stage["bytes"]),
        "hours": stage["transfer_hours"],
        "inferences": stage["inferences_needed"],
        "begins_at": _minute(stage["begins_at"]),
        "ends_at": _minute(stage["ends_at"]),
    }


def _warnings(found: dict[str, Any]) -> list[str]:
    lines = [f"Left out: profile {profile}: {reason}" for profile, reason in found["skipped_profiles"].items()]
    lines += [f"In the way: {conflict}" for conflict in found["conflicts"]]
    for each in found["profiles"]:
        if each["traffic"] is None:
            lines.append(f"{each['profile']}: no traffic is known; the time until evidence suffices is left out.")
        elif any(stage["too_slow"] for stage in each["stages"]):
            lines.append(f"{each['profile']}: at this traffic a stage is held too long, and a person will be asked.")
        if each["past_deadline"]:
            lines.append(f"{each['profile']}: the last stage ends after the plan's deadline; the profile would halt.")
    return lines


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _minute(moment: str | None) -> str:
    return "" if moment is None else moment[:16].replace("T", " ")
