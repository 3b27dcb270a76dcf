"""Private keys in AWS KMS: `awskms:KEY` with a key id, an ARN, or `alias/NAME`; the key never leaves the service.

Credentials, region and endpoint are boto3's own: `AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL_KMS` and so on. Signing needs
`kms:GetPublicKey` and `kms:Sign`.
"""
# securesystemslib documents these classes as `securesystemslib.signer`'s, and boto3 comes without types:
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false

from typing import Any

from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import AWSSigner, Key, Signature, Signer, SSlibKey

from modelfleet.signer.errors import KeyUriError, SignerUnavailableError
from modelfleet.signer.passphrase import Secrets

SCHEME = "ecdsa-sha2-nistp256"


class KmsSigner(Signer):
    """Signs with a key in AWS KMS: securesystemslib's signer, with this package's errors."""

    def __init__(self, key: str, public_key: SSlibKey) -> None:
        self._key = key
        self._signer = AWSSigner(key, public_key)

    @property
    def public_key(self) -> Key:
        """The key's public half."""
        return self._signer.public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> "KmsSigner":  # noqa: ARG003
        """Return the signer of `awskms:KEY`, whose public half is known already."""
        assert isinstance(public_key, SSlibKey)
        return cls(priv_key_uri.partition(":")[2], public_key)

    def sign(self, payload: bytes) -> Signature:
        """Return the signature over `payload`; only its digest travels.

        Raises:
            SignerUnavailableError: KMS did not answer, or refused.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._signer.sign(payload)
        except (BotoCoreError, ClientError) as error:
            raise SignerUnavailableError(f"awskms:{self._key} did not sign: {error}") from error


def load_kms(key: str, _secrets: Secrets) -> Signer:
    """Return what signs with a key in AWS KMS.

    Raises:
        KeyUriError: there is no such P-256 key, or boto3 is not installed. SignerUnavailableError: KMS did not answer.
    """
    _client()
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _, public_key = AWSSigner.import_(key, SCHEME)
    except ClientError as error:
        raise KeyUriError(f"awskms:{key}: expected a P-256 signing key: {error}") from error
    except BotoCoreError as error:
        raise SignerUnavailableError(f"awskms:{key}: {error}") from error
    except (SecureSystemsError, ValueError) as error:
        raise KeyUriError(f"awskms:{key}: expected a key of ECC_NIST_P256: {error}") from error
    return KmsSigner(key, public_key)


def make_kms(key: str, _passphrase: str | None) -> None:
    """Make an ECC_NIST_P256 key in AWS KMS under the alias that `key` names (`alias/NAME`).

    Raises:
        KeyUriError: not an alias, or it is taken. SignerUnavailableError: KMS did not answer, or refused.
    """
    if not key.startswith("alias/"):
        raise KeyUriError(f"expected awskms:alias/NAME for a new key, got awskms:{key[:80]}: KMS chooses ids itself")
    client = _client()
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        if _has_alias(client, key):
            raise KeyUriError(f"expected no key under awskms:{key}, found one: a key is never overwritten")
        made = client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY", Description=f"modelfleet {key}")
        client.create_alias(AliasName=key, TargetKeyId=made["KeyMetadata"]["KeyId"])
    except (BotoCoreError, ClientError) as error:
        raise SignerUnavailableError(f"awskms:{key} could not be made: {error}") from error


def _client() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise KeyUriError("awskms: keys need boto3: pip install 'modelfleet[awskms]'") from error
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.client("kms")
    except BotoCoreError as error:  # no region, for instance
        raise KeyUriError(f"awskms: {error}") from error


def _has_alias(client: Any, alias: str) -> bool:
    pages = client.get_paginator("list_aliases").paginate()
    return any(found["AliasName"] == alias for page in pages for found in page["Aliases"])
