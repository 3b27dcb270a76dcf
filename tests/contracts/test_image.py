"""A data image as firmware in the field parses it: docs/microcontroller.md lists the offsets that are pinned here."""

from pathlib import Path

from modelfleet.signer.image import ImageHeader, verify_image
from modelfleet.signer.keys import public_key_of_pem

GOLDEN = Path(__file__).parent / "image"
IMAGE = (GOLDEN / "image.bin").read_bytes()
KEY = public_key_of_pem((GOLDEN / "releases.pub.pem").read_text())


def test_an_image_of_the_past_still_verifies_and_says_the_same() -> None:
    payload = bytes(range(256)) * 3
    assert verify_image(IMAGE, KEY) == ImageHeader(
        tenant="acme",
        group="shops",
        profile="cortex-m4",
        model="ui/digits",
        version="1.2.0-rc.1",
        serial=7,
        counter=2**40,
        payload_bytes=len(payload),
        payload_sha256="f3a25aa93aa2fbba28d79260535bbd6a5eb0fc1c24a8b0f04e12b484c1dfe363",
        shapes_sha256="5" * 64,
        manifest_sha256="6" * 64,
    )


def test_every_field_stands_where_the_documentation_says() -> None:
    assert IMAGE[0:16] == b"MODELFLEET-IMAGE"
    numbers = [(16, 4, 1), (20, 4, 0), (24, 8, 7), (32, 8, 2**40), (40, 8, 0), (48, 4, 768), (52, 4, 0)]
    for offset, length, value in numbers:
        assert int.from_bytes(IMAGE[offset : offset + length], "little") == value, offset
    texts = {152: b"acme", 216: b"shops", 280: b"cortex-m4", 344: b"1.2.0-rc.1", 408: b"ui/digits"}
    for offset, text in texts.items():
        assert IMAGE[offset : offset + len(text) + 1] == text + b"\0", offset
    assert IMAGE[56:88] == b"\x55" * 32
    assert IMAGE[120:152] == b"\x66" * 32
    assert IMAGE[672:704].hex() == KEY.keyid
    assert IMAGE[768:] == bytes(range(256)) * 3
