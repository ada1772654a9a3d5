"""The likeliest ids from parts of logits: what the whole would give."""

from __future__ import annotations

import math

import pytest
import torch

from mtactors.kernels.likeliest import likeliest_of_all, likeliest_of_part
from mtactors.kernels.native import CpuOperations
from mtactors.kernels.reference import OPERATIONS as TRUTH


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("sampleable", [1, 9, 31, 60, 97])
@pytest.mark.parametrize("ties", [False, True])
def test_parts_give_the_ids_of_the_whole(
    ops: CpuOperations, ranks: int, sampleable: int, ties: bool
) -> None:
    each = -(-97 // ranks)
    logits = torch.randn(50, each * ranks, generator=torch.Generator().manual_seed(ranks))
    if ties:
        logits = logits.round()
    logits[3, 5:] = -math.inf
    for kernels in (ops, TRUTH):
        found = [
            likeliest_of_part(kernels, logits[:, at : at + each], sampleable - at)
            for at in range(0, each * ranks, each)
        ]
        ids = likeliest_of_all(torch.cat(found, 1), each)
        assert ids.dtype is torch.int32
        assert ids.tolist() == logits[:, :sampleable].argmax(-1).tolist()


def test_of_equal_logits_the_lowest_id_wins_across_parts(ops: CpuOperations) -> None:
    part = torch.tensor([[0.0, 2.0, 2.0, -1.0]])
    found = likeliest_of_part(ops, part, 4)
    assert found.tolist() == [[2.0, 1.0]]
    assert likeliest_of_all(torch.cat((found, found, found), 1), 4).tolist() == [1]
    nothing = likeliest_of_part(ops, part, 0)
    assert nothing.tolist() == [[-math.inf, 0.0]]
    assert likeliest_of_all(torch.cat((nothing, found), 1), 4).tolist() == [5]
