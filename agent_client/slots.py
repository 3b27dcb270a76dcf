"""Two directories and an atomic pointer: what a slot holds, and which of it runs.

Upholds: a directory is complete exactly when it holds `manifest.json`, which is written after every file was verified
and lies on the disk, and removed before anything else of it changes. The pointer is replaced by one rename, so that
after a crash at any moment the old variant or the new one is active, never none. Content is verified against the
manifest digest that was accepted at install each time it is opened; metadata that has expired meanwhile stops nothing.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from modelfleet.agent_client.confidential import KEY_NAME, require_key
from modelfleet.agent_client.storage import Disk, encode_struct, read_struct
from modelfleet.signer.errors import DigestError
from modelfleet.signer.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestFile, parse_manifest
from modelfleet.signer.names import Count, SemVer, Sha256, sha256_of

Directory = Literal["a", "b"]
MANIFEST_NAME = "manifest.json"
POINTER_NAME = "active.json"


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """What runs: a directory, the manifest digest that was accepted, and the number of this activation.

    latency_ms: the limit beyond which an inference counts as slow, the stricter of the manifest's and the rollout's.
    """

    format: str = "1.0"
    directory: Directory
    activation: Count
    sha256: Sha256
    version: SemVer
    latency_ms: Annotated[float, msgspec.Meta(gt=0)]


def slot_folder(root: Path, slot: str) -> Path:
    """Return the folder of a slot inside the agent's folder."""
    return root / "slots" / slot


def read_pointer(folder: Path) -> Pointer | None:
    """Return what is active in the slot's folder, or None where nothing is (StorageError: the pointer is damaged)."""
    return read_struct(folder / POINTER_NAME, Pointer)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_directory(folder: Path, sha256: str) -> Manifest:
    """Return the manifest of the variant in `folder`, all of whose bytes are those that were signed.

    Args:
        folder: one of the slot's two directories.
        sha256: the manifest digest that was accepted.

    Raises:
        DigestError: the manifest or a file is missing, or is not what was accepted; or the wrapped key of a confidential
            variant is missing or damaged.
    """
    manifest = verify_manifest(folder, sha256)
    for entry in manifest.files:
        verify_file(folder / entry.name, entry)
    if manifest.confidential:
        require_key(folder, sha256)
    return manifest


def verify_manifest(folder: Path, sha256: str) -> Manifest:
    """Return the manifest in `folder` (DigestError: it is missing, or has another digest)."""
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise DigestError(f"{folder}: expected manifest {sha256}, got none") from error
    if sha256_of(data) != sha256:
        raise DigestError(f"{folder}: expected manifest {sha256}, got {sha256_of(data)}")
    return parse_manifest(data)


def verify_file(path: Path, entry: ManifestFile) -> None:
    """Return if the file has the length and digest that the manifest says (DigestError: it has not)."""
    try:
        length, found = path.stat().st_size, digest_of(path)
    except OSError as error:
        raise DigestError(f"{path.name}: expected a file of sha256 {entry.sha256}, got {error.strerror}") from error
    if length != entry.length or found != entry.sha256:
        raise DigestError(
            f"{path.name}: expected {entry.length} bytes of sha256 {entry.sha256}, got {length} of {found}"
        )


class SlotStore:
    """One slot's two directories and pointer; the agent alone changes them.

    Args:
        folder: the slot's folder, made if it is not there.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder = folder
        self._disk = disk
        disk.make_folder(folder)
        disk.make_folder(folder / "counters")

    def pointer(self) -> Pointer | None:
        """Return what is active, or None."""
        return read_pointer(self.folder)

    def idle(self) -> Directory:
        """Return the directory that is not active."""
        pointer = self.pointer()
        return "b" if pointer is not None and pointer.directory == "a" else "a"

    def path(self, directory: Directory) -> Path:
        """Return the folder of a directory."""
        return self.folder / directory

    def prepare(self, manifest: Manifest) -> Path:
        """Make the idle directory ready to receive the files of `manifest`, and return it.

        It is incomplete from here on. Files and partial files that the manifest names stay, all others go; files that
        the active directory holds already are linked, not fetched.
        """
        folder = self.path(self.idle())
        self._disk.make_folder(folder)
        self._disk.remove(folder / MANIFEST_NAME)  # first: from here on the directory is not complete
        wanted = {entry.name for entry in manifest.files}
        for found in sorted(folder.iterdir()):
            if found.name.removesuffix(".part") not in wanted:
                found.unlink()
        self._adopt(manifest, folder)
        return folder

    def missing(self, manifest: Manifest, folder: Path) -> list[ManifestFile]:
        """Return the files of `manifest` that the folder does not hold; damaged ones are removed and returned too."""
        found: list[ManifestFile] = []
        for entry in manifest.files:
            try:
                verify_file(folder / entry.name, entry)
            except DigestError:
                (folder / entry.name).unlink(missing_ok=True)
                found.append(entry)
        return found

    def check(self, directory: Directory, sha256: str) -> None:
        """Return if the directory holds that variant, whole and undamaged (DigestError: it does not)."""
        verify_directory(self.path(directory), sha256)

    def complete(self, folder: Path, manifest: bytes) -> Manifest:
        """Verify every file of the directory, put it on the disk read-only and mark it complete; return its manifest.

        Raises:
            DigestError: a file is not what the manifest says; the directory stays incomplete.
        """
        parsed = parse_manifest(manifest)
        for entry in parsed.files:
            verify_file(folder / entry.name, entry)
            (folder / entry.name).chmod(0o444)
            self._disk.sync_file(folder / entry.name)
        if parsed.confidential:
            require_key(folder, sha256_of(manifest))
        self._disk.sync_folder(folder)
        self._disk.write(folder / MANIFEST_NAME, manifest, mode=0o444)  # last: now the directory is complete
        return parsed

    def keep_key(self, folder: Path, wrapped: bytes) -> None:
        """Put the wrapped key of a confidential variant beside its files, readable by the agent's user alone."""
        self._disk.write(folder / KEY_NAME, wrapped, mode=0o600)

    def holds(self, sha256: str) -> Directory | None:
        """Return the idle directory if it holds that variant, verified again, whole."""
        directory = self.idle()
        try:
            verify_directory(self.path(directory), sha256)
        except DigestError:
            return None
        return directory

    def activate(self, pointer: Pointer) -> None:
        """Make a complete directory the active one, by one rename."""
        self._disk.write(self.folder / POINTER_NAME, encode_struct(pointer))

    def clear(self) -> None:
        """Leave the slot without an active model."""
        self._disk.remove(self.folder / POINTER_NAME)

    def _adopt(self, manifest: Manifest, folder: Path) -> None:
        pointer = self.pointer()
        if pointer is None:
            return
        source = self.path(pointer.directory)
        try:
            held = {entry.sha256: entry.name for entry in verify_manifest(source, pointer.sha256).files}
        except DigestError:
            return
        for entry in manifest.files:
            if entry.sha256 in held and not (folder / entry.name).exists():
                self._disk.link(source / held[entry.sha256], folder / entry.name)
