"""The rollout plan: how fast a candidate may reach the fleet, and what stops it.

TOML or a JSON object, checked as a whole. Every default is DESIGN section 6's. A plan is named by the SHA-256 of its
canonical JSON, and approvals are bound to that name: a changed plan is another plan. The file
`policies/default_plan.toml` holds the defaults with their reasons.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.resources import files
from typing import Any, cast

import msgspec

from modelfleet.policies.conditions import never_met, read_conditions, read_hours, read_moment, read_windows
from modelfleet.policies.errors import PlanError
from modelfleet.signer.desired import Limits
from modelfleet.signer.windows import ANY_CONDITIONS, Conditions, Window

DEFAULT_ERROR_THRESHOLD = 0.01
GUARDRAILS = ("errors", "relative", "install", "silence", "slow", "accuracy")
"""What shares alpha equally. The literal rule is the requirement's own and stands beside it."""
MEASURES = ("classes", "confidence", "latency")
"""What is compared with devices still on stable, once per stage; a difference pauses and never rolls back."""


@dataclass(frozen=True, kw_only=True)
class LiteralRule:
    """The requirement as it is written: roll back above `share` errors in the window, from `min_inferences` in it on.

    Below `min_inferences` the rule is noise (DESIGN section 6: it rolls back 49 % of good models within 4 hours). 5,000 and not
    the design's 3,000: at 100 inferences a minute that still rolled back 7 % of good models within a day (decision 29).
    """

    share: float = DEFAULT_ERROR_THRESHOLD
    window_seconds: float = 1800.0
    min_inferences: int = 5000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a rollout goes; `parse_plan` is the only way to make one from outside.

    stages: shares of the devices (0..1], growing, the last 1. bake_seconds: per stage, how long it is watched at
    least. soak_seconds: how long after the last stage before the candidate becomes stable. error_threshold: p0, the
    error share that is still good; one other than 1 % says why in `p0_reason`. alpha: chance of rolling a good
    candidate back, per profile's verdict, split over the guardrails. beta: chance of promoting a candidate as bad as
    p0, per stage. delta: how much worse than concurrent stable is still good. drift_psi: stability index of the
    answers, slower_ratio: times stable's p95, above which a person is asked. drift_alpha: chance of asking for a good candidate,
    over the whole trial. max_hold_seconds: how long a stage may
    wait for evidence before a person is asked. deadline_seconds: from start; no device starts after it.
    stall_seconds: how long a device may take from its start to its end. rollback_seconds: how long devices have to
    prove that they are back. confidence: of the accuracy bound, one-sided. start_at: when it starts by itself, once
    approved. start_after: the rollout that must have completed before it starts by itself. windows: when devices may start
    (none: always); while none is open anywhere, bake, hold and soak stand still. conditions: what must hold on a device until
    it has the files. advance_within: when the next stage may begin.
    accept_unsigned: whether hawkBit clients, which sign no report and count nothing, try the candidate and their word counts.
    """

    stages: tuple[float, ...] = (0.05, 0.25, 0.5, 1.0)
    bake_seconds: tuple[float, ...] = (1800.0, 1800.0, 1800.0, 1800.0)
    soak_seconds: float = 3600.0
    min_canaries: int = 2
    error_threshold: float = DEFAULT_ERROR_THRESHOLD
    p0_reason: str = ""
    slow_threshold: float = 0.05
    alpha: float = 0.01
    beta: float = 0.05
    delta: float = 0.25
    drift_psi: float = 0.2
    slower_ratio: float = 2.0
    drift_alpha: float = 0.05
    confidence: float = 0.95
    silent_intervals: int = 3
    max_hold_seconds: float = 86400.0
    deadline_seconds: float = 7 * 86400.0
    stall_seconds: float = 3600.0
    rollback_seconds: float = 3600.0
    spread_seconds: int = 0
    literal: LiteralRule = LiteralRule()
    limits: Limits = field(default_factory=lambda: Limits(accuracy=0.85))
    start_at: datetime | None = None
    start_after: str = ""
    windows: tuple[Window, ...] = ()
    conditions: Conditions = ANY_CONDITIONS
    advance_within: tuple[Window, ...] = ()
    accept_unsigned: bool = False

    @property
    def last_stage(self) -> int:
        """The index of the stage that reaches every device."""
        return len(self.stages) - 1

    @property
    def guardrail_alpha(self) -> float:
        """What one guardrail may spend of alpha."""
        return self.alpha / len(GUARDRAILS)

    @property
    def difference_alpha(self) -> float:
        """What one look at one measure may spend of `drift_alpha`: a look per stage beside stable, three measures."""
        return self.drift_alpha / (max(1, self.last_stage) * len(MEASURES))

    @property
    def silent_seconds(self) -> float:
        """How long a device that runs the candidate may send no counters before it counts as silent."""
        return self.silent_intervals * self.limits.metrics_seconds


def parse_plan(source: str | Mapping[str, Any] | None = None) -> Plan:
    """Return the plan that `source` describes: TOML text, or an object as JSON gives it; what it leaves out is default.

    Raises:
        PlanError: not TOML, or any field is unknown or out of range; the error names all of them.
    """
    given = _table(source)
    problems: list[str] = []
    values = {name: _READERS[name](given[name], name, problems) for name in _READERS if name in given}
    problems += [
        f"{name}: unknown field; a plan has {', '.join(sorted(_READERS))}"
        for name in sorted(set(given) - set(_READERS))
    ]
    if not problems:
        plan = Plan(**_completed(values))
        problems += _contradictions(plan)
        if not problems:
            return plan
    raise PlanError(problems)


def default_plan_text() -> str:
    """Return the default plan's TOML, comments and all."""
    return files("modelfleet.policies").joinpath("default_plan.toml").read_text(encoding="utf-8")


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain JSON values; `parse_plan` reads them back to an equal plan."""
    value = asdict(plan)
    value["stages"], value["bake_seconds"] = list(plan.stages), list(plan.bake_seconds)
    for name in ("limits", "windows", "conditions", "advance_within", "start_at"):
        value[name] = msgspec.json.decode(msgspec.json.encode(getattr(plan, name)))
    return value


def plan_sha256(plan: Plan) -> str:
    """Return the SHA-256 of the plan's canonical JSON: keys sorted, no spaces, every default written out."""
    text = json.dumps(plan_as_dict(plan), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _table(source: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if source is None:
        return {}
    if not isinstance(source, str):
        return source
    try:
        return tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise PlanError([f"not TOML: {error}"]) from error


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Spread one bake time over every stage, and let the literal rule's share follow p0 unless it is given."""
    stages = values.get("stages", Plan.stages)
    bake = values.get("bake_seconds", Plan.bake_seconds[0])
    literal: dict[str, Any] = {
        "share": values.get("error_threshold", DEFAULT_ERROR_THRESHOLD),
        **values.get("literal", {}),
    }
    return {
        **values,
        "bake_seconds": bake if isinstance(bake, tuple) else (bake,) * len(stages),
        "literal": LiteralRule(**literal),
    }


def _contradictions(plan: Plan) -> list[str]:
    found: list[str] = []
    if any(later <= sooner for sooner, later in zip(plan.stages, plan.stages[1:], strict=False)):
        found.append(f"stages: expected shares that grow, got {list(plan.stages)}")
    if plan.stages[0] <= 0:
        found.append(f"stages: expected the first to be above 0, got {plan.stages[0]}")
    if plan.stages[-1] != 1.0:
        found.append(f"stages: expected the last to be 1.0, got {plan.stages[-1]}")
    if len(plan.bake_seconds) != len(plan.stages):
        found.append(f"bake_seconds: expected one number or {len(plan.stages)}, got {len(plan.bake_seconds)}")
    if plan.error_threshold != DEFAULT_ERROR_THRESHOLD and not plan.p0_reason.strip():
        found.append(f"p0_reason: expected why error_threshold is {plan.error_threshold}, got none")
    unmet = never_met(plan.windows, plan.bake_seconds, plan.deadline_seconds, plan.start_at)
    return found if unmet is None else [*found, f"windows: {unmet}"]


_Reader = Callable[[Any, str, list[str]], Any]


def _number(least: float, most: float, *, open_ends: bool = False) -> _Reader:
    """Read a finite number in [least, most], or in (least, most)."""

    def read(value: Any, name: str, problems: list[str]) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            problems.append(f"{name}: expected a number, got {value!r}")
            return least
        if not least <= value <= most or (open_ends and value in (least, most)):
            ends = f"({least}, {most})" if open_ends else f"[{least}, {most}]"
            problems.append(f"{name}: expected a number in {ends}, got {value}")
        return float(value)

    return read


def _whole(least: int, most: int) -> _Reader:
    def read(value: Any, name: str, problems: list[str]) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            problems.append(f"{name}: expected a whole number in [{least}, {most}], got {value!r}")
            return least
        return value

    return read


def _flag(value: Any, name: str, problems: list[str]) -> bool:
    if not isinstance(value, bool):
        problems.append(f"{name}: expected true or false, got {value!r}")
        return False
    return value


def _text(value: Any, name: str, problems: list[str]) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        problems.append(f"{name}: expected text of at most 1024 characters, got {type(value).__name__}")
        return ""
    return value


def _numbers(item: _Reader, *, single: bool) -> _Reader:
    """Read 1 to 32 numbers; `single` lets one number stand alone."""

    def read(value: Any, name: str, problems: list[str]) -> Any:
        if isinstance(value, list | tuple):
            items = cast("list[Any]", list(value))  # pyright: ignore[reportUnknownArgumentType]
            if 1 <= len(items) <= 32:
                return tuple(item(each, f"{name}[{index}]", problems) for index, each in enumerate(items))
        elif single:
            return item(value, name, problems)
        problems.append(f"{name}: expected 1 to 32 numbers, got {value!r}")
        return ()

    return read


def _literal(value: Any, name: str, problems: list[str]) -> dict[str, Any]:
    readers = {
        "share": _number(0, 1, open_ends=True),
        "window_seconds": _number(1, 30 * 86400),
        "min_inferences": _whole(1, 10**9),
    }
    if not isinstance(value, Mapping):
        problems.append(f"{name}: expected a table, got {value!r}")
        return {}
    table = cast("Mapping[str, Any]", value)
    problems += [f"{name}.{key}: unknown field" for key in sorted(set(table) - set(readers))]
    return {key: readers[key](table[key], f"{name}.{key}", problems) for key in readers if key in table}


def _limits(value: Any, name: str, problems: list[str]) -> Limits:
    known = set(Limits.__struct_fields__)
    if not isinstance(value, Mapping):
        problems.append(f"{name}: expected a table, got {value!r}")
        return Limits()
    table = cast("Mapping[str, Any]", value)
    problems += [f"{name}.{key}: unknown field" for key in sorted(set(table) - known)]
    given = {"accuracy": 0.85, **{key: table[key] for key in known & set(table)}}
    try:
        # msgspec keeps an int where a float is declared; equal plans must have equal digests.
        read = msgspec.convert(given, Limits)
        return msgspec.structs.replace(
            read,
            latency_ms=float(read.latency_ms),
            probation_seconds=float(read.probation_seconds),
            metrics_seconds=float(read.metrics_seconds),
            error_share=float(read.error_share),
            accuracy=None if read.accuracy is None else float(read.accuracy),
        )
    except msgspec.ValidationError as error:
        problems.append(f"{name}: {error}")
        return Limits()


_SECONDS = _number(0, 30 * 86400)
_READERS: Mapping[str, _Reader] = {
    "stages": _numbers(_number(0, 1), single=False),
    "bake_seconds": _numbers(_SECONDS, single=True),
    "soak_seconds": _SECONDS,
    "min_canaries": _whole(1, 10**6),
    "error_threshold": _number(0, 1, open_ends=True),
    "p0_reason": _text,
    "slow_threshold": _number(0, 1, open_ends=True),
    "alpha": _number(0, 0.5, open_ends=True),
    "beta": _number(0, 0.5, open_ends=True),
    "delta": _number(0, 10),
    "drift_psi": _number(0, 100, open_ends=True),
    "slower_ratio": _number(1, 1000, open_ends=True),
    "drift_alpha": _number(0, 0.5, open_ends=True),
    "confidence": _number(0.5, 1, open_ends=True),
    "silent_intervals": _whole(2, 1000),
    "max_hold_seconds": _number(1, 30 * 86400),
    "deadline_seconds": _number(1, 90 * 86400),
    "stall_seconds": _number(1, 30 * 86400),
    "rollback_seconds": _number(1, 30 * 86400),
    "spread_seconds": _whole(0, 7 * 86400),
    "literal": _literal,
    "limits": _limits,
    "start_at": read_moment,
    "start_after": _text,
    "windows": read_windows,
    "conditions": read_conditions,
    "advance_within": read_hours,
    "accept_unsigned": _flag,
}
