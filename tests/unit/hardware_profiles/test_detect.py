"""A machine is described by what it says itself, and fits a profile only if all of it does."""

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from modelfleet.hardware_profiles.detect import detect, matching, mismatches, normalised_arch, normalised_os
from modelfleet.hardware_profiles.errors import FactsError
from modelfleet.hardware_profiles.facts import DeviceFacts, parse_facts
from modelfleet.hardware_profiles.profile import load_profiles

PROFILES = load_profiles()
PI_5 = DeviceFacts(
    arch="aarch64",
    os="linux",
    memory_bytes=8_000_000_000,
    cores=4,
    cpu_model="Raspberry Pi 5 Model B Rev 1.0",
    board="Raspberry Pi 5 Model B Rev 1.0",
    runtimes={"onnxruntime": "1.22.0"},
)
LAPTOP = dataclasses.replace(PI_5, arch="x86_64", board="", cpu_model="Some CPU")


def test_this_machine_fits_the_linux_profiles():
    if platform.system() != "Linux" or normalised_arch(platform.machine()) not in ("x86_64", "aarch64"):
        pytest.skip("needs 64-bit Linux")
    assert {"linux-cpu-float", "linux-cpu-int8"} <= set(matching(detect(), PROFILES))


def test_an_x86_machine_is_no_raspberry_pi():
    assert "raspberry-pi-5" not in matching(LAPTOP, PROFILES)
    assert mismatches(PROFILES["raspberry-pi-5"], LAPTOP) == [
        "arch: expected one of ['aarch64'], got x86_64",
        "board: expected a 'Raspberry Pi 5', got ''",
    ]


def test_a_raspberry_pi_5_fits_its_own_profile_and_the_general_ones():
    assert matching(PI_5, PROFILES) == ["linux-cpu-float", "linux-cpu-int8", "linux-cpu-small", "raspberry-pi-5"]


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("Linux", {}, "linux"),
        ("Darwin", {}, "darwin"),
        ("Linux", {"ANDROID_ROOT": "/system"}, "android"),
        ("Android", {}, "android"),
        ("iOS", {}, "ios"),
        ("iPadOS", {}, "ios"),
    ],
)
def test_one_name_for_each_system(system: str, environment: dict[str, str], expected: str):
    assert normalised_os(system, environment) == expected


EVERY = {
    **dict.fromkeys(("litert", "coreml", "mlx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"), "99.0"),
    "tensorrt-rtx": "1.7.1",
}  # an engine is of one release


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"os": "darwin"}, ["mac-coreml", "mac-mlx"]),
        ({"os": "darwin", "arch": "x86_64"}, ["mac-coreml"]),
        ({"os": "android"}, ["android-arm64"]),
        (
            {"board": "NVIDIA Jetson Orin Nano Developer Kit"},
            ["jetson-orin", "linux-cpu-float", "linux-cpu-int8", "linux-cpu-small"],
        ),
        ({"arch": "x86_64"}, ["linux-cpu-float", "linux-cpu-int8", "linux-cpu-small"]),
        (
            {"arch": "x86_64", "gpu": "NVIDIA GeForce RTX 4090"},
            ["linux-cpu-float", "linux-cpu-int8", "linux-cpu-small", "nvidia-datacenter", "nvidia-rtx"],
        ),
        (
            {"arch": "x86_64", "gpu": "NVIDIA H100 80GB HBM3"},
            ["linux-cpu-float", "linux-cpu-int8", "linux-cpu-small", "nvidia-datacenter"],
        ),
        ({"os": "windows"}, []),
    ],
)
def test_a_machine_with_every_runtime_fits_only_the_profiles_of_its_kind(change: dict[str, str], expected: list[str]):
    machine = dataclasses.replace(PI_5, board="", memory_bytes=64_000_000_000, runtimes=EVERY, gpu="")
    assert matching(dataclasses.replace(machine, **change), PROFILES) == expected  # type: ignore[arg-type]


def test_reads_the_name_of_an_nvidia_gpu(tmp_path: Path):
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 16\n")
    assert detect(tmp_path).gpu == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"memory_bytes": 1_000_000_000}, "memory_bytes"),
        ({"cores": 2}, "cores"),
        ({"board": "Raspberry Pi 4 Model B"}, "board"),
        ({"os": "darwin"}, "os"),
        ({"runtimes": {}}, "runtime"),
        ({"runtimes": {"onnxruntime": "1.9.0"}}, "runtime"),
    ],
)
def test_one_missing_property_is_enough_not_to_fit(change: dict[str, object], what: str):
    facts = dataclasses.replace(PI_5, **change)  # type: ignore[arg-type]
    (reason,) = mismatches(PROFILES["raspberry-pi-5"], facts)
    assert reason.startswith(f"{what}: expected ")
    assert ", got " in reason


def test_reads_the_board_and_processor_of_a_raspberry_pi(tmp_path: Path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\x00")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 108.00\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8245376 kB\n")
    facts = detect(tmp_path)
    assert facts.board == facts.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts.memory_bytes == 8245376 * 1024


def test_a_container_has_the_memory_it_was_given(tmp_path: Path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8245376 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1073741824\n")
    assert detect(tmp_path).memory_bytes == 1073741824
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert detect(tmp_path).memory_bytes == 8245376 * 1024


def test_detection_imports_no_runtime():
    code = (
        "import sys; from modelfleet.hardware_profiles.detect import detect;"
        "print(detect().runtimes); print('onnxruntime' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"
    assert "onnxruntime" in out.splitlines()[0]


def test_facts_survive_the_way_to_the_server():
    assert parse_facts(PI_5.to_dict()) == PI_5


@pytest.mark.parametrize(
    "change", [{"arch": 3}, {"cores": -1}, {"cpu_model": "x" * 1000}, {"runtimes": ["onnxruntime"]}]
)
def test_refuses_facts_of_another_form(change: dict[str, object]):
    with pytest.raises(FactsError):
        parse_facts({**PI_5.to_dict(), **change})


def test_refuses_facts_that_say_too_little():
    with pytest.raises(FactsError, match="memory_bytes"):
        parse_facts({"arch": "x86_64", "os": "linux"})
