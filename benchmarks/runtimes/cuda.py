"""The CUDA driver by ctypes: memory, copies and one stream, so that a device needs no CUDA package beside its driver.

`libcuda.so.1` comes with the driver, on PCs and on Jetsons. The primary context is used, which is the one that TensorRT's own
runtime works in. Sources: CUDA Driver API reference, sections on initialisation, primary contexts, memory and streams.
"""

import ctypes
from typing import Any, Final

import numpy as np

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.session import Array

LIBRARY: Final = "libcuda.so.1"
_NAME_BYTES: Final = 256
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


class Cuda:
    """The first GPU. Every method works in its primary context, on whatever thread it is called.

    Raises:
        RuntimeMissingError: there is no driver, or it finds no GPU; the message says which.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._api: Any = ctypes.CDLL(library)
        except OSError as error:
            raise RuntimeMissingError(f"expected NVIDIA's driver ({library}), got none: {error}") from error
        count, self._device, self._context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
        try:
            self._do("cuInit", ctypes.c_uint(0))
            self._do("cuDeviceGetCount", ctypes.byref(count))
            self._do("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
            self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        except MeasureError as error:
            raise RuntimeMissingError(f"expected a GPU, got {count.value}: {error}") from error

    def name(self) -> str:
        """Return the GPU's name and compute capability, such as `Orin (8.7)`."""
        text, major, minor = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_int(), ctypes.c_int()
        self._do("cuDeviceGetName", text, ctypes.c_int(_NAME_BYTES), self._device)
        self._do("cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(_MAJOR), self._device)
        self._do("cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(_MINOR), self._device)
        return f"{text.value.decode(errors='replace')} ({major.value}.{minor.value})"

    def enter(self) -> None:
        """Make the context current on this thread: contexts belong to threads."""
        self._do("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """Return the handle of a new stream."""
        handle = ctypes.c_void_p()
        self._do("cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(1))  # CU_STREAM_NON_BLOCKING
        return int(handle.value or 0)

    def allocate(self, length: int) -> int:
        """Return the address of `length` bytes on the GPU."""
        address = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(length, 1)))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._do("cuMemFree_v2", ctypes.c_uint64(address))

    def to_gpu(self, address: int, array: Array, stream: int) -> None:
        """Copy a contiguous array to the GPU; it must live until the stream has been waited for."""
        self._do(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )

    def from_gpu(self, address: int, shape: tuple[int, ...], dtype: str, stream: int) -> Array:
        """Return an array that holds what lies on the GPU once the stream has been waited for."""
        array: Array = np.empty(shape, dtype)
        self._do(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )
        return array

    def wait(self, stream: int) -> None:
        """Return when all that the stream was given is done (MeasureError: some of it failed)."""
        self._do("cuStreamSynchronize", ctypes.c_void_p(stream))

    def _do(self, call: str, *arguments: Any) -> None:
        code = int(getattr(self._api, call)(*arguments))
        if code:
            raise MeasureError(f"{call}: {self._meaning(code)}")

    def _meaning(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._api.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
        return text.value.decode(errors="replace") if text.value else f"CUDA error {code}"


def gpu_name() -> str:
    """Return the first GPU's name and compute capability, "" where there is no GPU or driver."""
    try:
        return Cuda().name()
    except MeasureError:
        return ""
