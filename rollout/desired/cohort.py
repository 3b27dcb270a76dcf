"""Which devices are on trial: a range of hash buckets that only grows (DESIGN section 5, rule 2)."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from modelfleet.signer.desired import BUCKETS, bucket_of

PAGE = 20_000


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The range [0, below) of buckets, and how many devices it takes."""

    below: int
    devices: int


def plan_cohort(salt: str, devices: Iterable[str], share: float, min_canaries: int, previous: int = 0) -> Cohort:
    """Return the range of buckets that `share` of the devices take, at least `previous`.

    Its end is one above the bucket of the k-th device, k = max(min_canaries, ceil(share n)), at most n. The whole fleet (share 1)
    is the whole range, so that a device that joins later takes the candidate too. Holds 8 bytes a device.

    Args:
        salt: the rollout's own, so that it is not always the same devices that go first.
        devices: ids of all devices that could take it, in any order.
        share: of the devices, 0..1.
        min_canaries: how many devices at least.
        previous: the range's end so far, 0..2**32.
    """
    if share >= 1.0:
        return Cohort(below=BUCKETS, devices=sum(1 for _ in devices))
    buckets = buckets_of(salt, devices)
    if not len(buckets):
        return Cohort(below=previous, devices=0)
    k = min(len(buckets), max(min_canaries, math.ceil(share * len(buckets) - 1e-9)))
    below = max(previous, int(np.partition(buckets, k - 1)[k - 1]) + 1)
    return Cohort(below=below, devices=int(np.count_nonzero(buckets < below)))


def cohort_below(salt: str, devices: Iterable[str], share: float, min_canaries: int, previous: int = 0) -> int:
    """Return the end of the range that `plan_cohort` finds; the devices are not looked at for the whole fleet."""
    return BUCKETS if share >= 1.0 else plan_cohort(salt, devices, share, min_canaries, previous).below


def count_below(salt: str, devices: Iterable[str], below: int) -> int:
    """Return how many of the devices have a bucket below `below`."""
    return sum(1 for _ in devices) if below >= BUCKETS else int(np.count_nonzero(buckets_of(salt, devices) < below))


def buckets_of(salt: str, devices: Iterable[str]) -> NDArray[np.uint32]:
    """Return every device's bucket (`signer.desired.bucket_of`), shape (N,)."""
    return np.frombuffer(b"".join(_digests(salt, devices)), dtype=">u4").astype(np.uint32)


def cohort(salt: str, devices: Sequence[str], below: int) -> list[str]:
    """Return the devices whose bucket lies below `below`, in their order."""
    return [device for device in devices if bucket_of(salt, device) < below]


def _digests(salt: str, devices: Iterable[str]) -> Iterator[bytes]:
    prefix, sha256 = salt.encode() + b"\x00", hashlib.sha256
    remaining = iter(devices)
    while page := list(islice(remaining, PAGE)):
        yield b"".join([sha256(prefix + device.encode()).digest()[:4] for device in page])
