"""What every test gets: tests that need torch are left out where torch is not installed.

A test file that imports torch, or a part of mtactors that does, is not collected there; a folder
whose conftest.py does neither. A single test says so with `@pytest.mark.needs_torch`.
"""

from __future__ import annotations

import ast
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from tests.source_tree import ROOT, TORCH_NAMES, TORCH_UNITS, imports_of

# Test processes share the cores. Two OpenMP teams that spin for the same two cores took four
# times as long as one thread each. Set before anything imports torch; worker processes inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("mtactors", deadline=None, print_blob=True)
settings.load_profile("mtactors")

HAS_TORCH = find_spec("torch") is not None
TORCH_PACKAGES = [["mtactors", unit] for unit in TORCH_UNITS]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory whose path is short enough for sockets, as `tmp_path` is not under xdist."""
    path = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@cache
def _imports_torch(path: Path) -> bool:
    for item in imports_of(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        parts = item.name.split(".")
        if not item.at_module_level:
            continue
        if parts[0] in TORCH_NAMES or [*parts, item.member][:2] in TORCH_PACKAGES:
            return True
        if parts[0] == "tests":  # helpers of the tests
            shared = ROOT.joinpath(*parts).with_suffix(".py")
            if shared.is_file() and _imports_torch(shared):
                return True
    return False


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out files, and folders whose conftest.py, cannot be imported without torch."""
    if HAS_TORCH:
        return None
    path = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    return True if path.suffix == ".py" and path.is_file() and _imports_torch(path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the single tests that need torch, where there is none."""
    if HAS_TORCH:
        return
    for item in items:
        if item.get_closest_marker("needs_torch"):
            item.add_marker(pytest.mark.skip(reason="torch is not installed"))
