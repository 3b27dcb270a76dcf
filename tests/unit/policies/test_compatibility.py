"""A device runs only what was built for its kind."""

import msgspec
import pytest

from modelfleet.hardware_profiles.facts import DeviceFacts
from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.policies.compatibility import (
    incompatibilities,
    manifest_incompatibilities,
    require_compatible,
)
from modelfleet.policies.errors import IncompatibleError
from modelfleet.signer.manifest import Manifest, ManifestFile, ManifestLimits, Tensor, Tolerance

PROFILES = load_profiles()
X86 = DeviceFacts(arch="x86_64", os="linux", memory_bytes=4_000_000_000, cores=4, runtimes={"onnxruntime": "1.22.0"})
MANIFEST = Manifest(
    tenant="acme",
    model="digits",
    version="1.0.0",
    channel="stable",
    profile="linux-cpu-int8",
    runtime="onnxruntime",
    precision="int8",
    counter=1,
    source_sha256="0" * 64,
    files=(
        ManifestFile(name="model.onnx", sha256="1" * 64, length=1, role="model"),
        ManifestFile(name="golden.npz", sha256="2" * 64, length=1, role="golden"),
    ),
    entry="model.onnx",
    golden="golden.npz",
    inputs=(Tensor(name="image", dtype="float32", shape=(None, 1, 8, 8)),),
    outputs=(Tensor(name="logits", dtype="float32", shape=(None, 10)),),
    limits=ManifestLimits(latency_ms=100.0, memory_bytes=500_000_000),
    tolerance=Tolerance(rtol=0.1, atol=0.1),
)


def test_an_x86_device_is_refused_as_a_raspberry_pi_with_all_reasons():
    with pytest.raises(IncompatibleError) as refused:
        require_compatible(PROFILES["raspberry-pi-5"], X86)
    assert [reason.split(":")[0] for reason in refused.value.reasons] == ["arch", "board"]
    assert "expected one of ['aarch64'], got x86_64" in str(refused.value)


def test_an_x86_device_is_accepted_as_a_linux_cpu():
    assert incompatibilities(PROFILES["linux-cpu-int8"], X86) == []
    require_compatible(PROFILES["linux-cpu-int8"], X86)


def test_a_variant_of_the_devices_own_profile_is_accepted():
    assert manifest_incompatibilities(MANIFEST, PROFILES["linux-cpu-int8"], X86) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"profile": "raspberry-pi-5"}, "profile"),
        ({"runtime": "tensorrt"}, "runtime"),
        ({"precision": "float"}, "precision"),
        ({"limits": ManifestLimits(latency_ms=1.0, memory_bytes=5_000_000_000)}, "memory"),
    ],
)
def test_a_variant_that_asks_for_something_else_is_refused(change: dict[str, object], what: str):
    manifest = msgspec.structs.replace(MANIFEST, **change)
    (reason,) = manifest_incompatibilities(manifest, PROFILES["linux-cpu-int8"], X86)
    assert reason.startswith(f"{what}: expected ")
