"""May this variant run on this device? Asked when a device enrols, before a variant is built, and again on the device."""

from modelfleet.hardware_profiles.detect import mismatches
from modelfleet.hardware_profiles.facts import DeviceFacts
from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.policies.errors import IncompatibleError
from modelfleet.signer.manifest import Manifest


def incompatibilities(profile: HardwareProfile, facts: DeviceFacts) -> list[str]:
    """Return why the device is not of this kind, each reason as `what: expected ..., got ...`; empty: compatible."""
    return mismatches(profile, facts)


def require_compatible(profile: HardwareProfile, facts: DeviceFacts) -> None:
    """Return if the device is of this kind.

    Raises:
        IncompatibleError: it is not; `reasons` holds all of them.
    """
    reasons = incompatibilities(profile, facts)
    if reasons:
        raise IncompatibleError(profile.name, tuple(reasons))


def manifest_incompatibilities(manifest: Manifest, profile: HardwareProfile, facts: DeviceFacts) -> list[str]:
    """Return why the device may not run this variant: what the manifest asks for beside what the profile and device give."""
    reasons = incompatibilities(profile, facts)
    if manifest.profile != profile.name:
        reasons.append(f"profile: expected {profile.name}, got a variant for {manifest.profile}")
    if manifest.runtime != profile.runtime:
        reasons.append(f"runtime: expected {profile.runtime}, got a variant for {manifest.runtime}")
    if manifest.precision not in profile.precisions:
        reasons.append(f"precision: expected one of {[*profile.precisions]}, got {manifest.precision}")
    if manifest.limits.memory_bytes > facts.memory_bytes:
        reasons.append(
            f"memory: expected <= {facts.memory_bytes} bytes, the variant may use {manifest.limits.memory_bytes}"
        )
    return reasons
