"""What stands around the sources: README, an example, and what CMake, ESP-IDF and Arduino ask of a folder.

The folder is flat, as a variant is, and is a CMake project, an ESP-IDF component and an Arduino library as it stands:
`CMakeLists.txt` tells the two that read it apart, and `main.c` compiles to nothing where a program has a main of its own.
`modelfleet microcontroller export` lays out the same files once the release is verified, and adds what says which it is.
"""

import re
from collections.abc import Mapping
from typing import Final

from modelfleet.converters.microcontroller.emitting.c_types import c_type, comment_text, io_alignment
from modelfleet.converters.microcontroller.emitting.description import Description, Port
from modelfleet.converters.microcontroller.emitting.layout import BLOB_ALIGNMENT
from modelfleet.converters.microcontroller.emitting.package_texts import (
    ARDUINO,
    CMAKE,
    CMAKE_MATH,
    EXAMPLE,
    IDF_COMPONENT,
    README,
)

NO_VERSION: Final = "0.0.0"
"""Of a folder that has not been exported: a variant's files do not know which version they are."""
ARDUINO_FILE: Final = "library.properties"
IDF_FILE: Final = "idf_component.yml"
CMAKE_FILE: Final = "CMakeLists.txt"
EXAMPLE_FILE: Final = "main.c"
README_FILE: Final = "README.md"


def package_files(described: Description) -> Mapping[str, bytes]:
    """Return file name -> content of all that is not generated code."""
    texts = {
        README_FILE: _readme(described),
        EXAMPLE_FILE: _example(described),
        CMAKE_FILE: CMAKE.replace("@MATH@", CMAKE_MATH if described.needs_math else ""),
        ARDUINO_FILE: arduino_properties(described.model, NO_VERSION),
        IDF_FILE: idf_component(described.model, NO_VERSION),
    }
    return {name: text.encode() for name, text in texts.items()}


def arduino_properties(model: str, version: str) -> str:
    """Return library.properties. version: SemVer; a pre-release's tail is left out, which Arduino does not take."""
    return ARDUINO.format(name=plain_name(model), version=version.partition("-")[0])


def idf_component(model: str, version: str) -> str:
    """Return idf_component.yml."""
    return IDF_COMPONENT.format(name=plain_name(model), version=version)


def plain_name(model: str) -> str:
    """Return a model's name of letters, digits, `_` and `-` alone: it is part of paths, YAML and properties."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", model).strip("_")[:63] or "model"


def _readme(described: Description) -> str:
    rows = [
        *(_row("in", index, port) for index, port in enumerate(described.inputs)),
        *(_row("out", index, port) for index, port in enumerate(described.outputs)),
    ]
    how = f"by {described.figures_by}" if described.figures_by else "from its kernels"
    return README.format(
        title=comment_text(described.model) or "model",
        weights=described.weights_bytes,
        code=described.code_bytes,
        flash=described.flash_bytes,
        workspace=described.workspace_bytes,
        bound=described.workspace_bound_bytes,
        stack=described.stack_bytes,
        io=sum(_size(port) for port in (*described.inputs, *described.outputs)),
        ram=described.ram_bytes,
        figures=f"{described.figures} {how}",
        rows="\n".join(rows),
        alignment=BLOB_ALIGNMENT,
        arguments=_arguments(described),
        math=" but `math.h`" if described.needs_math else "",
        rounding=described.rounding,
        backend=described.backend,
        shapes=described.shapes_digest,
    )


def _row(kind: str, index: int, port: Port) -> str:
    meaning = "" if port.scale is None else f"{port.scale:.9g} * (value - {port.zero_point})"
    shape = " × ".join(map(str, port.shape)) or "one number"
    name = comment_text(port.name).replace("_", r"\_")
    return f"| {kind}put {index} | {name} | `{c_type(port.dtype, port.name)}` | {shape} | {_size(port)} | {meaning} |"


def _size(port: Port) -> int:
    return _elements(port) * _itemsize(port)


def _elements(port: Port) -> int:
    count = 1
    for dimension in port.shape:
        count *= dimension
    return count


def _itemsize(port: Port) -> int:
    bits = re.search(r"\d+\Z", port.dtype)
    return int(bits.group()) // 8 if bits else 1  # bool is a byte


def _arguments(described: Description) -> str:
    return ", ".join(port.argument for port in (*described.inputs, *described.outputs))


def _example(described: Description) -> str:
    ports = (*described.inputs, *described.outputs)
    buffers = "\n".join(
        f"ALIGNED({io_alignment(port.dtype)}) static {c_type(port.dtype, port.name)}"
        f" {port.argument}[{max(1, _elements(port))}];"
        for port in ports
    )
    shown = "\n".join(
        f'    printf("{port.argument}[0] = %g\\n", (double){port.argument}[0]);' for port in described.outputs
    )
    return EXAMPLE.format(
        alignment=BLOB_ALIGNMENT, buffers=buffers, arguments=_arguments(described), first=ports[0].argument, shown=shown
    )
