"""A device's key as whoever takes in its reports keeps it: parsed once, verified with often, small enough for a fleet's.

Kept is the point itself: making a key of it takes 6 µs of the 70 µs that a verification takes, and the key as the cryptography
library holds it takes 2.3 kB.
"""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from modelfleet.signer.dsse import verify_by_one
from modelfleet.signer.keys import p256_of_pem, public_key_of_pem
from modelfleet.signer.statements import REPORT_PAYLOAD_TYPE

_CURVE = ec.SECP256R1()


class ReportKey:
    """A device's public key.

    Raises:
        FormatError: no P-256 public key in PEM.
    """

    __slots__ = ("_keyid", "_point")

    def __init__(self, pem: str) -> None:
        self._point = p256_of_pem(pem).public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self._keyid = public_key_of_pem(pem).keyid

    def verify(self, envelope: bytes) -> bytes:
        """Return the report's bytes that this device signed; raises as `attestations.verify_report`."""
        public = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, self._point)
        return verify_by_one(envelope, REPORT_PAYLOAD_TYPE, self._keyid, public)
