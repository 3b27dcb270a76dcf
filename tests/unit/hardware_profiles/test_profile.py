"""A profile file says exactly what it says: nothing is guessed, nothing is ignored."""

from pathlib import Path

import pytest

from modelfleet.hardware_profiles.errors import ProfileError
from modelfleet.hardware_profiles.profile import (
    Axes,
    Batch,
    Precision,
    Prefer,
    Runtime,
    load_profile,
    load_profiles,
    parse_profile,
)

GOOD = """
name = "toy"
summary = "A toy"
runtime = "onnxruntime"
precisions = ["int8", "float"]
[requires]
arch = ["x86_64"]
os = ["linux"]
[limits]
memory_bytes = 1000
[tolerances.int8]
rtol = 0.1
atol = 0.1
mismatch_share = 0.05
[tolerances.float]
rtol = 1e-4
atol = 1e-4
"""


def test_reads_every_part_of_a_profile():
    profile = parse_profile(GOOD, "toy")
    assert profile.runtime is Runtime.ONNXRUNTIME
    assert profile.precisions == (Precision.INT8, Precision.FLOAT)
    assert profile.tolerances[Precision.INT8].mismatch_share == 0.05
    assert (profile.limits.latency_ms, profile.limits.accuracy, profile.limits.memory_bytes) == (100.0, 0.85, 1000)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('summary = "A toy"', "", "summary"),
        ('summary = "A toy"', 'summary = "A toy"\ncolour = "red"', "colour"),
        ("memory_bytes = 1000", 'memory_bytes = "1 kB"', "memory_bytes"),
        ("memory_bytes = 1000", "memory_bytes = 1000\nlatency_msec = 5", "latency_msec"),
        ("mismatch_share = 0.05", "mismatch_share = 5", "mismatch_share"),
        ("mismatch_share = 0.05", "mismatched = 0.05", "mismatched"),
        ('runtime = "onnxruntime"', 'runtime = "abacus"', "abacus"),
        ('["int8", "float"]', '["int8", "int3"]', "int3"),
        ('["int8", "float"]', '["int8"]', "one tolerance for each"),
        ('["int8", "float"]', '["int8", "float", "float"]', "none of them twice"),
        ('["int8", "float"]', '["int8", "float"]\nprefer = "best"', "prefer"),
        ('["int8", "float"]', '["int8", "float"]\naxes = "some"', "axes"),
        ('arch = ["x86_64"]', "arch = []", "one arch"),
        ('os = ["linux"]', 'os = ["linux"]\nruntime_version = "newest"', "runtime_version"),
        ("[limits]", "[limits", "profile toy"),
        ('name = "toy"', 'name = "tool"', "expected name = 'toy'"),
        ("[limits]\nmemory_bytes = 1000", "limits = 3", "limits"),
    ],
)
def test_refuses_a_profile_that_says(old: str, new: str, complaint: str):
    assert old in GOOD
    with pytest.raises(ProfileError, match="toy") as refused:
        parse_profile(GOOD.replace(old, new), "toy")
    assert complaint in str(refused.value)


def test_the_projects_own_profiles_hold_the_default_limits():
    profiles = load_profiles()
    assert {"linux-cpu-float", "linux-cpu-int8", "raspberry-pi-5"} <= set(profiles)
    for name in ("linux-cpu-float", "linux-cpu-int8", "raspberry-pi-5"):
        assert (profiles[name].limits.latency_ms, profiles[name].limits.accuracy) == (100.0, 0.85)


def test_only_variants_that_are_not_float_may_have_elements_outside_the_tolerance():
    for profile in load_profiles().values():
        for precision, tolerance in profile.tolerances.items():
            assert (tolerance.mismatch_share > 0) == (precision is not Precision.FLOAT), (profile.name, precision)
            if precision is Precision.FLOAT:
                assert max(tolerance.rtol, tolerance.atol) <= 1e-4


