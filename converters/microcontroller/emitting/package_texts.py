"""The texts that `package` fills in."""

from typing import Final

README: Final = """# {title}

A model as C99: no allocation, no libc{math}, no global state. Generated; do not edit.

## What it takes

| | bytes |
|---|---|
| flash: weights | {weights} |
| flash: code ({figures}) | {code} |
| flash, both | {flash} |
| RAM: workspace, lent by the caller (a run in place, inputs and outputs within, peaks at {bound}) | {workspace} |
| RAM: stack of a call ({figures}) | {stack} |
| RAM: inputs and outputs | {io} |
| RAM, all of it | {ram} |

| | ONNX name | type | shape | bytes | a value stands for |
|---|---|---|---|---|---|
{rows}

Kernels: {backend}. Rounding: {rounding}.

## Call it

```c
#include "model.h"

static uint8_t workspace[MODEL_WORKSPACE_BYTES] __attribute__((aligned({alignment})));

int error = model_run(model_weights, workspace, {arguments}); /* 0: done */
```

`main.c` is a whole program. Each thread needs a workspace of its own; nothing in it outlives a call. Two models in one firmware:
compile each with a `MODEL_PREFIX` of its own (see `model.h`).

| build | do |
|---|---|
| CMake | `add_subdirectory(this_folder)`, `target_link_libraries(your_target model)`; `set(MODEL_PREFIX kws)` renames it |
| ESP-IDF | put this folder under `components/` |
| Arduino | put this folder under `libraries/`, or `modelfleet microcontroller export --layout arduino` |
| any other | compile `model.c` and `weights.c`, C99 or later, `-O2 -ffp-contract=off` |

## Which release this is

`modelfleet microcontroller export` verifies a release and adds `model_release.c`: `model_manifest_sha256`, `model_name` and
`model_version`, for firmware to report. Without it those names are declared and not defined.

## New weights without new firmware

`weights.bin` holds the same bytes as `weights.c`, for a flash partition. Firmware of the shapes digest below takes a signed data
image of any release with the same digest: docs/microcontroller.md of modelfleet.

Shapes digest: `{shapes}`

## Licences

The code is generated and contains no other project's. The weights are under the licence of the model, which its publisher
names. An exported verifier of data images contains BearSSL (MIT, `bearssl/LICENSE.txt`).
"""

EXAMPLE: Final = """\
/* A whole program: one inference on zeros. Arduino and ESP-IDF have a main of their own: there, this file is empty. */
#if !defined(ARDUINO) && !defined(ESP_PLATFORM)
#include "model.h"

#if __STDC_HOSTED__
#include <stdio.h>
#endif

#if defined(__GNUC__)
#define ALIGNED(bytes) __attribute__((aligned(bytes)))
#elif defined(__ICCARM__)
#define ALIGNED(bytes) _Alignas(bytes)
#endif

ALIGNED({alignment}) static uint8_t workspace[MODEL_WORKSPACE_BYTES];
{buffers}

int main(void) {{
    {first}[0] = 0; /* fill the inputs here */
    int error = MODEL_NAME(run)(MODEL_NAME(weights), workspace, {arguments});
#if __STDC_HOSTED__
#ifdef MODEL_RELEASE
    printf("%s %s, manifest ", MODEL_NAME(name), MODEL_NAME(version));
    for (int i = 0; i < 32; i++) {{
        printf("%02x", (unsigned)MODEL_NAME(manifest_sha256)[i]);
    }}
    printf("\\n");
#endif
{shown}
#endif
    return error;
}}
#endif
"""

CMAKE: Final = """# A static library named MODEL_PREFIX (`model` where it is not set), or an ESP-IDF component.
cmake_minimum_required(VERSION 3.13)

if(NOT DEFINED MODEL_PREFIX)
  set(MODEL_PREFIX model)
endif()

set(model_sources model.c weights.c)
set(model_private)
set(model_definitions MODEL_PREFIX=${MODEL_PREFIX})
if(EXISTS ${CMAKE_CURRENT_LIST_DIR}/model_release.c) # exported: it knows which release it is
  list(APPEND model_sources model_release.c)
  list(APPEND model_definitions MODEL_RELEASE=1)
endif()
if(EXISTS ${CMAKE_CURRENT_LIST_DIR}/modelfleet_image.c) # exported with the verifier of data images
  file(GLOB model_bearssl RELATIVE ${CMAKE_CURRENT_LIST_DIR} ${CMAKE_CURRENT_LIST_DIR}/bearssl/*.c)
  list(APPEND model_sources modelfleet_image.c modelfleet_banks.c ${model_bearssl})
  set(model_private bearssl)
endif()

if(ESP_PLATFORM)
  idf_component_register(SRCS ${model_sources} INCLUDE_DIRS . PRIV_INCLUDE_DIRS ${model_private})
  target_compile_definitions(${COMPONENT_LIB} PRIVATE ${model_definitions})
  target_compile_options(${COMPONENT_LIB} PRIVATE -O2 -ffp-contract=off)
else()
  if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
    project(${MODEL_PREFIX} C)
  endif()
  add_library(${MODEL_PREFIX} STATIC ${model_sources})
  set_target_properties(${MODEL_PREFIX} PROPERTIES C_STANDARD 99 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF)
  target_include_directories(${MODEL_PREFIX} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} PRIVATE ${model_private})
  target_compile_definitions(${MODEL_PREFIX} PRIVATE ${model_definitions})
  if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(${MODEL_PREFIX} PRIVATE -O2 -ffp-contract=off)
  endif()
@MATH@  if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
    add_executable(${MODEL_PREFIX}_example main.c)
    target_compile_definitions(${MODEL_PREFIX}_example PRIVATE ${model_definitions})
    target_link_libraries(${MODEL_PREFIX}_example PRIVATE ${MODEL_PREFIX})
  endif()
endif()
"""

CMAKE_MATH: Final = """  target_link_libraries(${MODEL_PREFIX} PUBLIC m)
"""

ARDUINO: Final = """name={name}
version={version}
author=modelfleet
maintainer=modelfleet
sentence=A machine-learning model as C99.
paragraph=Generated from ONNX by modelfleet: no allocation, no global state.
category=Data Processing
url=https://www.arduino.cc/reference/en/libraries/
architectures=*
includes=model.h
"""

IDF_COMPONENT: Final = """version: "{version}"
description: "The model {name} as C99, generated from ONNX by modelfleet"
dependencies:
  idf: ">=4.4"
"""
