"""What a DDI client is answered, as hawkBit writes it: plain JSON with HAL links, on the server's public URL."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from modelfleet.rollout.ddi.actions import Deployment, Poll

Json = dict[str, Any]
PART = "bApp"
"""What swupdate and rauc-hawkbit install; the operating system is not ours to update."""


def poll_answer(base: str, poll: Poll) -> Json:
    """Return the root: when to poll next, and links to what there is to do.

    Args:
        base: the device's own URL, up to its name.
    """
    links: Json = {}
    if poll.wants_attributes:
        links["configData"] = _link(f"{base}/configData")
    if poll.action is not None and poll.cancel:
        links["cancelAction"] = _link(f"{base}/cancelAction/{poll.action}")
    elif poll.action is not None:
        # hawkBit's `c` tells a client that caches that the content is another; an action's content never changes here.
        links["deploymentBase"] = _link(f"{base}/deploymentBase/{poll.action}?c={_content_mark(poll.action)}")
    return {"config": {"polling": {"sleep": _hms(poll.poll_seconds)}}, "_links": links}


def deployment_answer(base: str, found: Deployment) -> Json:
    """Return the action with its one chunk and the chunk's artifacts."""
    action, module = found.action, found.module
    chunk = {
        "part": PART,
        "name": action.model,
        "version": action.version,
        "artifacts": artifacts_answer(base, module.id, module.artifacts),
        "metadata": [
            {"key": "modelfleet.slot", "value": action.slot},
            {"key": "modelfleet.manifest", "value": action.digest},
        ],
    }
    deployment = {"download": "forced", "update": "forced", "chunks": [chunk]}
    return {"id": str(action.id), "deployment": deployment}


def artifacts_answer(base: str, module: int, artifacts: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Return the artifacts of a module with their digests and links."""
    return [_artifact(f"{base}/softwaremodules/{module}/artifacts", each) for each in artifacts]


def cancel_answer(action: int) -> Json:
    """Return the cancellation of an action; in hawkBit, too, it bears the action's own id."""
    return {"id": str(action), "cancelAction": {"stopId": str(action)}}


def _artifact(folder: str, artifact: Mapping[str, Any]) -> Json:
    url = f"{folder}/{quote(artifact['filename'])}"
    # `download` is for https, `download-http` for http; clients take whichever there is, so there is the right one twice.
    links = {"download": _link(url), "download-http": _link(url)}
    links |= {"md5sum": _link(f"{url}.MD5SUM"), "md5sum-http": _link(f"{url}.MD5SUM")}
    hashes = {name: artifact[name] for name in ("sha1", "md5", "sha256")}
    return {"filename": artifact["filename"], "hashes": hashes, "size": artifact["size"], "_links": links}


def _link(href: str) -> Json:
    return {"href": href}


def _hms(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _content_mark(action: int) -> int:
    return int.from_bytes(hashlib.sha256(b"%d" % action).digest()[:4], "big") >> 1
