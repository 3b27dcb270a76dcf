"""The verifier's C files, as firmware takes them: our own, and BearSSL's, unchanged, in a folder of their own."""

from pathlib import Path

FOLDER = Path(__file__).parent
BEARSSL = "bearssl"


def verifier_files() -> dict[str, bytes]:
    """Return path -> bytes of all files; BearSSL's lie below `bearssl/`, its licence among them."""
    own = sorted(FOLDER.glob("modelfleet_*.[ch]"))
    theirs = sorted((FOLDER / BEARSSL).iterdir())
    return {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in (*own, *theirs)}
