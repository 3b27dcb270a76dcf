"""The agent's own version, as it is installed."""

import functools
from importlib import metadata


@functools.cache
def agent_version() -> str:
    """Return the version of the installed distribution, `0` where it runs from a folder without one."""
    try:
        return metadata.version("modelfleet")
    except metadata.PackageNotFoundError:
        return "0"
