"""A device's key as whoever takes in its reports keeps it: parsed once, verified with often."""

from modelfleet.signer.dsse import verify_by_one
from modelfleet.signer.keys import p256_of_pem, public_key_of_pem
from modelfleet.signer.statements import REPORT_PAYLOAD_TYPE


class ReportKey:
    """A device's public key.

    Raises:
        FormatError: no P-256 public key in PEM.
    """

    def __init__(self, pem: str) -> None:
        self._public = p256_of_pem(pem)
        self._keyid = public_key_of_pem(pem).keyid

    def verify(self, envelope: bytes) -> bytes:
        """Return the report's bytes that this device signed; raises as `attestations.verify_report`."""
        return verify_by_one(envelope, REPORT_PAYLOAD_TYPE, self._keyid, self._public)
