"""The pages in which workers note the step that they are in, read where no message can be had.

`step-<rank>` in the epoch's directory: two little-endian int64, the sequence number of the last
step that was begun and the `time.monotonic_ns()` of its beginning, 0 while no step runs. Knows
nothing of what to do about a step that takes too long.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import time
from pathlib import Path

_PAGE = struct.Struct("<qq")


class StepPages:
    """Maps the pages of a group; the files may be removed afterwards.

    A page that is missing or too short is left out: it serves to explain, nothing depends on it.
    """

    def __init__(self, directory: Path, world_size: int) -> None:
        self._pages: dict[int, mmap.mmap] = {}
        for rank in range(world_size):
            with (
                contextlib.suppress(OSError, ValueError),
                (directory / f"step-{rank}").open("rb") as file,
            ):
                self._pages[rank] = mmap.mmap(file.fileno(), _PAGE.size, access=mmap.ACCESS_READ)

    def steps(self) -> dict[int, tuple[int, float | None]]:
        """Return for each rank the last step that it began and the seconds that it is in it.

        The step is 0 before the first one, the seconds are None between steps.
        """
        return {rank: _read(page) for rank, page in self._pages.items()}

    def describe(self) -> str:
        """Say where each rank is, as far as it is known; empty when nothing is."""
        return ", ".join(_describe(rank, *state) for rank, state in self.steps().items())

    def close(self) -> None:
        """Unmap everything. May be repeated."""
        while self._pages:
            self._pages.popitem()[1].close()


def _read(page: mmap.mmap) -> tuple[int, float | None]:
    seq, began = _PAGE.unpack_from(page)
    return seq, (time.monotonic_ns() - began) / 1e9 if began else None


def _describe(rank: int, seq: int, seconds: float | None) -> str:
    if seconds is None:
        return f"rank {rank} has left step {seq}" if seq else f"rank {rank} has begun no step"
    return f"rank {rank} is in step {seq} since {seconds:.1f} s"
