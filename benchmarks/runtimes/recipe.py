"""The build recipe: how a device makes its own engine from the network that came with it, as a signed file of the variant.

An engine of classic TensorRT runs only on the kind of GPU and the version that built it, so the server ships the network it has
proved and this recipe. Everything that decides what is built stands here; unknown keys are refused, for one that is overlooked
could build something else than was meant.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.signer.errors import FormatError
from modelfleet.signer.names import FileName, Sha256
from modelfleet.signer.parse import parse_json

RECIPE_NAME: Final = "recipe.json"
NETWORK_NAME: Final = "network.onnx"
RECIPE_FORMAT: Final = "1.0"
MAX_RECIPE_BYTES: Final = 64 * 1024

_Bytes = Annotated[int, msgspec.Meta(ge=2**20, le=2**53 - 1)]
Shape = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], ...], msgspec.Meta(max_length=16)]


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shapes that one input with free dimensions may have: from `least` to `most`, fastest at `best`."""

    least: Shape
    best: Shape
    most: Shape

    def __post_init__(self) -> None:
        if not len(self.least) == len(self.best) == len(self.most):
            raise ValueError("expected least, best and most of one rank")
        if any(not a <= b <= c for a, b, c in zip(self.least, self.best, self.most, strict=True)):
            raise ValueError(f"expected least <= best <= most, got {self.least}, {self.best}, {self.most}")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device builds, with what, and within which limits.

    network: the variant's file that is built, network_sha256 its digest. ranges: input name -> shapes, for inputs with free
    dimensions. tf32: whether float32 may be multiplied with ten bits of mantissa. workspace_bytes bounds the GPU memory of one
    layer; memory_bytes (resident) and timeout_seconds the process that builds.
    """

    format: str = RECIPE_FORMAT
    builder: Literal["tensorrt", "tensorrt-rtx"]
    network: FileName = NETWORK_NAME
    network_sha256: Sha256
    ranges: Annotated[dict[str, Range], msgspec.Meta(max_length=64)] = {}
    tf32: bool = False
    workspace_bytes: _Bytes
    memory_bytes: _Bytes
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3000)]

    def __post_init__(self) -> None:
        if self.format.split(".")[0] != RECIPE_FORMAT.split(".")[0]:
            raise ValueError(f"expected a recipe of major format {RECIPE_FORMAT.split('.')[0]}, got {self.format}")


def parse_recipe(data: bytes) -> Recipe:
    """Return the recipe in `data` (MeasureError: it is none, or one of a newer agent; the message says expected and got)."""
    try:
        return msgspec.convert(parse_json(data, max_bytes=MAX_RECIPE_BYTES), Recipe)
    except (FormatError, msgspec.ValidationError) as error:
        raise MeasureError(f"{RECIPE_NAME}: {error}") from error


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a file (MeasureError as `parse_recipe`, and where the file cannot be read)."""
    try:
        with path.open("rb") as file:
            return parse_recipe(file.read(MAX_RECIPE_BYTES + 1))
    except OSError as error:
        raise MeasureError(f"{path.name}: expected a recipe, got {error.strerror}") from error


def encode_recipe(recipe: Recipe) -> bytes:
    """Return the bytes that are signed: JSON in one fixed order."""
    return msgspec.json.encode(recipe, order="deterministic")
