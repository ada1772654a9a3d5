"""The name of a build changes with the code that computes, and with nothing else."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import mtactors
from mtactors.journal import build
from mtactors.journal.build import build_name


def test_it_is_the_same_for_the_same_code() -> None:
    assert build_name() == build_name()
    assert build_name().startswith(f"{mtactors.__version__}, torch ")


def test_sources_and_libraries_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleSpec:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        return spec

    monkeypatch.setattr(build, "find_spec", find)
    names = [build_name()]
    for name in ("a.py", "b.so"):
        for text in ("1", "2"):
            (tmp_path / name).write_text(text)
            names.append(build_name())
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    names.append(build_name())
    assert len({*names}) == len(names)
    (tmp_path / "notes.txt").write_text("of no matter")
    assert build_name() == names[-1]
