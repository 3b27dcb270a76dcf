"""Signing each kind of statement and document: the struct's bytes, its payload type, a DSSE envelope.

Fields stand in the order of their declaration and the keys of maps are sorted, so that equal statements have equal bytes.
"""

from collections.abc import Mapping

import msgspec

from modelfleet.signer.desired import ASSIGNMENT_PAYLOAD_TYPE, GROUP_PAYLOAD_TYPE, Assignment, GroupDocument
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.keys import Signer
from modelfleet.signer.statements import (
    APPROVAL_PAYLOAD_TYPE,
    IN_TOTO_PAYLOAD_TYPE,
    REPORT_PAYLOAD_TYPE,
    SOURCE_PAYLOAD_TYPE,
    Approval,
    GateStatement,
    Source,
)

PAYLOAD_TYPES: Mapping[type[msgspec.Struct], str] = {
    GroupDocument: GROUP_PAYLOAD_TYPE,
    Assignment: ASSIGNMENT_PAYLOAD_TYPE,
    Source: SOURCE_PAYLOAD_TYPE,
    Approval: APPROVAL_PAYLOAD_TYPE,
    GateStatement: IN_TOTO_PAYLOAD_TYPE,
}
"""Every struct that is signed as a DSSE payload -> its payload type."""


def encode_payload(statement: msgspec.Struct) -> bytes:
    """Return the bytes that are signed: JSON, fields as declared, keys of maps sorted."""
    return msgspec.json.encode(statement, order="deterministic")


def sign_group(document: GroupDocument, director: Signer) -> bytes:
    """Return the signed group document."""
    return _sign(document, director)


def sign_assignment(document: Assignment, director: Signer) -> bytes:
    """Return the signed assignment."""
    return _sign(document, director)


def sign_source(source: Source, publisher: Signer) -> bytes:
    """Return the publisher's signed statement."""
    return _sign(source, publisher)


def sign_gate(statement: GateStatement, gate: Signer) -> bytes:
    """Return the worker's signed gate attestation."""
    return _sign(statement, gate)


def sign_approval(approval: Approval, approver: Signer) -> bytes:
    """Return one person's signed approval."""
    return _sign(approval, approver)


def sign_report(report: bytes, device: Signer) -> bytes:
    """Return a device's signed report; `report` is the encoded `agent_client.protocol.Report`."""
    return sign_envelope(report, REPORT_PAYLOAD_TYPE, device)


def _sign(statement: msgspec.Struct, signer: Signer) -> bytes:
    return sign_envelope(encode_payload(statement), PAYLOAD_TYPES[type(statement)], signer)
