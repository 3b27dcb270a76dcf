"""What a profile says of a microcontroller: instructions, rounding of whole numbers, and the flash and RAM that a model gets."""

import enum
import re
from dataclasses import dataclass
from typing import Final

FLAG_PATTERN: Final = r"-m[a-z0-9][a-z0-9=+.,-]{0,63}"
"""Of a compiler's flag for the processor; nothing else may stand in a profile."""


MAX_BYTES: Final = 1 << 30
"""Generated code counts in 32 bits."""


class Backend(enum.StrEnum):
    """Which instructions the kernels may use."""

    PORTABLE = "portable"
    DSP = "dsp"
    """Armv7E-M: SMLAD, SMMLAR, SXTB16 (Cortex-M4, M7, M33)."""
    MVE = "mve"
    """Armv8.1-M: Helium (Cortex-M55, M85)."""


class Rounding(enum.StrEnum):
    """How accumulators become int8."""

    INTEGER = "integer"
    """`converters.microcontroller.ir.requantize`: no float instruction."""
    ONNXRUNTIME = "onnxruntime"
    """Bit for bit as onnxruntime's kernels: float32 product, half to even."""


class Toolchain(enum.StrEnum):
    """Prefix of the names of a cross compiler's programs."""

    HOST = ""
    """No cross compiler is known: sizes are estimated with this machine's."""
    ARM = "arm-none-eabi-"
    ESP32_S3 = "xtensa-esp32s3-elf-"


@dataclass(frozen=True, kw_only=True)
class Microcontroller:
    """flash_bytes: what code and weights of a model may take; ram_bytes: its workspace, stack, inputs and outputs together.

    small: the least flash for trees, not the least time. fixed_shapes: a model trained anew has the same
    code, so that its weights alone can be sent; what only certain weights allow (dead channels) stays. cpu_flags: of the
    compiler, for the processor.
    """

    flash_bytes: int
    ram_bytes: int
    backend: Backend = Backend.PORTABLE
    rounding: Rounding = Rounding.INTEGER
    small: bool = False
    fixed_shapes: bool = False
    toolchain: Toolchain = Toolchain.HOST
    cpu_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.flash_bytes <= MAX_BYTES and 0 < self.ram_bytes <= MAX_BYTES):
            raise ValueError(f"expected flash_bytes > 0 and ram_bytes > 0, {MAX_BYTES} at most")
        wrong = [flag for flag in self.cpu_flags if re.fullmatch(FLAG_PATTERN, flag) is None]
        if wrong:
            raise ValueError(f"cpu_flags: expected flags for the processor (-m...), got {wrong}")
