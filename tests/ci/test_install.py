"""`make install` on machines that lack something: one line on stderr, exit code 1, nothing made."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source_tree import ROOT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout that nothing was installed into."""
    tree = tmp_path / "checkout"
    for place in (".ci/install.py", "Makefile", "pyproject.toml", "constraints.txt"):
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tree / place)
    shutil.copy(ROOT / "CMakeLists.txt", tree)
    return tree


def make_install(tree: Path, python: str = sys.executable, **environment: str) -> str:
    """Run `make install`, which must fail before it makes .venv; return its one line."""
    run = subprocess.run(
        ["make", "--no-print-directory", "install", f"PYTHON={python}"],
        cwd=tree,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in run.stderr.splitlines() if not line.startswith("make: ***")]
    assert run.returncode == 2  # make's own code for a failed recipe
    assert len(lines) == 1, run.stderr
    assert run.stdout == ""
    assert not (tree / ".venv").exists()
    return lines[0].removeprefix("make install: ")


def shadow(tmp_path: Path, name: str, source: str) -> dict[str, str]:
    """Put a module in front of the standard library's."""
    folder = tmp_path / "shadow"
    folder.mkdir()
    (folder / f"{name}.py").write_text(source)
    return {"PYTHONPATH": str(folder)}


def test_no_python(tree: Path) -> None:
    line = make_install(tree, "python3.99")
    assert line == "no python3.99 found: install Python 3.10 to 3.13, or name it in PYTHON="


def test_a_python_that_is_too_old(tree: Path, tmp_path: Path) -> None:
    old = shadow(tmp_path, "sitecustomize", "import sys; sys.version_info = (3, 9, 18)")
    assert "is Python 3.9, mtactors needs 3.10 to 3.13: " in make_install(tree, **old)


def test_no_compiler(tree: Path) -> None:
    line = make_install(tree, CXX="/nonexistent/c++")
    assert line == "no C++ compiler: CXX=/nonexistent/c++ is not there"


def test_no_compiler_on_the_path(tree: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("make", "sh"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    line = make_install(tree, PATH=str(tools))
    assert line.startswith("no C++ compiler (c++, g++ or clang++): `sudo apt install g++`")


def test_a_compiler_that_cannot_do_cxx17(tree: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: unrecognized option -std=c++17' >&2\nexit 1\n")
    compiler.chmod(0o755)
    line = make_install(tree, CXX=str(compiler))
    assert line.endswith(
        "cannot compile C++17 with Python.h: error: unrecognized option -std=c++17"
    )


def test_no_python_headers(tree: Path, tmp_path: Path) -> None:
    source = "import sysconfig\nsysconfig.get_path = lambda *names, **more: '/nonexistent'\n"
    line = make_install(tree, **shadow(tmp_path, "sitecustomize", source))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert line == (
        "Python's headers are missing (/nonexistent/Python.h): "
        f"`sudo apt install python{version}-dev`"
    )


def test_no_venv_module(tree: Path, tmp_path: Path) -> None:
    source = "raise ImportError('not packaged', name='ensurepip')\n"
    line = make_install(tree, **shadow(tmp_path, "ensurepip", source))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert line == f"Python's ensurepip module is missing: `sudo apt install python{version}-venv`"


def test_a_folder_that_is_no_environment_is_left_alone(tree: Path) -> None:
    (tree / ".venv").mkdir()
    (tree / ".venv" / "mine").touch()
    run = subprocess.run(
        [sys.executable, ".ci/install.py"], cwd=tree, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr == f"make install: {tree}/.venv is not a virtual environment: move it away\n"
    assert (tree / ".venv" / "mine").exists()


def native_key(tree: Path) -> str:
    """Return what `make install` compares to decide whether native code is built again."""
    name = "install_under_test"
    spec = importlib.util.spec_from_file_location(name, tree / ".ci" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    key: str = module.keys()["native"]
    return key


def test_what_device_kernels_depend_on_builds_them_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MUSA_HOME", "MUSA_PATH", "MTACTORS_MUSA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    musa, toolkit = tree / "kernels" / "musa", tmp_path / "toolkit" / "bin"
    musa.mkdir(parents=True)
    keys = [native_key(tree), native_key(tree)]
    for name in ("rows.mu", "common.muh", "library.h", "build.cmake"):
        (musa / name).write_text("1")
        keys.append(native_key(tree))
    monkeypatch.setenv("MUSA_HOME", str(toolkit.parent))
    keys.append(native_key(tree))
    toolkit.mkdir(parents=True)
    (toolkit / "mcc").touch()
    keys.append(native_key(tree))
    monkeypatch.setenv("MTACTORS_MUSA_ARCHS", "31")
    keys.append(native_key(tree))
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1
