"""Which devices are on trial: a range of hash buckets that only grows (DESIGN section 5, rule 2)."""

import math
from collections.abc import Sequence

from modelfleet.signer.desired import BUCKETS, bucket_of


def cohort_below(salt: str, devices: Sequence[str], share: float, min_canaries: int, previous: int = 0) -> int:
    """Return the upper end of the range of buckets that `share` of the devices take, at least `previous`.

    It is one above the bucket of the k-th device, k = max(min_canaries, ceil(share n)), at most n. The whole fleet (share 1)
    is the whole range, so that a device that joins later takes the candidate too.

    Args:
        salt: the rollout's own, so that it is not always the same devices that go first.
        devices: ids of all devices that could take it.
        share: of the devices, 0..1.
        min_canaries: how many devices at least.
        previous: the range's end so far, 0..2**32.
    """
    if share >= 1.0:
        return BUCKETS
    if not devices:
        return previous
    buckets = sorted(bucket_of(salt, device) for device in devices)
    k = min(len(buckets), max(min_canaries, math.ceil(share * len(buckets) - 1e-9)))
    return max(previous, buckets[k - 1] + 1)


def cohort(salt: str, devices: Sequence[str], below: int) -> list[str]:
    """Return the devices whose bucket lies below `below`, in their order."""
    return [device for device in devices if bucket_of(salt, device) < below]
