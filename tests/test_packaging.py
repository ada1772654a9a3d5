"""What an installation holds: names, versions, the native module, a pin per requirement."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Literal

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from scikit_build_core.settings.skbuild_read_settings import SettingsReader

import mtactors
from tests.source_tree import PACKAGES, ROOT

NATIVE = "mtactors.kernels._native"
NATIVE_SOURCES = (".cpp", ".h", ".mu", ".muh", ".cmake")


def _requirements() -> list[Requirement]:
    """What `make install` asks for: mtactors with its dev extra."""
    lines = [Requirement(line) for line in distribution("mtactors").requires or []]
    return [line for line in lines if line.marker is None or line.marker.evaluate({"extra": "dev"})]


def _pins(python: str) -> dict[str, str]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        environment = {**default_environment(), "python_version": python}
        if pin.marker is None or pin.marker.evaluate({k: str(v) for k, v in environment.items()}):
            assert pin.name not in pins, f"{pin.name} is pinned twice for Python {python}"
            pins[pin.name.lower()] = str(pin.specifier).removeprefix("==")
    return pins


def test_the_version_is_the_same_everywhere() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert mtactors.__version__ == version("mtactors")
    assert f'\nversion = "{mtactors.__version__}"\n' in pyproject


def test_the_command_is_installed() -> None:
    (command,) = distribution("mtactors").entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("mtactors", "mtactors.entrypoints.cli:main")
    assert callable(command.load())


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_a_pin_that_it_allows(python: str) -> None:
    pins = _pins(python)
    unpinned = [
        str(requirement)
        for requirement in _requirements()
        if not requirement.specifier.contains(pins.get(requirement.name.lower(), "0"))
    ]
    assert unpinned == []


def test_public_names_are_loaded_on_first_use() -> None:
    code = """
import sys, mtactors
assert not [name for name in sys.modules if name.startswith("mtactors.")], "loaded too early"
for name in set(mtactors.__all__) - {"__version__"}:
    assert getattr(mtactors, name).__name__ == name
assert set(mtactors.__all__) <= set(dir(mtactors))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(mtactors.__file__).read_text())
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module or "").startswith("mtactors")
    }
    assert seen == set(mtactors.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        mtactors.Engine  # noqa: B018


def test_the_source_tree_leaves_the_path(tmp_path: Path) -> None:
    code = """
import os, sys
sys.path += [os.curdir, sys.argv[1], sys.argv[2]]
import mtactors
print(sys.argv[1] in sys.path, "" in sys.path, os.curdir in sys.path, sys.argv[2] in sys.path)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["False", "False", "False", "True"]


def test_packages_are_found_by_folder_so_that_new_files_are_seen() -> None:
    for folder, package in PACKAGES.items():
        places = {Path(place).resolve() for place in importlib.import_module(package).__path__}
        assert ROOT / folder in places


def test_the_native_module_is_built_from_this_header() -> None:
    native = importlib.import_module(NATIVE)
    header = (ROOT / "kernels" / "abi.h").read_text()
    (in_header,) = re.findall(r"^#define MT_ABI_VERSION (\d+)$", header, re.MULTILINE)
    assert native.abi_version() == int(in_header)


def test_each_hot_build_was_compiled_for_its_instruction_set() -> None:
    builds = importlib.import_module(NATIVE).isa_builds()
    assert [name for name, _, _ in builds] == [compiled_for for _, compiled_for, _ in builds]
    assert builds[0] == ("portable", "portable", True)


def test_the_stub_names_what_the_native_module_holds() -> None:
    stub = ast.parse((ROOT / "kernels" / "_native.pyi").read_text())
    stubbed = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    held = {name for name in dir(importlib.import_module(NATIVE)) if not name.startswith("_")}
    assert stubbed == held


@pytest.mark.parametrize(
    "state, emulated", [("wheel", "OFF"), ("sdist", "OFF"), ("editable", "ON")]
)
def test_only_make_install_builds_device_kernels_for_the_host(
    state: Literal["wheel", "sdist", "editable"], emulated: str
) -> None:
    # Said either way: what CMake remembers of another build in the same directory must not count.
    reader = SettingsReader.from_file(ROOT / "pyproject.toml", {}, state=state)
    assert reader.settings.cmake.define["MTACTORS_EMULATED_MUSA"] == emulated


def test_a_wheel_holds_all_packages_and_no_sources_of_the_kernels(tmp_path: Path) -> None:
    # The compiler's part is proved by the installation that runs this test.
    options = ["--no-deps", "--no-build-isolation", "--config-settings=wheel.cmake=false"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-qq", *options, "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("mtactors-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
            assert inner in names
    assert "mtactors/py.typed" in names
    assert not [name for name in names if name.endswith(NATIVE_SOURCES)]
    assert not [name for name in names if name.startswith(("tests/", "kernels/", "entrypoints/"))]
