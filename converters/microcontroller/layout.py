"""A verified variant as a folder for one build system: the flat files in their places, the release beside them."""

import enum
from collections.abc import Mapping
from typing import Final

from modelfleet.converters.microcontroller.emitting.description import BLOB, ENTRY
from modelfleet.converters.microcontroller.emitting.package import (
    ARDUINO_FILE,
    CMAKE_FILE,
    EXAMPLE_FILE,
    IDF_FILE,
    README_FILE,
    arduino_properties,
    idf_component,
)
from modelfleet.converters.microcontroller.emitting.release import Release, release_files
from modelfleet.converters.microcontroller.image.files import verifier_files


class Layout(enum.StrEnum):
    """Whose folder it is."""

    CMAKE = "cmake"
    ESP_IDF = "esp-idf"
    ARDUINO = "arduino"


NOT_FOR: Final[Mapping[Layout, frozenset[str]]] = {
    Layout.CMAKE: frozenset({ARDUINO_FILE, IDF_FILE}),
    Layout.ESP_IDF: frozenset({ARDUINO_FILE}),
    Layout.ARDUINO: frozenset({CMAKE_FILE, IDF_FILE, EXAMPLE_FILE}),
}
_EXTRAS: Final = frozenset({ENTRY, BLOB, README_FILE})
_SKETCH: Final = "examples/inference/inference.ino"


def laid_out(files: Mapping[str, bytes], release: Release, layout: Layout, *, images: bool) -> dict[str, bytes]:
    """Return path -> bytes of the folder.

    Args:
        files: the variant's, as its manifest names them, without the golden set.
        release: what was verified.
        images: with the verifier of data images.
    """
    known = {name: data for name, data in files.items() if name not in NOT_FOR[layout]}
    named = {ARDUINO_FILE: arduino_properties, IDF_FILE: idf_component}
    for name in known.keys() & named.keys():
        known[name] = named[name](release.model, release.version).encode()
    known |= release_files(release, images=images)
    if images:
        known |= verifier_files()
    return _arduino(known) if layout is Layout.ARDUINO else known


def _arduino(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return an Arduino library: sources flat in `src`, for only that is searched for headers; main.c becomes a sketch."""
    found = dict[str, bytes]()
    for name, data in files.items():
        plain = name.rpartition("/")[2]
        if name == ARDUINO_FILE:
            found[name] = data
        elif name in _EXTRAS or not name.endswith((".c", ".h")):
            found[f"extras/{name}"] = data
        else:
            found[f"src/{plain}"] = data
    found[_SKETCH] = _SKETCH_TEXT
    return found


_SKETCH_TEXT: Final = b"""#include <model.h>

static uint8_t workspace[MODEL_WORKSPACE_BYTES] __attribute__((aligned(16)));

void setup() {
  Serial.begin(115200);
  Serial.print(model_name);
  Serial.print(" ");
  Serial.println(model_version);
}

void loop() {
  (void)workspace;  // model_run(model_weights, workspace, inputs, outputs): model.h says which
  delay(1000);
}
"""
