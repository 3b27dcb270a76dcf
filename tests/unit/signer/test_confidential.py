"""A data key opens for the device and the manifest it was wrapped for, and for nobody else."""

import contextlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.signer.confidential import file_context, parse_wrapped_key, unwrap_key, wrap_key
from modelfleet.signer.errors import DecryptionError, FormatError, UntrustedError

DATA_KEY, MANIFEST = bytes(range(32)), "a" * 64
PLACE = {"tenant": "acme", "device": "d1", "manifest_sha256": MANIFEST}
DEVICE = ec.generate_private_key(ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_wrapped_key_opens_with_the_devices_key() -> None:
    wrapped = wrap_key(DATA_KEY, pem(DEVICE), **PLACE)
    assert unwrap_key(wrapped, DEVICE, **PLACE) == DATA_KEY
    assert DATA_KEY not in wrapped


@pytest.mark.parametrize("changes", [{"tenant": "umbrella"}, {"device": "d2"}, {"manifest_sha256": "b" * 64}])
def test_a_wrapped_key_opens_for_nothing_else(changes: dict[str, str]) -> None:
    wrapped = wrap_key(DATA_KEY, pem(DEVICE), **PLACE)
    if "manifest_sha256" in changes:  # also where the JSON was changed to say so
        wrapped = wrapped.replace(MANIFEST.encode(), changes["manifest_sha256"].encode())
    with pytest.raises(DecryptionError):
        unwrap_key(wrapped, DEVICE, **{**PLACE, **changes})


def test_rot_of_a_wrapped_key_is_found_without_the_devices_key() -> None:
    wrapped = wrap_key(DATA_KEY, pem(DEVICE), **PLACE)
    assert len(parse_wrapped_key(wrapped, manifest_sha256=MANIFEST)) == 113
    with pytest.raises(DecryptionError, match="expected sha256"):
        parse_wrapped_key(_with(wrapped, sha256="0" * 64), manifest_sha256=MANIFEST)
    with pytest.raises(DecryptionError, match="of manifest"):
        parse_wrapped_key(wrapped, manifest_sha256="b" * 64)


@pytest.mark.parametrize("changes", [{"wrapped": "no base64!"}, {"wrapped": "AAAA"}, {"format": "2.0"}, {"sha256": 7}])
def test_refuses_what_is_no_wrapped_key(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        parse_wrapped_key(_with(wrap_key(DATA_KEY, pem(DEVICE), **PLACE), **changes), manifest_sha256=MANIFEST)


def test_wraps_to_no_other_kind_of_key() -> None:
    with pytest.raises(FormatError, match="P-256"):
        wrap_key(DATA_KEY, pem(ec.generate_private_key(ec.SECP384R1())), **PLACE)


def test_no_two_files_have_the_same_context() -> None:
    one = {"tenant": "acme", "model": "a/b", "version": "1.0.0", "profile": "p", "name": "model.onnx"}
    changed = [{**one, field: "x"} for field in one]
    shifted = {**one, "model": "a", "version": "b/1.0.0"}
    assert len({file_context(**each) for each in (one, *changed, shifted)}) == 7


bent = st.builds(lambda place, byte: _bent(place, byte), st.integers(0, 360), st.integers(0, 255))


@given(data=st.one_of(st.binary(max_size=400), bent))
def test_any_bytes_are_a_key_for_this_device_or_untrusted(data: bytes) -> None:
    with contextlib.suppress(UntrustedError):
        assert unwrap_key(data, DEVICE, **PLACE) == DATA_KEY


_GOOD = wrap_key(DATA_KEY, pem(DEVICE), **PLACE)


def _bent(place: int, byte: int) -> bytes:
    return _GOOD[:place] + bytes([byte]) + _GOOD[place + 1 :]


def _with(said: bytes, **changes: object) -> bytes:
    return json.dumps({**json.loads(said), **changes}).encode()
