"""Nothing goes over a plain line, but on this machine: what each URL that the agent opens must pass."""

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from modelfleet.agent_client.errors import InsecureUrlError

PLAIN_SCHEMES = ("http", "mqtt")
ALLOW_HTTP_VARIABLE = "MODELFLEET_ALLOW_HTTP"
"""Set to 1 where a network between device and server is trusted: plain http is then used to any host."""


def require_secure(url: str) -> None:
    """Refuse a server that devices would reach over plain http, or a broker over plain mqtt.

    Raises:
        InsecureUrlError: the URL is plain http or mqtt to another machine, and `MODELFLEET_ALLOW_HTTP` is not 1.
    """
    place = urlsplit(url)
    if (
        place.scheme not in PLAIN_SCHEMES
        or _is_loopback(place.hostname or "")
        or os.environ.get(ALLOW_HTTP_VARIABLE) == "1"
    ):
        return
    raise InsecureUrlError(
        f"{url[:200]}: expected {place.scheme}s, got plain {place.scheme} to another machine;"
        f" use {place.scheme}s, or set {ALLOW_HTTP_VARIABLE}=1 where that network is trusted"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
