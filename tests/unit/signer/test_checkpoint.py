"""Checkpoints are C2SP signed notes; what is not exactly one is refused."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from modelfleet.signer.checkpoint import (
    Checkpoint,
    Inclusion,
    encode_proof,
    origin_of,
    parse_proof,
    sign_checkpoint,
    verify_checkpoint,
    verify_proof,
)
from modelfleet.signer.errors import DigestError, FormatError, ScopeError, SignatureError, UnknownKeyError
from modelfleet.signer.keys import CryptoSigner
from modelfleet.signer.merkle import leaf_hash, node_hash

KEY, OTHER = CryptoSigner.generate_ecdsa(), CryptoSigner.generate_ecdsa()
ENTRIES = [b'{"n":0}', b'{"n":1}']
ROOT = node_hash(*map(leaf_hash, ENTRIES))
HEAD = Checkpoint(origin=origin_of("acme"), size=2, root=ROOT)


@pytest.fixture
def note() -> str:
    return sign_checkpoint(HEAD, KEY)


def test_a_checkpoint_comes_back_as_it_was_signed(note: str) -> None:
    assert verify_checkpoint(note, KEY.public_key, origin=HEAD.origin) == HEAD
    assert verify_checkpoint(note.encode(), KEY.public_key) == HEAD


def test_the_note_is_what_c2sp_writes_down_for_ecdsa(note: str) -> None:
    text, signatures = note.split("\n\n")
    assert text == f"modelfleet/acme/audit\n2\n{base64.b64encode(ROOT).decode()}"
    dash, name, blob = signatures.removesuffix("\n").split(" ")
    assert (dash, name) == ("\u2014", "modelfleet/acme/audit")
    public = load_pem_public_key(KEY.public_key.keyval["public"].encode())
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    data = base64.b64decode(blob)
    assert data[:4] == hashlib.sha256(der).digest()[:4]
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(data[4:], f"{text}\n".encode(), ec.ECDSA(hashes.SHA256()))


def test_another_key_is_not_the_logs(note: str) -> None:
    with pytest.raises(UnknownKeyError):
        verify_checkpoint(note, OTHER.public_key)


def test_a_signature_under_the_logs_key_id_by_another_key_is_refused(note: str) -> None:
    forged = sign_checkpoint(HEAD, OTHER)
    own, theirs = (base64.b64decode(each.strip().rpartition(" ")[2]) for each in (note, forged))
    blob = base64.b64encode(own[:4] + theirs[4:]).decode()
    with pytest.raises(SignatureError):
        verify_checkpoint(f"{forged.rpartition(' ')[0]} {blob}\n", KEY.public_key)


@pytest.mark.parametrize(("old", "new"), [("\n2\n", "\n3\n"), ("acme", "evil")])
def test_a_changed_body_is_refused(note: str, old: str, new: str) -> None:
    with pytest.raises(SignatureError):
        verify_checkpoint(note.replace(old, new), KEY.public_key)


def test_a_checkpoint_of_another_log_is_refused(note: str) -> None:
    with pytest.raises(ScopeError):
        verify_checkpoint(note, KEY.public_key, origin=origin_of("other"))


def test_signatures_of_others_beside_the_logs_own_are_ignored(note: str) -> None:
    witness = sign_checkpoint(HEAD, OTHER).rpartition("\n\n")[2]
    assert verify_checkpoint(note + witness, KEY.public_key) == HEAD


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "no signature\n",
        "modelfleet/acme/audit\n2\nAA==\n\n— x AAAAAAA=\n",
        "modelfleet/acme/audit\n02\n{root}\n\n— x AAAAAAA=\n",
        "modelfleet/acme/audit\n-2\n{root}\n\n— x AAAAAAA=\n",
        "modelfleet/acme/audit\n2\n\n— x AAAAAAA=\n",
        "modelfleet/acme/audit\n2\n{root}\n\n- x AAAAAAA=\n",
        "modelfleet/acme/audit\n2\n{root}\n\n— x AAAA\n",
        "modelfleet/acme/audit\n2\n{root}\n\n— x !!!!\n",
        "modelfleet/acme/audit\n2\n{root}\n\n— x AAAAAAA=",
        "modelfleet/acme/audit\r\n2\n{root}\n\n— x AAAAAAA=\n",
        "modelfleet/acme/audit\n2\n{root}\n\n" + "— x AAAAAAA=\n" * 17,
        "x" * 70_000,
    ],
)
def test_what_is_no_checkpoint_is_refused(broken: str) -> None:
    with pytest.raises(FormatError):
        verify_checkpoint(broken.replace("{root}", base64.b64encode(ROOT).decode()), KEY.public_key)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(FormatError):
        verify_checkpoint(b"\xff\xfe", KEY.public_key)


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "line\nbreak"])
def test_an_origin_that_a_note_cannot_hold_is_not_signed(origin: str) -> None:
    with pytest.raises(FormatError):
        sign_checkpoint(Checkpoint(origin=origin, size=0, root=ROOT), KEY)


def test_a_proof_holds_its_entry_and_is_read_back(note: str) -> None:
    text = encode_proof(Inclusion(index=1, entry=ENTRIES[1], hashes=(leaf_hash(ENTRIES[0]),), checkpoint=note))
    assert text.startswith("c2sp.org/tlog-proof@v1\nextra eyJuIjoxfQ==\nindex 1\n")
    found, checkpoint = verify_proof(text, KEY.public_key, origin=HEAD.origin)
    assert (found.entry, found.index, checkpoint) == (ENTRIES[1], 1, HEAD)


def test_a_proof_of_another_entry_is_refused(note: str) -> None:
    text = encode_proof(Inclusion(index=1, entry=b'{"n":2}', hashes=(leaf_hash(ENTRIES[0]),), checkpoint=note))
    with pytest.raises(DigestError):
        verify_proof(text, KEY.public_key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c2sp.org/tlog-proof@v1\n\n",
        "c2sp.org/tlog-proof@v1\nindex 1\nx\n\nnote",
        "c2sp.org/tlog-proof@v1\nextra !\nindex 1\n\nnote",
        "c2sp.org/tlog-proof@v1\nextra AA==\nindex -1\n\nnote",
        "c2sp.org/tlog-proof@v1\nextra AA==\nindex 1\nAA==\n\nnote",
        "c2sp.org/tlog-proof@v2\nextra AA==\nindex 1\n\nnote",
    ],
)
def test_what_is_no_proof_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_proof(text)
