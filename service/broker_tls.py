"""TLS towards brokers: the embedded one's certificate and its check of the devices', and what the controller shows.

Both certificates are by the fleet's own CA and lie in `<data>/ca/issued`; `refresh` renews them while the service runs.
"""

import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.certificates import accepts
from modelfleet.registry.fleet_ca import CERTIFICATE_FILE, FleetCa
from modelfleet.registry.service_certificates import controller_name, keep_controller, keep_server
from modelfleet.rollout.mqtt.client_certificate import ClientCertificate
from modelfleet.service.embedded_broker import BrokerTls
from modelfleet.service.errors import SettingsError
from modelfleet.service.settings import Settings

ANYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - recognised, not bound


def issued_folder(settings: Settings) -> Path:
    """Return where the service's own certificates lie."""
    return settings.ca_folder / "issued"


def public_host(settings: Settings, public_url: str) -> str:
    """Return the host by which devices reach the embedded broker: the one of the HTTP service."""
    if settings.host not in ANYWHERE:
        return settings.host
    found = urlsplit(public_url).hostname or ""
    return socket.gethostname() if found in ANYWHERE else found


class EmbeddedTls:
    """The embedded broker's side of TLS.

    Attributes:
        broker: what the broker is given.
    """

    broker: BrokerTls

    def __init__(self, settings: Settings, ca: FleetCa, sessions: sessionmaker[Session], public_url: str) -> None:
        self._settings, self._ca = settings, ca
        self._names = sorted({"localhost", "127.0.0.1", public_host(settings, public_url)})
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=ca.pem)
        self.broker = BrokerTls(
            context=context,
            accepts=_accepts(sessions, ca.tenant),
            controller=controller_name(ca.tenant, settings.executor),
        )
        self.refresh(datetime.now(UTC))

    def refresh(self, now: datetime) -> None:
        """Renew the broker's certificate where it is time; new connections see it."""
        kept = keep_server(self._ca, issued_folder(self._settings), self._names, now)
        self.broker.context.load_cert_chain(kept.certificate, kept.key)


def controller_certificate(settings: Settings, ca: FleetCa, now: datetime) -> ClientCertificate:
    """Return what the controller shows at the broker: the files that the settings name, else its own, renewed here.

    Raises:
        SettingsError: only one of certificate and key is set.
    """
    if (settings.mqtt_cert is None) != (settings.mqtt_key is None):
        raise SettingsError("MODELFLEET_MQTT_CERT and MODELFLEET_MQTT_KEY belong together: set both, or neither")
    believed = settings.mqtt_ca or settings.ca_folder / CERTIFICATE_FILE
    if settings.mqtt_cert is not None and settings.mqtt_key is not None:
        return ClientCertificate(ca=believed, certificate=settings.mqtt_cert, key=settings.mqtt_key)
    kept = keep_controller(ca, issued_folder(settings), now, settings.executor)
    return ClientCertificate(ca=believed, certificate=kept.certificate, key=kept.key)


def _accepts(sessions: sessionmaker[Session], tenant: str) -> Callable[[str, str], bool]:
    return lambda device, serial: accepts(sessions, tenant, device, serial, datetime.now(UTC))
