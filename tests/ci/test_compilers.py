"""Which compilers `make test-compilers` takes. What it does with them takes minutes: not here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.source_tree import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "compilers_script", ROOT / ".ci/test_compilers.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def put(folder: Path, name: str, version: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def test_each_compiler_once_oldest_first(script: ModuleType, tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    for folder in (near, far):
        folder.mkdir()
    put(near, "g++-9", "9.5.0")
    put(near, "g++-12", "12.2.0")
    (near / "g++").symlink_to("g++-12")
    put(far, "clang++-14", "14.0.6")
    put(far, "clang++", "13.0.1")
    put(far, "x86_64-linux-gnu-g++-12", "12.2.0")  # the same one under its long name
    put(far, "clang++-99", "no version")
    (far / "g++-11").write_text("not a program")
    found = script.find_compilers([str(near), str(far), str(tmp_path / "nowhere")])
    assert [(one.label, one.new_enough) for one in found] == [
        ("clang++-13.0.1", False),
        ("clang++-14.0.6", True),
        ("g++-9.5.0", False),
        ("g++-12.2.0", True),
    ]


def test_none_found_is_no_success(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "HOME", tmp_path / "compilers")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.main([]) == 1
    assert "none: no such compiler found" in capsys.readouterr().out
