"""Golden files of the audit log: what was exported, proved and signed once verifies for ever."""

from pathlib import Path

from modelfleet.registry.audit_verify import verify_export
from modelfleet.signer.checkpoint import encode_proof, parse_proof, verify_checkpoint, verify_proof
from modelfleet.signer.keys import public_key_of_pem

GOLDEN = Path(__file__).parent / "audit"
KEY = public_key_of_pem((GOLDEN / "audit.pub").read_text())


def test_a_checkpoint_of_the_past_still_verifies() -> None:
    found = verify_checkpoint((GOLDEN / "checkpoint").read_bytes(), KEY, origin="modelfleet/acme/audit")
    assert found.size == 5


def test_an_export_of_the_past_still_verifies() -> None:
    with (GOLDEN / "export.jsonl").open("rb") as lines:
        found = verify_export(lines, KEY)
    assert (found.start, found.checkpoint.size, found.checkpoints) == (0, 5, 2)


def test_a_proof_of_the_past_still_verifies_and_is_written_alike() -> None:
    text = (GOLDEN / "record.tlog-proof").read_text()
    inclusion, checkpoint = verify_proof(text, KEY)
    assert (inclusion.index, checkpoint.size) == (2, 5)
    assert encode_proof(parse_proof(text)) == text
