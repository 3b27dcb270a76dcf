"""Private keys on PKCS#11 tokens (smart cards, HSMs, SoftHSM2), named by an RFC 7512 URI.

Upholds: the PIN comes from `pin-source`, `MODELFLEET_PIN` or a person, never from the URI itself; a key is found by its
label or id, exactly one; the private key never leaves the token. Each signature opens a session of its own and closes it, so
that a token which was pulled and put back works again.
"""
# PyKCS11 comes without types; securesystemslib does not list these classes as exported:
# pyright: reportPrivateImportUsage=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import hashlib
import os
import secrets as random
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from securesystemslib.signer import Key, Signature, Signer, SSlibKey

from modelfleet.signer.errors import KeyUriError, SignerUnavailableError
from modelfleet.signer.passphrase import Secrets, ask_pin, first_line

P256_OID = bytes.fromhex("06082a8648ce3d030107")
MODULE_VARIABLE = "PYKCS11LIB"
TOKEN_ATTRIBUTES = {"token": "label", "serial": "serialNumber", "manufacturer": "manufacturerID", "model": "model"}
"""RFC 7512's names of what identifies a token -> PyKCS11's."""
PATH_ATTRIBUTES = frozenset({*TOKEN_ATTRIBUTES, "object", "id", "type"})
QUERY_ATTRIBUTES = frozenset({"module-path", "pin-source"})

_process = threading.Lock()  # a login is the whole process's


@dataclass(frozen=True, kw_only=True)
class TokenUri:
    """What an RFC 7512 URI says: which module, which token, which key, and where the PIN lies."""

    text: str
    module: str
    token: Mapping[str, str]
    label: str
    key_id: bytes
    pin_source: str

    def pin(self) -> str:
        """Return the PIN (KeyUriError: there is none to be had)."""
        if self.pin_source:
            return first_line(Path(self.pin_source.removeprefix("file:")))
        return ask_pin(self.text)


def parse_token_uri(rest: str) -> TokenUri:
    """Return what stands after `pkcs11:`.

    Raises:
        KeyUriError: not such a URI, no key named, or a PIN in it.
    """
    path, _, query = rest.partition("?")
    named, asked = _attributes(path, ";", PATH_ATTRIBUTES), _attributes(query, "&", QUERY_ATTRIBUTES)
    if "object" not in named and "id" not in named:
        raise KeyUriError("expected a pkcs11: URI with `object=LABEL` or `id=%01`, which name the key")
    if named.get("type", "private") != "private":
        raise KeyUriError(f"expected `type=private` in a pkcs11: URI, got {named['type'][:40]!r}")
    module = unquote(asked.get("module-path", "")) or os.environ.get(MODULE_VARIABLE, "")
    if not module:
        raise KeyUriError(f"a pkcs11: URI needs `?module-path=/usr/lib/...so`, or the variable {MODULE_VARIABLE}")
    return TokenUri(
        text=f"pkcs11:{rest}",
        module=module,
        token={name: unquote(value) for name, value in named.items() if name in TOKEN_ATTRIBUTES},
        label=unquote(named.get("object", "")),
        key_id=unquote_to_bytes(named.get("id", "")),
        pin_source=unquote(asked.get("pin-source", "")),
    )


class TokenSigner(Signer):
    """Signs with a P-256 key on a token; safe among threads."""

    def __init__(self, uri: TokenUri, pin: str) -> None:
        self._uri, self._pin = uri, pin
        self._library = _library(uri.module)
        with _session(self._library, uri, pin) as session:
            _one_key(session, uri, private=True)
            self._public_key = _public_key(session, _one_key(session, uri, private=False), uri)

    @property
    def public_key(self) -> Key:
        """The key's public half."""
        return self._public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> "TokenSigner":  # noqa: ARG003
        """Return the signer of a `pkcs11:` URI; the public half is read from the token."""
        uri = parse_token_uri(priv_key_uri.partition(":")[2])
        return cls(uri, secrets_handler("pin") if secrets_handler else uri.pin())

    def sign(self, payload: bytes) -> Signature:
        """Return the signature over `payload`, made inside the token.

        Raises:
            SignerUnavailableError: the token does not answer. KeyUriError: it no longer holds the key.
        """
        import PyKCS11

        with _session(self._library, self._uri, self._pin) as session:
            key = _one_key(session, self._uri, private=True)
            digest = hashlib.sha256(payload).digest()
            raw = bytes(session.sign(key, digest, PyKCS11.Mechanism(PyKCS11.CKM_ECDSA, None)))
        half = len(raw) // 2
        der = encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
        return Signature(self._public_key.keyid, der.hex())


def load_token(rest: str, _secrets: Secrets) -> Signer:
    """Return what signs with a key on a token.

    Raises:
        KeyUriError: no such module, token or P-256 key, or a wrong PIN. SignerUnavailableError: the token failed.
    """
    uri = parse_token_uri(rest)
    return TokenSigner(uri, uri.pin())


