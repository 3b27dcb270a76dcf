"""One step of a build, in a process of its own: `python -m modelfleet.converters.step FOLDER`.

FOLDER holds request.json; result.json is written beside it: {"ok": {...}} or {"error": {kind, node, reason}}. The limits are
set before any model is opened. See `child` for the other side.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from modelfleet.benchmarks.errors import GoldenSetError, MeasureError, RuntimeMissingError
from modelfleet.converters.confine import HELPER_BYTES, die_with_parent, limit_resources
from modelfleet.converters.errors import BuildFailedError, ConversionError, ParityError, ScanError
from modelfleet.converters.libraries import missing_library


def main() -> int:
    """Run the step that the folder in the first argument asks for; 0 with a result, 1 with an error in result.json."""
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "request.json").read_bytes())
    die_with_parent(asked["parent"])
    limit_resources(
        memory_bytes=asked["memory_bytes"],
        file_bytes=asked["file_bytes"],
        cpu_seconds=int(asked["timeout_seconds"]) + 5,
        helper_bytes=HELPER_BYTES.get(asked["request"].get("profile", {}).get("runtime", ""), 0),
    )
    result = _attempt(STEPS[asked["step"]], asked["request"])
    (folder / "result.json").write_text(json.dumps(result))
    return 0 if "ok" in result else 1


def _attempt(
    step: Callable[[Mapping[str, Any]], Mapping[str, object]], request: Mapping[str, Any]
) -> dict[str, object]:
    try:
        return {"ok": step(request)}
    except ParityError as error:
        return _error("ParityError", error.node, error.reason, error.figures)
    except (ConversionError, ScanError) as error:
        return _error(type(error).__name__, error.node, error.reason)
    except RuntimeMissingError as error:
        return _error(BuildFailedError.__name__, "", str(error))
    except ModuleNotFoundError as error:
        return _error(BuildFailedError.__name__, "", missing_library(error.name or str(error)))
    except (GoldenSetError, MeasureError) as error:
        return _error(type(error).__name__, _node_in(str(error)), str(error))
    except MemoryError:
        return _error("MemoryError", "", "expected to fit into the memory limit, got more")
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the step's result, not a traceback
        return _error(type(error).__name__, _node_in(str(error)), f"{type(error).__name__}: {error}")


def _error(kind: str, node: str, reason: str, figures: Mapping[str, Any] | None = None) -> dict[str, object]:
    return {"error": {"kind": kind, "node": node, "reason": reason[:2000], "figures": dict(figures or {})}}


def _node_in(message: str) -> str:
    from modelfleet.converters.normalise import named_in

    return named_in(message)


def _scan(request: Mapping[str, Any]) -> Mapping[str, object]:
    from modelfleet.converters.walk import walk

    return walk(Path(request["source"]).read_bytes()).to_dict()


def _convert(request: Mapping[str, Any]) -> Mapping[str, object]:
    from modelfleet.converters.convert import convert

    return convert(request)


def _prove(request: Mapping[str, Any]) -> Mapping[str, object]:
    from modelfleet.converters.prove import prove

    return prove(request)


def _benchmark(request: Mapping[str, Any]) -> Mapping[str, object]:
    from modelfleet.converters.prove import benchmark

    return benchmark(request)


def _rank(request: Mapping[str, Any]) -> Mapping[str, object]:
    from modelfleet.converters.convert import rank

    return rank(request)


def _stand_in(request: Mapping[str, Any]) -> Mapping[str, object]:
    from modelfleet.converters.stand_in import stand_in

    return stand_in(request)


def _locate(request: Mapping[str, Any]) -> Mapping[str, object]:
    from modelfleet.converters.locate import locate

    return locate(request)


STEPS: Final[Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, object]]]] = {
    "scan": _scan,
    "convert": _convert,
    "prove": _prove,
    "benchmark": _benchmark,
    "rank": _rank,
    "stand_in": _stand_in,
    "locate": _locate,
}


if __name__ == "__main__":
    sys.exit(main())
