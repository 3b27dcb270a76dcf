"""The wheel holds what the checkout holds: a sub-package that is not listed works here and is missing there."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    *("agent_client", "benchmarks", "converters", "hardware_profiles", "policies", "registry", "rollout", "service"),
    "signer",
)
OUTSIDE_THE_WHEEL = ("benchmarks/suites", "converters/browser/node_modules")


def packages_in_the_tree() -> set[str]:
    return {
        f"modelfleet.{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
        if not path.relative_to(ROOT).as_posix().startswith(OUTSIDE_THE_WHEEL)
    }


def test_every_package_of_the_tree_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(listed["packages"]) == packages_in_the_tree()
    assert set(listed["package-dir"]) == packages_in_the_tree()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    uv = ROOT / ".uv" / "bin" / "uv"
    program = [str(uv)] if uv.exists() else [sys.executable, "-m", "uv"]
    subprocess.run(
        [*program, "build", "--wheel", "--quiet", "--out-dir", str(target), str(ROOT)], check=True, timeout=180
    )
    return next(target.glob("*.whl"))


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("modelfleet-")}
    wanted = {
        f"modelfleet/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for pattern in (
            "*.py",
            "*.css",
            "*.json",
            "*.mjs",
            "*.toml",
            "*.txt",
            "py.typed",
            "*.mako",
            "*.c",
            "*.h",
            "*.ld",
            "*.md",
            "SHA256SUMS",
        )
        for path in (ROOT / folder).rglob(pattern)
        if not path.relative_to(ROOT).as_posix().startswith(OUTSIDE_THE_WHEEL)
    }
    assert inside == wanted


def test_a_device_needs_none_of_the_servers_libraries() -> None:
    """`modelfleet-agent` and everything it imports stay small: no web framework, database, cloud or model SDK."""
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in ('fastapi', 'sqlalchemy', 'boto3', 'onnx', 'amqtt', 'dbos', 'rich', 'onnxruntime', 'sklearn'):\n"
        "    sys.modules[name] = None\n"  # an import of it now raises ImportError
        "import modelfleet.agent_client as agent\n"
        "for module in pkgutil.iter_modules(agent.__path__):\n"
        "    importlib.import_module(f'modelfleet.agent_client.{module.name}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
