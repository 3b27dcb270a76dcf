"""weights.c: the blob as one array of bytes, every constant under a comment that says what it is."""

from typing import Final

from modelfleet.converters.microcontroller.emitting.layout import BLOB_ALIGNMENT, Blob, Row

BYTES_IN_ROW: Final = 24
_HEAD: Final = f"""/* The model's weights, little endian, {BLOB_ALIGNMENT}-aligned: in flash as long as nothing copies them. */
#include "model.h"

#if defined(__GNUC__)
#define MODEL_ALIGNED __attribute__((aligned({BLOB_ALIGNMENT})))
#elif defined(__ICCARM__)
#define MODEL_ALIGNED _Pragma("data_alignment={BLOB_ALIGNMENT}")
#else
#error "expected a compiler that aligns objects to {BLOB_ALIGNMENT} bytes: define MODEL_ALIGNED for it"
#endif

MODEL_ALIGNED const uint8_t MODEL_NAME(weights)[MODEL_WEIGHTS_BYTES] = {{
"""


def write_weights(blob: Blob) -> str:
    """Return weights.c."""
    parts, end = [_HEAD], 0
    for row in blob.rows:
        parts += _gap(blob.data[end : row.offset])
        end = row.offset + row.constant.data.nbytes
        parts += [f"    /* {row.offset}: {_described(row)} */\n", _bytes(blob.data[row.offset : end])]
    return "".join([*parts, *_gap(blob.data[end:]), "};\n"])


def _described(row: Row) -> str:
    return f"{row.constant.ctype}[{row.constant.data.size}] of {row.title}"


def _gap(data: bytes) -> list[str]:
    return ["    /* alignment */\n", _bytes(data)] if data else []


def _bytes(data: bytes) -> str:
    rows = (data[start : start + BYTES_IN_ROW] for start in range(0, len(data), BYTES_IN_ROW))
    return "".join(f"    {','.join(map(str, row))},\n" for row in rows)
