"""Finds the files of a saved `.mlpackage` folder: Manifest.json names the specification and the folder of the weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from modelfleet.converters.mil_evaluator.errors import MilError

_MAX_MANIFEST_BYTES = 1 << 20
_WEIGHTS_PREFIX = "@model_path/weights/"


@dataclass(frozen=True)
class PackageFiles:
    """Where a package's files lie; `weights` is the folder of the blob files, which need not exist."""

    model: Path
    weights: Path

    def blob(self, file_name: str) -> Path:
        """Return the path of a weight file by the name that the program gives it.

        Raises:
            MilError: the name leads out of the folder, or there is no such file.
        """
        rest = file_name.removeprefix(_WEIGHTS_PREFIX)
        path = self.weights / rest
        if rest == file_name or not rest or Path(rest).name != rest or rest == ".." or not path.is_file():
            raise MilError(f"expected a weight file {_WEIGHTS_PREFIX}<name> of the package, got {file_name!r}")
        return path


def find_files(package: Path) -> PackageFiles:
    """Return the files of the package at `package`, a folder.

    Raises:
        MilError: it is no package, or its manifest names no specification within it.
    """
    entries, root = _manifest(package / "Manifest.json")
    model = _inside(package / "Data", _item_path(entries, root))
    if not model.is_file():
        raise MilError(f"expected the model specification at {model.name}, got no such file")
    return PackageFiles(model, model.parent / "weights")


def _manifest(path: Path) -> tuple[dict[str, Any], str]:
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise MilError(f"Manifest.json: expected at most {_MAX_MANIFEST_BYTES} bytes, got {path.stat().st_size}")
        document: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise MilError(f"Manifest.json: expected a JSON object, got {error}") from error
    if not isinstance(document, dict):
        raise MilError(f"Manifest.json: expected a JSON object, got {type(document).__name__}")
    fields = cast("dict[str, object]", document)
    entries, root = fields.get("itemInfoEntries"), fields.get("rootModelIdentifier")
    if not isinstance(entries, dict) or not isinstance(root, str):
        raise MilError("Manifest.json: expected itemInfoEntries and rootModelIdentifier")
    return cast("dict[str, Any]", entries), root


def _item_path(entries: dict[str, Any], identifier: str) -> str:
    entry: object = entries.get(identifier)
    path = cast("dict[str, object]", entry).get("path") if isinstance(entry, dict) else None
    if not isinstance(path, str):
        raise MilError(f"Manifest.json: expected an item {identifier!r} with a path")
    return path


def _inside(folder: Path, relative: str) -> Path:
    parts = relative.split("/")
    if relative.startswith("/") or "\0" in relative or any(part in ("", ".", "..") for part in parts):
        raise MilError(f"Manifest.json: expected a path within the package, got {relative!r}")
    return folder.joinpath(*parts)
