import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES, sign_envelope, verify_envelope
from modelfleet.signer.errors import FormatError, SignatureError, UnknownKeyError, UntrustedError
from tests.unit.signer.samples import Keys, keyed, new_key

TYPE = "application/vnd.modelfleet.test+json"
PAYLOAD = b'{"a":1}'


def changed(envelope: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    found = json.loads(envelope)
    change(found)
    return json.dumps(found).encode()


def test_returns_the_payload_and_who_signed_it(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.anna, keys.ben)
    payload, signed_by = verify_envelope(envelope, TYPE, keyed(keys.anna, keys.ben, keys.director), threshold=2)
    assert payload == PAYLOAD
    assert signed_by == {keys.anna.public_key.keyid, keys.ben.public_key.keyid}


def test_ignores_a_signature_by_a_stranger_beside_a_valid_one(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.stranger, keys.anna)
    assert verify_envelope(envelope, TYPE, keyed(keys.anna))[1] == {keys.anna.public_key.keyid}


def test_an_envelope_by_strangers_only_is_an_unknown_key(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.stranger)
    with pytest.raises(UnknownKeyError):
        verify_envelope(envelope, TYPE, keyed(keys.anna))


def test_an_unsigned_envelope_is_a_signature_error_and_not_an_unknown_key(keys: Keys) -> None:
    unsigned = changed(sign_envelope(PAYLOAD, TYPE, keys.anna), lambda e: e.update(signatures=[]))
    with pytest.raises(SignatureError, match="got no signature") as caught:
        verify_envelope(unsigned, TYPE, keyed(keys.anna))
    assert not isinstance(caught.value, UnknownKeyError)  # no refresh of the metadata would help


def test_refuses_fewer_signatures_than_the_threshold(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.anna, keys.stranger)
    with pytest.raises(SignatureError, match="expected 2 valid signatures"):
        verify_envelope(envelope, TYPE, keyed(keys.anna, keys.ben), threshold=2)


def test_refuses_a_changed_payload_but_not_as_an_unknown_key(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.anna)
    forged = changed(envelope, lambda e: e.update(payload=base64.b64encode(b'{"a":2}').decode()))
    with pytest.raises(SignatureError) as caught:
        verify_envelope(forged, TYPE, keyed(keys.anna))
    assert not isinstance(caught.value, UnknownKeyError)


def test_refuses_a_statement_signed_as_another_type(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, "application/vnd.modelfleet.approval+json", keys.anna)
    with pytest.raises(FormatError, match="payloadType"):
        verify_envelope(envelope, TYPE, keyed(keys.anna))
    relabelled = changed(envelope, lambda e: e.update(payloadType=TYPE))
    with pytest.raises(SignatureError):  # the type is part of what is signed
        verify_envelope(relabelled, TYPE, keyed(keys.anna))


def test_refuses_a_key_that_stands_under_the_id_of_another(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.stranger)
    swapped = {keys.stranger.public_key.keyid: keyed(keys.anna)[keys.anna.public_key.keyid]}
    with pytest.raises(FormatError, match="expected a key with the id"):
        verify_envelope(envelope, TYPE, swapped)


def twice(envelope: dict[str, Any]) -> None:
    envelope["signatures"].append(dict(envelope["signatures"][0]))


def unused_bits(envelope: dict[str, Any]) -> None:
    envelope["payload"] = envelope["payload"][:-2] + "1="


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a key id twice": twice,
    "17 signatures": lambda e: e.update(signatures=e["signatures"] * 17),
    "payload no base64": lambda e: e.update(payload="%%%%"),
    "payload with unused bits": unused_bits,
    "payload not ASCII": lambda e: e.update(payload="é"),
    "signature no base64": lambda e: e["signatures"][0].update(sig="not base64!"),
    "payload missing": lambda e: e.pop("payload"),
    "payloadType missing": lambda e: e.pop("payloadType"),
    "key id missing": lambda e: e["signatures"][0].pop("keyid"),
    "key id not hexadecimal": lambda e: e["signatures"][0].update(keyid="../../etc/passwd"),
    "signatures an object": lambda e: e.update(signatures={}),
    "signature a number": lambda e: e["signatures"][0].update(sig=7),
    "too long": lambda e: e.update(filler="x" * MAX_ENVELOPE_BYTES),
    "too deep": lambda e: e.update(filler=[[[[[]]]]]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_refuses_a_malformed_envelope(name: str, keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.anna)
    assert verify_envelope(changed(envelope, lambda _: None), TYPE, keyed(keys.anna))[0] == PAYLOAD
    with pytest.raises(FormatError):
        verify_envelope(changed(envelope, MALFORMED[name]), TYPE, keyed(keys.anna))


@pytest.mark.parametrize("signature", ["AAAA", base64.b64encode(b"\x30\x06\x02\x01\x00\x02\x01\x00").decode()])
def test_a_signature_that_is_no_signature_is_invalid_and_nothing_worse(signature: str, keys: Keys) -> None:
    envelope = changed(sign_envelope(PAYLOAD, TYPE, keys.anna), lambda e: e["signatures"][0].update(sig=signature))
    with pytest.raises(SignatureError):
        verify_envelope(envelope, TYPE, keyed(keys.anna))


def test_refuses_two_spellings_of_one_key(keys: Keys) -> None:
    envelope = sign_envelope(PAYLOAD, TYPE, keys.anna)
    doubled = envelope.replace(b'{"payload":', b'{"payload":"","payload":', 1)
    with pytest.raises(FormatError, match="duplicate key"):
        verify_envelope(doubled, TYPE, keyed(keys.anna))


SIGNER = new_key()
VALID = sign_envelope(PAYLOAD, TYPE, SIGNER)


@settings(max_examples=200, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=0, max_size=3)), min_size=1, max_size=4)
)
def test_a_mutated_envelope_is_refused_or_still_says_the_same(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(VALID)
    for position, replacement in edits:
        data[position : position + 1] = replacement
    try:
        payload, _ = verify_envelope(bytes(data), TYPE, keyed(SIGNER))
    except UntrustedError:
        return
    assert payload == PAYLOAD


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_are_refused_as_untrusted(data: bytes) -> None:
    with pytest.raises(UntrustedError):
        verify_envelope(data, TYPE, keyed(SIGNER))
