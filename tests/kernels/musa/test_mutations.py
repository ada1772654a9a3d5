"""Faults planted in the kernels' sources: the emulator or the comparison must see each of them.

All faults are compiled into one library, each behind a condition of its own, so that a test turns
one on. A fault whose line is no longer there fails: move it along with the source.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from mtactors.kernels.device import open_library
from tests.kernels.musa.checks import Check
from tests.kernels.musa.emulated import COMPILER, NO_COMPILER, Emulator, build
from tests.kernels.musa.faults import FAULTS, Fault, planted_sources

# One build for all: parallel test runs keep the tests of this file together.
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER),
    pytest.mark.xdist_group("mutations"),
]


class Planted(Emulator):
    """The library with all faults, none of them turned on at first."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ops = open_library(str(path))
        self.switch = ctypes.c_int.in_dll(self.library, "mt_planted")

    def noticed(self, number: int, right: Check) -> dict[int, list[str]]:
        """Return what was noticed of a fault, by warp size, in two orders of threads each."""
        seen: dict[int, list[str]] = {32: [], 128: []}
        self.switch.value = number
        try:
            for seed, warp in ((0, 32), (1, 32), (0, 128), (1, 128)):
                with self.running(seed, warp, guard=True), self.results_guarded():
                    try:
                        if not right(self.ops, self.guarded):
                            seen[warp].append("a wrong result")
                    except RuntimeError as error:
                        seen[warp].append(str(error))
        finally:
            self.switch.value = 0
        return seen


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Compile all faults."""
    folder = tmp_path_factory.mktemp("planted")
    return Planted(build(folder / "planted.so", planted_sources(folder)))


@pytest.mark.parametrize("right", sorted({fault.right for fault in FAULTS}, key=str))
def test_without_a_fault_all_is_right(planted: Planted, right: Check) -> None:
    assert planted.noticed(0, right) == {32: [], 128: []}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_noticed(planted: Planted, fault: Fault) -> None:
    seen = planted.noticed(FAULTS.index(fault) + 1, fault.right)
    # In every order: a test that runs in one must not need luck. A block of one warp of 128 needs
    # no barrier next to a shuffle.
    assert len(seen[32]) == 2, seen
