"""The C verifier as a shared object of the host's compiler, with UBSan, and a flash that can lose its power at any write."""

import ctypes
import functools
import random
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from modelfleet.converters.microcontroller.image.files import FOLDER
from modelfleet.signer.image import ImageHeader, sign_image
from modelfleet.signer.keys import Key, Signer, p256_of_pem
from modelfleet.signer.names import sha256_of

STATUSES = (
    *("OK", "TRUNCATED", "NOT_ONE", "FORMAT", "MODEL", "PROFILE", "GROUP", "SHAPES"),
    *("LENGTH", "KEY", "SIGNATURE", "PAYLOAD", "REPLAY", "COUNTER", "FLASH", "ORDER"),
)
SANITIZED = ("-std=c99", "-O1", "-g", "-w", "-fno-sanitize-recover=all", "-isystem", str(FOLDER / "bearssl"))
BUILTIN = 2
WRITE_BYTES = 32
SECTOR_BYTES = 512
BANK_BYTES = 4 * SECTOR_BYTES
BUILTIN_WEIGHTS = b"built in"


def sources() -> list[str]:
    return [str(path) for path in sorted(FOLDER.glob("modelfleet_*.c")) + sorted((FOLDER / "bearssl").glob("*.c"))]


@functools.cache
def compiled() -> ctypes.CDLL:
    """Return the library, compiled once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "image.so"
        command = ["gcc", *SANITIZED, "-shared", "-fPIC", "-fsanitize=undefined", *sources(), "-o", str(out)]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(out))
    library.modelfleet_banks_weights.restype = ctypes.c_uint32
    return library


class CKey(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint8 * 32), ("point", ctypes.c_uint8 * 65))


class CExpected(ctypes.Structure):
    _fields_ = (
        ("tenant", ctypes.c_char_p),
        ("model", ctypes.c_char_p),
        ("profile", ctypes.c_char_p),
        ("group", ctypes.c_char_p),
        ("shapes", ctypes.c_char_p),
        ("weights_bytes", ctypes.c_uint32),
        ("keys", ctypes.POINTER(CKey)),
        ("keys_count", ctypes.c_size_t),
    )


class CHeader(ctypes.Structure):
    _fields_ = (
        ("serial", ctypes.c_uint64),
        ("counter", ctypes.c_uint64),
        ("replaces", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("payload_bytes", ctypes.c_uint32),
        ("payload_sha256", ctypes.c_uint8 * 32),
        ("manifest_sha256", ctypes.c_uint8 * 32),
        ("version", ctypes.c_char * 65),
    )


READ = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)
ERASE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)


class CFlash(ctypes.Structure):
    _fields_ = (
        ("read", READ),
        ("erase", ERASE),
        ("write", READ),
        ("context", ctypes.c_void_p),
        ("bank", ctypes.c_uint32 * 2),
        ("bank_bytes", ctypes.c_uint32),
    )


class CBanks(ctypes.Structure):
    _fields_ = (
        ("flash", ctypes.c_void_p),
        ("expected", ctypes.c_void_p),
        ("serial", ctypes.c_uint64),
        ("counter", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 512),
    )


def c_key(key: Key) -> CKey:
    numbers = p256_of_pem(str(key.keyval["public"])).public_numbers()
    point = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    return CKey(id=(ctypes.c_uint8 * 32)(*bytes.fromhex(key.keyid)), point=(ctypes.c_uint8 * 65)(*point))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a firmware takes."""

    keys: tuple[Key, ...]
    weights_bytes: int
    tenant: str = "acme"
    model: str = "ui/digits"
    profile: str = "cortex-m4"
    group: str = "shops"
    shapes: bytes = b"\x55" * 32

    def in_c(self) -> CExpected:
        keys = (CKey * len(self.keys))(*map(c_key, self.keys))
        texts = (text.encode() for text in (self.tenant, self.model, self.profile, self.group))
        return CExpected(*texts, self.shapes, self.weights_bytes, keys, len(self.keys))


def image(key: Signer, payload: bytes, *, serial: int, counter: int, **changes: object) -> bytes:
    """Return a signed image of `payload`, for what `Expected` takes by default."""
    fields = {
        "tenant": "acme",
        "group": "shops",
        "profile": "cortex-m4",
        "model": "ui/digits",
        "version": f"1.{counter}.0",
        "payload_bytes": len(payload),
        "payload_sha256": sha256_of(payload),
        "shapes_sha256": "5" * 64,
        "manifest_sha256": "6" * 64,
        **changes,
    }
    return sign_image(ImageHeader(serial=serial, counter=counter, **fields), key) + payload  # type: ignore[arg-type]


