"""What a tenant's metadata needs as time goes by: signed again before it expires, and said where that fails."""

import contextlib
import logging
from datetime import UTC, datetime

from modelfleet.registry.context import Registry
from modelfleet.registry.fleet_ca import FleetCa
from modelfleet.signer.client import renew_bins
from modelfleet.signer.errors import FormatError, SignerError
from modelfleet.signer.expiry import Expiring

log = logging.getLogger(__name__)


def refresh_metadata(registry: Registry) -> None:
    """Have everything signed again that expires soon, and log what still does: the service's own first.

    Snapshot and timestamp are signed here, bins by the signer process, whose absence must not let the timestamp expire.

    Raises:
        SignerError: the signer process did not answer, or what it holds is not to be published.
    """
    now = datetime.now(UTC)
    try:
        registry.repository.refresh(now)
        renew_bins(registry.signer, registry.repository, now)
    finally:
        with contextlib.suppress(FormatError):  # a damaged repository has raised above
            registry.trust.alarm(now)


def refresh_at_start(registry: Registry) -> None:
    """Refresh, but serve what there is where that fails: devices need it, and who repairs it may need this service."""
    try:
        refresh_metadata(registry)
    except SignerError:
        log.exception("re-signing failed at start; after a rotation that was cut off run `modelfleet keys publish`")


def ca_expiry(ca: FleetCa) -> Expiring:
    """Return when the fleet's CA ends, and with it every certificate."""
    remedy = "make its successor in time: devices have to enrol again under it"
    return Expiring(kind="ca", name="the fleet CA", expires=ca.expires, remedy=remedy)
