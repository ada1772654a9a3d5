"""Pages of workers in a step, read by the front."""

from __future__ import annotations

import struct
import time
from pathlib import Path

from mtactors.front.step_pages import StepPages


def test_pages_tell_where_each_rank_is_after_their_files_are_gone(tmp_path: Path) -> None:
    now = time.monotonic_ns()
    (tmp_path / "step-0").write_bytes(struct.pack("<qq", 7, now - 2_000_000_000))
    (tmp_path / "step-1").write_bytes(struct.pack("<qq", 6, 0))
    (tmp_path / "step-2").write_bytes(struct.pack("<qq", 0, 0))
    (tmp_path / "step-3").write_bytes(b"short")
    pages = StepPages(tmp_path, 5)
    for path in tmp_path.iterdir():
        path.unlink()
    first, *others = pages.describe().split(", ")
    assert first.startswith("rank 0 is in step 7 since 2.")
    assert others == ["rank 1 has left step 6", "rank 2 has begun no step"]
    step, seconds = pages.steps()[0]
    assert step == 7 and seconds is not None and seconds >= 2.0
    assert {rank: state for rank, state in pages.steps().items() if rank} == {
        1: (6, None),
        2: (0, None),
    }
    pages.close()
    pages.close()
    assert pages.describe() == ""