def make_token(rest: str, _passphrase: str | None) -> None:
    """Make a P-256 key pair on the token, which it never leaves, under the label (and id) of the URI.

    Raises:
        KeyUriError: a key of that name is there already, or as `load_token`.
    """
    import PyKCS11

    uri = parse_token_uri(rest)
    if not uri.label:
        raise KeyUriError("expected `object=LABEL` in the URI of a new key")
    key_id = uri.key_id or random.token_bytes(8)
    with _session(_library(uri.module), uri, uri.pin(), PyKCS11.CKF_RW_SESSION) as session:
        if session.findObjects(_template(uri, PyKCS11.CKO_PRIVATE_KEY)):
            raise KeyUriError(f"expected no key {uri.label!r} on the token, found one: a key is never overwritten")
        shared = [(PyKCS11.CKA_LABEL, uri.label), (PyKCS11.CKA_ID, key_id), (PyKCS11.CKA_TOKEN, PyKCS11.CK_TRUE)]
        public = [(PyKCS11.CKA_EC_PARAMS, P256_OID), (PyKCS11.CKA_VERIFY, PyKCS11.CK_TRUE)]
        private = [
            (PyKCS11.CKA_PRIVATE, PyKCS11.CK_TRUE),
            (PyKCS11.CKA_SENSITIVE, PyKCS11.CK_TRUE),
            (PyKCS11.CKA_EXTRACTABLE, PyKCS11.CK_FALSE),
            (PyKCS11.CKA_SIGN, PyKCS11.CK_TRUE),
        ]
        how = PyKCS11.Mechanism(PyKCS11.CKM_EC_KEY_PAIR_GEN, None)
        session.generateKeyPair([*shared, *public], [*shared, *private], how)


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise KeyUriError("a PIN does not belong in a URI: use pin-source=file:/path, or MODELFLEET_PIN")
        if not equals or name not in known or name in found:
            raise KeyUriError(f"expected {', '.join(sorted(known))} in a pkcs11: URI, each once, got {name[:40]!r}")
        found[name] = value
    return found


def _library(module: str) -> Any:
    try:
        import PyKCS11
    except ImportError as error:
        raise KeyUriError("pkcs11: keys need PyKCS11: pip install 'modelfleet[pkcs11]'") from error
    library = PyKCS11.PyKCS11Lib()
    try:
        library.load(module)
    except PyKCS11.PyKCS11Error as error:
        raise KeyUriError(f"expected a PKCS#11 module at {module}: {error}") from error
    return library


@contextlib.contextmanager
def _session(library: Any, uri: TokenUri, pin: str, flags: int = 0) -> Generator[Any]:
    """Open a session as the token's user; the token's own errors end here."""
    import PyKCS11

    with _process:
        try:
            session = library.openSession(_slot(library, uri), PyKCS11.CKF_SERIAL_SESSION | flags)
            try:
                _log_in(session, pin, uri)
                yield session
            finally:
                session.closeSession()
        except PyKCS11.PyKCS11Error as error:
            raise SignerUnavailableError(f"{uri.text}: the token failed: {error}") from error


def _log_in(session: Any, pin: str, uri: TokenUri) -> None:
    import PyKCS11

    try:
        session.login(pin)
    except PyKCS11.PyKCS11Error as error:
        if error.value == PyKCS11.CKR_USER_ALREADY_LOGGED_IN:
            return
        if error.value in (PyKCS11.CKR_PIN_INCORRECT, PyKCS11.CKR_PIN_LEN_RANGE, PyKCS11.CKR_PIN_INVALID):
            raise KeyUriError(f"{uri.text}: the PIN is wrong; a token locks after a few wrong ones") from error
        raise


def _slot(library: Any, uri: TokenUri) -> int:
    fitting = [slot for slot in library.getSlotList(tokenPresent=True) if _fits(library.getTokenInfo(slot), uri)]
    if len(fitting) != 1:
        raise KeyUriError(f"{uri.text}: expected one such token, found {len(fitting)}: name it with token= or serial=")
    return fitting[0]


def _fits(info: Any, uri: TokenUri) -> bool:
    return all(str(getattr(info, TOKEN_ATTRIBUTES[name])).strip(" \0") == value for name, value in uri.token.items())


def _one_key(session: Any, uri: TokenUri, *, private: bool) -> Any:
    import PyKCS11

    kind = PyKCS11.CKO_PRIVATE_KEY if private else PyKCS11.CKO_PUBLIC_KEY
    found = session.findObjects(_template(uri, kind))
    if len(found) != 1:
        half = "private" if private else "public"
        raise KeyUriError(f"{uri.text}: expected one {half} EC key of that name on the token, found {len(found)}")
    return found[0]


def _template(uri: TokenUri, kind: int) -> list[tuple[int, object]]:
    import PyKCS11

    template: list[tuple[int, object]] = [(PyKCS11.CKA_CLASS, kind), (PyKCS11.CKA_KEY_TYPE, PyKCS11.CKK_EC)]
    if uri.label:
        template.append((PyKCS11.CKA_LABEL, uri.label))
    if uri.key_id:
        template.append((PyKCS11.CKA_ID, uri.key_id))
    return template


def _public_key(session: Any, handle: Any, uri: TokenUri) -> SSlibKey:
    import PyKCS11

    values = session.getAttributeValue(handle, [PyKCS11.CKA_EC_PARAMS, PyKCS11.CKA_EC_POINT])
    curve, point = (bytes(value) for value in values)
    if curve != P256_OID:
        raise KeyUriError(f"{uri.text}: expected a key on the curve P-256, got another")
    if len(point) == 67:  # a DER octet string around the point, as PKCS#11 2.20 has it; some tokens give it bare
        point = point[2:]
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise KeyUriError(f"{uri.text}: the token gives no point of P-256: {error}") from error
    return SSlibKey.from_crypto(public)
