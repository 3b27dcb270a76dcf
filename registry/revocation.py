"""Why a certificate is revoked, by RFC 5280's names: one list for commands, routes and tables."""

from typing import Final, Literal, get_args

SUPERSEDED: Final = "superseded"
"""The device has a newer key; said by the service itself."""

Reason = Literal[
    "unspecified", "key_compromise", "affiliation_changed", "cessation_of_operation", "privilege_withdrawn"
]
"""What an operator may say."""

REASONS: Final[tuple[str, ...]] = get_args(Reason)
