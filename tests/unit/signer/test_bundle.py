"""The OpenSSF bundle, checked by the public `model_signing` package, not by our own code."""

from dataclasses import dataclass
from pathlib import Path

import model_signing
import msgspec
import pytest
from click.testing import CliRunner
from model_signing._cli import main as model_signing_cli

from modelfleet.signer.bundle import sign_bundle, sign_entry_bundle
from modelfleet.signer.errors import FormatError
from modelfleet.signer.keys import CryptoSigner
from tests.unit.signer.samples import FILES, manifest


@dataclass(frozen=True)
class Variant:
    folder: Path
    signature: Path
    public_key: Path

    def verify(self) -> None:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=self.public_key)
        verifier.verify(self.folder, self.signature)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    key = CryptoSigner.generate_ecdsa()
    folder = tmp_path / "variant"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "model.sig").write_bytes(sign_bundle(manifest(), key))
    (tmp_path / "releases.pub").write_text(key.public_key.keyval["public"])
    return Variant(folder, folder / "model.sig", tmp_path / "releases.pub")


def test_the_public_library_accepts_an_untouched_variant(variant: Variant) -> None:
    variant.verify()


def test_the_public_library_refuses_one_changed_byte(variant: Variant) -> None:
    (variant.folder / "model.onnx").write_bytes(b"n" + FILES["model.onnx"][1:])
    with pytest.raises(ValueError, match=r"Hash mismatch for 'model\.onnx'"):
        variant.verify()


def test_the_public_library_refuses_a_file_too_many_or_too_few(variant: Variant) -> None:
    (variant.folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="Extra files"):
        variant.verify()
    (variant.folder / "extra.bin").unlink()
    (variant.folder / "golden.npz").unlink()
    with pytest.raises(ValueError, match="Missing files"):
        variant.verify()


def test_the_public_library_refuses_another_key(variant: Variant) -> None:
    variant.public_key.write_text(CryptoSigner.generate_ecdsa().public_key.keyval["public"])
    with pytest.raises(ValueError, match="Key mismatch"):
        variant.verify()


def test_the_public_command_verifies_it_and_fails_on_a_changed_file(variant: Variant) -> None:
    arguments = ["verify", "key", "--signature", str(variant.signature), "--public_key", str(variant.public_key)]
    good = CliRunner().invoke(model_signing_cli, [*arguments, str(variant.folder)])
    assert good.exit_code == 0, good.output
    (variant.folder / "golden.npz").write_bytes(b"other")
    assert CliRunner().invoke(model_signing_cli, [*arguments, str(variant.folder)]).exit_code == 1


@pytest.mark.parametrize("name", ["model.sig", "model.onnx.sig"])
def test_a_file_that_verifiers_would_leave_out_is_not_signed(name: str) -> None:
    files = tuple(
        msgspec.structs.replace(file, name=name) if file.role == "golden" else file for file in manifest().files
    )
    with pytest.raises(FormatError, match="a signature lies there"):
        sign_bundle(manifest(files=files, golden=name), CryptoSigner.generate_ecdsa())


def test_the_public_library_verifies_the_model_file_alone(variant: Variant, tmp_path: Path) -> None:
    key = CryptoSigner.generate_ecdsa()
    variant.public_key.write_text(key.public_key.keyval["public"])
    (tmp_path / "model.onnx").write_bytes(FILES["model.onnx"])
    (tmp_path / "model.onnx.sig").write_bytes(sign_entry_bundle(manifest(), key))
    alone = Variant(tmp_path / "model.onnx", tmp_path / "model.onnx.sig", variant.public_key)
    alone.verify()
    (tmp_path / "model.onnx").write_bytes(FILES["golden.npz"])
    with pytest.raises(ValueError, match="Hash mismatch"):
        alone.verify()
