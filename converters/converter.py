"""What every conversion target provides: one class in a `to_*.py`, one row in `table.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Session
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The files of a variant, in the folder given; `entry` is the one that the runtime opens.

    File names are flat (`signer.names.FILE_PATTERN`). report: what the conversion did that its user should know (channels
    pruned, layers kept in float), as plain JSON values; it becomes part of the attestation.
    """

    entry: str
    files: tuple[str, ...]
    report: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Converter(Protocol):
    """Turns a normalised ONNX model into the files of a variant. It runs in a child process with limits."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write the variant's files into `out_dir`.

        Args:
            model_path: the normalised model; it is not changed.
            out_dir: an empty folder.
            precision: one that the profile allows.
            calibration: samples for ranges of activations.
            profile: of the devices that will run it.
            keep_float: names of nodes of the model that stay in float whatever the precision says, where the target can.

        Raises:
            ConversionError: it cannot, or the result would not differ from the source where it must.
        """
        ...

    def open(self, entry: Path) -> Session:
        """Open a variant for the proof, on this machine (MeasureError: it does not load)."""
        ...
