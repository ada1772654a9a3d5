"""The likeliest ids over logits that are cut across ranks by ids, without gathering them.

Each rank finds the greatest of its own part; two numbers a row and rank cross over instead of all
logits. Knows no process group: the caller gathers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtactors.kernels import Operations, SamplingBatch


def greedy_batch(rows: int, sampleable: int, device: torch.device) -> SamplingBatch:
    """Return a batch of rows that take the likeliest id and nothing else."""
    floats = torch.zeros(rows, device=device)
    ones = torch.ones(rows, device=device)
    ints = torch.zeros(rows, dtype=torch.int32, device=device)
    offsets = torch.zeros(rows + 1, dtype=torch.int32, device=device)
    return SamplingBatch(
        temperature=floats,
        top_k=ints,
        top_p=ones,
        min_p=floats,
        repetition_penalty=ones,
        presence_penalty=floats,
        frequency_penalty=floats,
        seeds=torch.zeros(rows, dtype=torch.int64, device=device),
        choices=ints,
        positions=ints,
        num_logprobs=ints - 1,
        prompt_tokens=ints[:0],
        prompt_offsets=offsets,
        output_tokens=ints[:0],
        output_offsets=offsets,
        bias_ids=ints[:0],
        bias_values=floats[:0],
        bias_offsets=offsets,
        banned_ids=ints[:0],
        banned_offsets=offsets,
        mask=None,
        sampleable=sampleable,
    )


def likeliest_of_part(ops: Operations, part: Tensor, sampleable: int) -> Tensor:
    """Return each row's greatest logit and its lowest id in the part: (R, 2) float32.

    Args:
        part: (R, N) float32, one rank's logits. Ids below 2^24 are exact in float32.
        sampleable: ids of the part from here on do not count; may be 0 or less.
    """
    count = min(sampleable, part.shape[1])
    if count <= 0:
        return part.new_tensor([float("-inf"), 0.0]).repeat(len(part), 1)
    ids = ops.sample(part, greedy_batch(len(part), count, part.device))
    return torch.cat((part.gather(1, ids.long().unsqueeze(1)), ids.unsqueeze(1).float()), 1)


def likeliest_of_all(found: Tensor, each: int) -> Tensor:
    """Return the lowest id of the greatest logit of each row: (R,) int32.

    Args:
        found: (R, 2 * ranks), what `likeliest_of_part` gave each rank, rank 0's first.
        each: ids in each part but the last.
    """
    best, ids = found[:, 0], found[:, 1]
    for rank in range(1, found.shape[1] // 2):
        value, own = found[:, 2 * rank], found[:, 2 * rank + 1]
        # Of equal logits the lower rank's stays: its ids are lower.
        greater = value > best
        best = torch.where(greater, value, best)
        ids = torch.where(greater, own + rank * each, ids)
    return ids.int()
