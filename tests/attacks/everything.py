"""One key that is director, approver, publisher, gate and device at once: then only the payload type tells kinds apart."""

from typing import Any

import msgspec

from modelfleet.signer.desired import (
    GroupDocument,
    group_scope,
)
from modelfleet.signer.statements import (
    Approver,
    TrustPolicy,
)
from modelfleet.signer.verify import Floors, accept_document
from tests.unit.signer import samples
from tests.unit.signer.samples import GROUP, PROFILE, TENANT

EVERYTHING = samples.new_key()
OTHER = samples.new_key()


def policy(**changes: object) -> TrustPolicy:
    keys = samples.keyed(EVERYTHING)
    approvers = {
        key.public_key.keyid: Approver(person=person, key=samples.public(key))
        for person, key in (("anna", EVERYTHING), ("ben", OTHER))
    }
    made = TrustPolicy(tenant=TENANT, epoch=1, directors=keys, approvers=approvers, publishers=keys, gates=keys)
    return msgspec.structs.replace(made, **changes)


def believe(envelope: bytes, kind: type[Any] = GroupDocument, scope: str = group_scope(GROUP, PROFILE)) -> object:
    """The device's decision on a document, with no floors yet."""
    return accept_document(envelope, kind, tenant=TENANT, scope=scope, policy=policy(), floors=Floors())