@dataclass
class Flash:
    """NOR flash: erased by sectors to 0xff, written once after that in whole units. `left`: steps until the power is cut.

    The step at which it is cut does a part of its work, and leaves noise where it stopped; all after it do nothing.
    """

    data: bytearray = field(default_factory=lambda: bytearray(b"\x5a" * 2 * BANK_BYTES))
    left: int | None = None
    steps: int = 0
    seed: int = 0

    def in_c(self) -> CFlash:
        return CFlash(READ(self._read), ERASE(self._erase), READ(self._write), None, (0, BANK_BYTES), BANK_BYTES)

    def _read(self, _context: int | None, address: int, target: int, length: int) -> int:
        ctypes.memmove(target, bytes(self.data[address : address + length]), length)
        return 0

    def _erase(self, _context: int | None, address: int, length: int) -> int:
        for sector in range(address, address + length, SECTOR_BYTES):
            if not self._step(sector, b"\xff" * SECTOR_BYTES):
                return 1
        return 0

    def _write(self, _context: int | None, address: int, source: int, length: int) -> int:
        assert (address % WRITE_BYTES, length % WRITE_BYTES) == (0, 0)
        if self.left is None or self.left > 0:
            assert self.data[address : address + length] == b"\xff" * length, "written twice"
        return 0 if self._step(address, ctypes.string_at(source, length)) else 1

    def _step(self, address: int, wanted: bytes) -> bool:
        self.steps += 1
        if self.left is None or self.left > 0:
            self.data[address : address + len(wanted)] = wanted
            self.left = None if self.left is None else self.left - 1
            return True
        if self.left == 0:  # the step that is cut
            noise = random.Random(self.seed + self.steps)
            done = noise.randrange(len(wanted))
            torn = wanted[:done] + noise.randbytes(min(8, len(wanted) - done))
            self.data[address : address + len(torn)] = torn
        self.left = -1
        return False


@dataclass
class Firmware:
    """One start of a device: what it opens its flash with. Start it again for what a reset leaves."""

    library: ctypes.CDLL
    flash: Flash
    expected: Expected
    counter: int = 0

    def __post_init__(self) -> None:
        self.banks = CBanks()
        self.c_flash, self.c_expected = self.flash.in_c(), self.expected.in_c()
        self.library.modelfleet_banks_open(
            ctypes.byref(self.banks),
            ctypes.byref(self.c_flash),
            ctypes.byref(self.c_expected),
            ctypes.c_uint64(self.counter),
        )

    @property
    def active(self) -> int:
        return self.library.modelfleet_banks_active(ctypes.byref(self.banks))

    @property
    def weights(self) -> bytes:
        """What the model would run with."""
        if self.active == BUILTIN:
            return BUILTIN_WEIGHTS
        at = self.library.modelfleet_banks_weights(ctypes.byref(self.banks))
        return bytes(self.flash.data[at : at + self.expected.weights_bytes])

    def install(self, data: bytes, *, piece: int = 100) -> str:
        """Give the image in pieces, and return the first status that is not OK."""
        begin = self._status(self.library.modelfleet_banks_begin, data[:768])
        if begin != "OK":
            return begin
        for start in range(768, len(data), piece):
            status = self._status(self.library.modelfleet_banks_write, data[start : start + piece])
            if status != "OK":
                return status
        return self.finish()

    def begin(self, data: bytes) -> str:
        return self._status(self.library.modelfleet_banks_begin, data)

    def write(self, data: bytes) -> str:
        return self._status(self.library.modelfleet_banks_write, data)

    def finish(self) -> str:
        return STATUSES[self.library.modelfleet_banks_finish(ctypes.byref(self.banks))]

    def _status(self, function: Callable[..., int], data: bytes) -> str:
        return STATUSES[function(ctypes.byref(self.banks), data, ctypes.c_size_t(len(data)))]


def check_whole(library: ctypes.CDLL, data: bytes, expected: Expected) -> tuple[str, CHeader]:
    header, c_expected = CHeader(), expected.in_c()
    status = library.modelfleet_image_check_whole(
        data, ctypes.c_size_t(len(data)), ctypes.byref(c_expected), ctypes.byref(header)
    )
    return STATUSES[status], header
