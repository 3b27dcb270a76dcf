"""The signer's memory at size: facts of bins are read once, and re-signing fills replies without overflowing one."""

from datetime import datetime, timedelta

import pytest

from modelfleet.signer import releases
from modelfleet.signer.ceremony import CeremonyResult
from modelfleet.signer.keys import load_signer
from modelfleet.signer.metadata import TargetFile, sign_metadata
from modelfleet.signer.releases import ReleaseSigner
from modelfleet.signer.state import SignerState
from modelfleet.signer.trust import BIN_LIFE, trusted_root
from modelfleet.signer.wire import ResignRequest
from tests.unit.signer.samples import TENANT


def signer_of(fleet: CeremonyResult) -> ReleaseSigner:
    return ReleaseSigner(
        tenant=TENANT,
        root=trusted_root(fleet.root_json.read_bytes()),
        releases=load_signer(fleet.releases_key),
        state=SignerState(fleet.signer_state),
    )


def test_the_facts_of_a_bin_follow_the_bin(fleet: CeremonyResult) -> None:
    state, key = SignerState(fleet.signer_state), load_signer(fleet.releases_key)
    role = state.roles[0]
    assert (state.facts(role).version, state.facts(role).targets) == (1, 0)
    metadata = state.bin(role)
    metadata.signed.version = 2
    metadata.signed.targets["models/a/1.0.0/p/manifest.json"] = TargetFile(1, {"sha256": "0" * 64}, "x")
    state.keep_bin(role, sign_metadata(metadata, [key]))
    assert (state.facts(role).version, state.facts(role).targets) == (2, 1)
    assert state.facts(role).keyids == {key.public_key.keyid}
    assert SignerState(fleet.signer_state).facts(role) == state.facts(role)


def test_resigning_fills_a_reply_and_goes_on_in_the_next(
    fleet: CeremonyResult, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "MAX_RESIGN_BYTES", 1)
    signer, before = signer_of(fleet), now + BIN_LIFE - timedelta(days=1)
    asked = ResignRequest(before=before, published={}, limit=256)
    assert signer.resign(asked).bins == {}  # nothing is due
    due = ResignRequest(before=now + BIN_LIFE + timedelta(hours=1), published={}, limit=256)
    monkeypatch.setattr(signer, "_clock", lambda: now + timedelta(days=1))
    seen: set[str] = set()
    while bins := signer.resign(due).bins:
        assert len(bins) == 1
        seen |= set(bins)
    assert seen == set(SignerState(fleet.signer_state).roles)
