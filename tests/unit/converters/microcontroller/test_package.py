"""The folder around the sources builds as it stands, for whoever takes it in, whatever the model's names are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from modelfleet.converters.microcontroller.emitting.package import package_files, plain_name
from modelfleet.converters.microcontroller.emitting.release import ImageKey, Release, release_files
from modelfleet.converters.microcontroller.image.files import verifier_files
from modelfleet.converters.microcontroller.layout import Layout, laid_out
from modelfleet.signer.names import FILE_PATTERN, require
from tests.unit.converters.microcontroller.programs import STRICT, generated, two_layers

HOSTILE = ("*/ system(1); /*", "| a | b |\n# heading", '"); exit(1', "${CMAKE_COMMAND}@X@{0}")
RELEASE = Release(
    tenant="acme",
    group="shops",
    model="ui/digits",
    version="1.2.0-rc.1",
    profile="cortex-m4",
    counter=3,
    manifest_sha256="ab" * 32,
    shapes_sha256="cd" * 32,
    weights_bytes=560,
    keys=[ImageKey(keyid=bytes(range(32)), point=b"\x04" + bytes(64))],
)
ARM = "arm-none-eabi-gcc"


def written(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_the_flat_folder_is_a_cmake_project_whose_example_runs(tmp_path: Path) -> None:
    folder = written(dict(generated().files()), tmp_path / "model")
    for words in (["-S", str(folder), "-B", "build", "-DCMAKE_C_FLAGS=-Werror -Wall -Wextra"], ["--build", "build"]):
        made = subprocess.run(["cmake", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
    ran = subprocess.run([tmp_path / "build/model_example"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("output_0[0] = ")


def test_two_models_are_two_libraries_of_one_program(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        files = laid_out(generated(two_layers(seed=seed)).files(), RELEASE, Layout.CMAKE, images=False)
        written(files, tmp_path / name)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(app C)\n"
        "set(MODEL_PREFIX one)\nadd_subdirectory(one)\nset(MODEL_PREFIX two)\nadd_subdirectory(two)\n"
        "add_executable(app app.c)\ntarget_link_libraries(app PRIVATE one two)\n"
    )
    (tmp_path / "app.c").write_text(
        "extern const char one_name[], two_name[];\nextern const unsigned char one_weights[], two_weights[];\n"
        "int main(void) { return one_weights[0] == two_weights[0] && one_name == two_name; }\n"
    )
    for words in (["-S", ".", "-B", "build"], ["--build", "build"]):
        made = subprocess.run(["cmake", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.skipif(shutil.which(ARM) is None, reason=f"needs {ARM}")
def test_the_example_compiles_for_a_microcontroller_and_to_nothing_where_another_main_is(tmp_path: Path) -> None:
    folder = written(dict(generated().files()), tmp_path)
    subprocess.run([ARM, *STRICT, "-ffreestanding", "-fsyntax-only", "main.c"], cwd=folder, check=True)
    for platform in ("ARDUINO", "ESP_PLATFORM"):
        command = ["gcc", f"-D{platform}", "-c", "main.c", "-o", "main.o"]
        subprocess.run(command, cwd=folder, check=True)
        assert not subprocess.run(["nm", "main.o"], cwd=folder, capture_output=True, check=True).stdout


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_of_a_model_stay_names(hostile: str, tmp_path: Path) -> None:
    names = [f"{hostile}{i}" for i in range(4)]
    made = generated(two_layers(names=names, title=hostile))
    folder = written(dict(made.files()), tmp_path)
    subprocess.run(["gcc", *STRICT, "-fsyntax-only", "main.c"], cwd=folder, check=True)
    honest = generated(two_layers()).files()
    assert (folder / "main.c").read_bytes() == honest["main.c"]
    assert (folder / "CMakeLists.txt").read_bytes() == honest["CMakeLists.txt"]
    assert (folder / "README.md").read_text().count("\n") == honest["README.md"].decode().count("\n")
    for name in ("library.properties", "idf_component.yml"):
        assert (folder / name).read_text().count("\n") == honest[name].decode().count("\n")


def test_file_names_may_stand_in_a_manifest() -> None:
    for name in generated().files():
        assert require(name, FILE_PATTERN, "file") == name


def test_the_readme_tells_the_figures_of_the_description() -> None:
    made = generated()
    described = made.description(made.estimated())
    text = package_files(described)["README.md"].decode()
    assert f"| flash, both | {described.flash_bytes} |" in text
    assert f"| RAM, all of it | {described.ram_bytes} |" in text
    assert described.shapes_digest in text
    assert "| RAM: inputs and outputs | 17 |" in text


@pytest.mark.parametrize(
    ("model", "name"), [("ui/digits", "ui_digits"), ("a b\nc", "a_b_c"), ("///", "model"), ("m" * 99, "m" * 63)]
)
def test_a_plain_name_is_letters_digits_and_dashes(model: str, name: str) -> None:
    assert plain_name(model) == name


def test_what_is_written_of_a_release_compiles_strictly(tmp_path: Path) -> None:
    folder = written(laid_out(generated().files(), RELEASE, Layout.CMAKE, images=True), tmp_path)
    subprocess.run(["gcc", *STRICT, "-fsyntax-only", "model_release.c"], cwd=folder, check=True)
    alone = release_files(RELEASE, images=False)["model_release.c"]
    assert b"modelfleet_image" not in alone


def test_each_layout_has_what_its_build_system_asks_for() -> None:
    files = generated().files()
    cmake, idf, arduino = (laid_out(files, RELEASE, layout, images=True) for layout in Layout)
    assert {"CMakeLists.txt", "main.c", "model_release.h", "bearssl/LICENSE.txt"} <= cmake.keys()
    assert b'version: "1.2.0-rc.1"' in idf["idf_component.yml"]
    assert b"version=1.2.0\n" in arduino["library.properties"]
    flat = {name.rpartition("/")[2] for name in verifier_files() if name.endswith((".c", ".h"))}
    assert {f"src/{name}" for name in flat} <= arduino.keys()
    assert "extras/bearssl/LICENSE.txt" in arduino
