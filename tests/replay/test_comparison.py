"""What differs between two executions of a step, in words."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from mtactors.errors import JournalError
from mtactors.replay.comparison import Sampled, first_difference, sampled_rows
from mtactors.wire.messages import StepResult
from tests.worker.plans import Plans, known_row, new_row

PLAN = Plans().next(new_row(5, [1, 2], [0]), known_row(2, 4, sample=False), known_row(3))


def _digest(logit: float, largest: float, total: float) -> bytes:
    return struct.pack("<3f", logit, largest, total)


RECORDED = StepResult(1, 1, [7, -1, 9], [], [], 0, _digest(1, 1, 2) + _digest(0.5, 3, 4))
SAME = {5: Sampled(7, _digest(1, 1, 2)), 3: Sampled(9, _digest(0.5, 3, 4))}


def test_rows_that_sample_are_found_by_their_slots() -> None:
    assert sampled_rows(PLAN, RECORDED) == SAME
    assert first_difference(PLAN, RECORDED, SAME) is None


def test_the_first_row_that_differs_is_named_with_both_values() -> None:
    now = {**SAME, 3: Sampled(8, _digest(0.5, 3, 4.5))}
    found = first_difference(PLAN, RECORDED, now)
    assert found is not None
    assert found.describe("request 'r'") == (
        "step 1 of epoch 1, rank 0, row 2 (slot 3, request 'r'): id 9 was recorded, 8 came now; "
        "logsumexp 4 (0x40800000) was recorded, 4.5 (0x40900000) came now"
    )
    now[5] = Sampled(7, _digest(1.5, 1, 2))
    found = first_difference(PLAN, RECORDED, now)
    assert found is not None and (found.row, found.slot) == (0, 5)
    assert found.what.startswith("logit 1 (0x3f800000) was recorded, 1.5")


def test_bits_count_not_values() -> None:
    zero = replace(RECORDED, digests=_digest(0.0, 1, 2) + _digest(0.5, 3, 4))
    now = {**SAME, 5: Sampled(7, _digest(-0.0, 1, 2))}
    found = first_difference(PLAN, zero, now)
    assert found is not None and "0x80000000 came now" in found.what.replace("(", "").replace(
        ")", ""
    )


@pytest.mark.parametrize(
    "result",
    [
        replace(RECORDED, ids=[7, -1]),
        replace(RECORDED, ids=[7, 8, 9]),
        replace(RECORDED, digests=b""),
    ],
)
def test_results_of_another_plan_are_damage(result: StepResult) -> None:
    with pytest.raises(JournalError, match="step 1 of epoch 1 does not fit its plan"):
        sampled_rows(PLAN, result)
