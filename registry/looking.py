"""Where a person looks whether something was done, of which the answer never came."""

import re

NOTHING_CHANGES = re.compile(r"/v1/(rollouts/forecast|bundles)$")
LOOKS = (
    (re.compile(r"/v1/rollouts/([^/]+)/retry$"), "modelfleet rollout devices {0}"),
    (re.compile(r"/v1/rollouts/([^/]+)/"), "modelfleet rollout status {0}"),
    (re.compile(r"/v1/rollouts$"), "modelfleet rollout list"),
    (re.compile(r"/v1/versions"), "modelfleet versions"),
    (re.compile(r"/v1/groups"), "modelfleet groups list"),
    (re.compile(r"/v1/users"), "modelfleet users list"),
    (re.compile(r"/v1/devices"), "modelfleet devices"),
    (re.compile(r"/v1/webhooks"), "modelfleet webhooks list"),
    (re.compile(r"/v1/jobs"), "modelfleet jobs"),
)
"""Path of a request that changes something -> the command that shows whether it did; the first that fits."""
IN_DOUBT = "modelfleet audit"
"""Whatever changes anything is in the audit trail."""


def where_to_look(path: str) -> str | None:
    """Return the command that shows whether a request to `path` was carried out; None: it would change nothing."""
    if NOTHING_CHANGES.match(path):
        return None
    for pattern, command in LOOKS:
        if found := pattern.match(path):
            return command.format(*found.groups())
    return IN_DOUBT