def test_there_is_a_profile_for_every_kind_of_device_and_every_runtime():
    profiles = load_profiles()
    assert {profile.runtime for profile in profiles.values()} == set(Runtime)
    expected = """linux-cpu-float linux-cpu-int8 raspberry-pi-5 nvidia-rtx nvidia-datacenter jetson-orin mac-mlx mac-coreml
        iphone-coreml android-arm64 browser-wasm cortex-m4 cortex-m7 cortex-m55 esp32-s3 generic-c99"""
    assert set(profiles) >= set(expected.split())


def test_the_documentation_lists_every_profile():
    page = (Path(__file__).parents[3] / "docs" / "converters.md").read_text()
    missing = [name for name, profile in load_profiles().items() if f"| `{name}` | {profile.runtime} |" not in page]
    assert missing == []


def test_a_profile_that_says_nothing_takes_the_first_precision_and_keeps_free_dimensions():
    profile = parse_profile(GOOD, "toy")
    assert (profile.prefer, profile.axes, profile.batch) == (Prefer.ORDER, Axes.KEEP, Batch.DYNAMIC)
    said = GOOD.replace("[requires]", 'prefer = "smallest"\naxes = "fix"\n[requires]')
    assert (parse_profile(said, "toy").prefer, parse_profile(said, "toy").axes) == (Prefer.SMALLEST, Axes.FIX)


def test_refuses_a_folder_without_profiles(tmp_path):
    with pytest.raises(ProfileError, match=r"expected \*\.toml"):
        load_profiles(tmp_path)


def test_refuses_a_profile_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ProfileError, match="cannot read"):
        load_profile(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="UTF-8"):
        load_profile(tmp_path / "binary.toml")


CHIP = GOOD.replace('"onnxruntime"', '"c99"').replace("[requires]", 'batch = "one"\naxes = "fix"\n[requires]')
CHIP += """
[microcontroller]
flash_bytes = 2000
ram_bytes = 1000
cpu_flags = ["-mcpu=cortex-m4", "-mfloat-abi=hard"]
"""


def test_reads_a_microcontroller():
    chip = parse_profile(CHIP, "toy").microcontroller
    assert chip is not None
    assert (chip.flash_bytes, chip.ram_bytes, chip.backend, chip.rounding) == (2000, 1000, "portable", "integer")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("flash_bytes = 2000", "", "flash_bytes"),
        ("flash_bytes = 2000", "flash_bytes = 0", "flash_bytes > 0"),
        ("flash_bytes = 2000", "flash_kbytes = 2", "flash_kbytes"),
        ("flash_bytes = 2000", "flash_bytes = 2_000_000_000", "1073741824 at most"),
        ("ram_bytes = 1000", "ram_bytes = 999", "expected memory_bytes of [limits] to be ram_bytes"),
        ("ram_bytes = 1000", 'ram_bytes = 1000\nbackend = "neon"', "neon"),
        ("ram_bytes = 1000", 'ram_bytes = 1000\nrounding = "down"', "down"),
        ("ram_bytes = 1000", 'ram_bytes = 1000\ntoolchain = "/bin/"', "/bin/"),
        ("-mcpu=cortex-m4", "-o/etc/passwd", "-o/etc/passwd"),
        ("-mcpu=cortex-m4", "-mcpu=x\\n-o", "cpu_flags"),
        ("-mcpu=cortex-m4", "@file", "cpu_flags"),
        ('batch = "one"', "", "code has fixed shapes"),
        ('axes = "fix"', "", "code has fixed shapes"),
        ('"c99"', '"onnxruntime"', "for no other"),
        (CHIP[CHIP.index("[microcontroller]") :], "", "expected [microcontroller]"),
    ],
)
def test_refuses_a_microcontroller_that_says(old: str, new: str, complaint: str):
    assert old in CHIP
    with pytest.raises(ProfileError, match="toy") as refused:
        parse_profile(CHIP.replace(old, new), "toy")
    assert complaint in str(refused.value)
