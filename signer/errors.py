"""Errors of the signer package, split by what the caller does next.

`UntrustedError` and everything below it: refuse, report, never retry. `SignerUnavailableError`: retry later.
"""


class SignerError(Exception):
    """Base of every error that this package raises."""


class SignerUnavailableError(SignerError):
    """The signer process, a token or a KMS did not answer: retry with backoff."""


class KeyUriError(SignerError):
    """A key URI names no usable key: fix the setting."""


class PlanError(SignerError):
    """What was asked for cannot be made: ask otherwise."""


class UntrustedError(SignerError):
    """Something was not signed by whom it must be, or does not say what it must: refuse, report, never retry."""


class FormatError(UntrustedError):
    """The bytes are not what the format allows (size, depth, duplicate keys, types, unknown major format)."""


class SignatureError(UntrustedError):
    """No valid signature by enough of the keys that may sign this."""


class UnknownKeyError(SignatureError):
    """Signed only by keys that the trust policy does not name: refresh the metadata once, then decide."""


class EpochError(UnknownKeyError):
    """Signed for an epoch beyond the trust policy's: refresh the metadata once, then decide, as for an unknown key."""


class ScopeError(UntrustedError):
    """Validly signed, but for another tenant, group, profile, device or release."""


class ReplayError(UntrustedError):
    """Older than what was already accepted ((epoch, seq), metadata version, release counter)."""


class ExpiredError(UntrustedError):
    """Past its `expires` or `not_after`: no update may start on it."""


class DigestError(UntrustedError):
    """The bytes do not have the digest or length that was signed."""


class DecryptionError(DigestError):
    """Ciphertext that does not open under its key as the file that it is said to be."""


class ApprovalError(UntrustedError):
    """Fewer valid approvals of this release than the trust policy requires."""


class GateFailedError(UntrustedError):
    """A gate attestation, validly signed, says that the variant did not pass."""


class RevokedError(UntrustedError):
    """The trust policy revokes this digest, or its counter lies below the policy's minimum."""


class MustUnderstandError(UntrustedError):
    """The document requires a feature that this agent does not have."""


class AuditTamperedError(UntrustedError):
    """The audit log is not what was signed: records altered, removed, inserted or moved; cut off, rolled back or forked."""
