"""ONNX -> MIL -> Core ML, for iOS 17 and macOS 14 or later.

coremltools has no ONNX front end: the program is written here, operator by operator (`operators`). Off Apple's systems the
saved package is opened again and evaluated by `mil_evaluator`, which knows nothing of this package.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.coreml import (
    ENTRY,
    CoreMLSession,
    lay_out_package,
    open_coreml,
    read_interface,
)
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.coreml.hush import hushed
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

TARGET: Final = "iOS17"
"""It stands for macOS 14 too: coremltools names both by one version of the program's format."""
BLOCKS_TARGET: Final = "iOS18"
"""4 bits in blocks came with it (and with macOS 15)."""


class ToCoreML:
    """Converts for `Runtime.COREML`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write the package's files, flat, into `out_dir` (as `Converter.convert`)."""
        del calibration
        target = BLOCKS_TARGET if precision is Precision.INT4_WEIGHTS else TARGET
        with hushed():
            try:
                from modelfleet.converters.coreml.compress import compress, is_half, require_precision
                from modelfleet.converters.coreml.package import to_model, write_files
                from modelfleet.converters.coreml.program import build_program
            except ImportError as error:
                raise ConversionError("", profile.name, f"expected modelfleet[converters], got {error}") from error
            require_precision(precision, profile.name)
            program, interface, made = build_program(read_model(model_path), target, profile.name)
            keep = frozenset(name for node in keep_float for name in made.get(node, ()))
            try:
                model = to_model(program, target, half=is_half(precision))
                model, report = compress(model, precision, profile.name, keep)
                files = write_files(model, interface, out_dir)
            except (ConversionError, MemoryError, OSError):
                raise
            except Exception as error:  # coremltools raises whatever it meets
                raise ConversionError("", profile.name, f"{precision}: coremltools refuses: {error}") from error
        return Converted(entry=ENTRY, files=files, report={"deployment_target": target, **report, **_where()})

    def open(self, entry: Path) -> Session:
        """Open a variant: by Core ML on macOS, elsewhere by evaluating the saved package (MeasureError: it does not load)."""
        return open_coreml(entry) if sys.platform == "darwin" else open_evaluated(entry)


def _where() -> dict[str, str]:
    """Say that times are the evaluator's where there is no Core ML."""
    return {} if sys.platform == "darwin" else {"not_run_here": "Core ML is Apple's; the saved package was evaluated"}


def open_evaluated(entry: Path) -> Session:
    """Open a variant's package, laid out anew, with the evaluator (MeasureError: it does not load)."""
    from modelfleet.converters.mil_evaluator.errors import MilError
    from modelfleet.converters.mil_evaluator.program import MilProgram

    interface = read_interface(entry.parent)
    with tempfile.TemporaryDirectory(prefix="modelfleet-coreml-") as folder:
        try:
            program = MilProgram(lay_out_package(entry.parent, Path(folder) / "model.mlpackage"))
        except MilError as error:
            raise MeasureError(f"the package does not load: {error}") from error
    return CoreMLSession(interface, program.run)
