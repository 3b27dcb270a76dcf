"""How a controller shows a broker who it is in TLS."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from modelfleet.rollout.errors import BrokerError


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """Where the files lie by which a client shows who it is in TLS, and knows the broker: PEM each.

    They are read again at every connection, so that whoever renews them has only to replace them.
    """

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a context that believes this CA only (BrokerError: a file is missing or damaged)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"{self.ca}: expected the fleet CA's certificate, got {error}") from error
        self.show(context)
        return context

    def show(self, context: ssl.SSLContext) -> None:
        """Have `context` show the certificate as it is now (BrokerError: see `context`)."""
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"{self.certificate}: expected a certificate of {self.key}, got {error}") from error
