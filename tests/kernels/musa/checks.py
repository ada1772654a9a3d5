"""Each operation of a device library once, float32, over what the kernels' edges are hit by.

A check puts its inputs where `put` says and returns whether the results are the reference's. Knows
nothing of what is wrong with a library.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtactors.kernels import AttentionBatch, SamplingBatch
from mtactors.kernels.device import DeviceOperations
from mtactors.kernels.reference import OPERATIONS as TRUTH
from mtactors.kernels.reference import PlainLinear

Guard = Callable[[Tensor], Tensor]
Check = Callable[[DeviceOperations, Guard], bool]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(actual: Tensor, expected: Tensor) -> bool:
    """Whether float32 results agree as far as sums in another order do."""
    return torch.allclose(actual, expected, atol=2e-5, rtol=2e-5)


def norm_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """Rows of an odd length whose end is where memory ends."""
    x, weight = put(rand(3, 1027)), put(rand(1027, seed=1))
    return same(ops.rms_norm(x, weight, 1e-5), TRUTH.rms_norm(x, weight, 1e-5))


def unaligned_norm_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """A row that begins between multiples of 16 bytes."""
    x, weight = put(rand(1, 129))[:, :-1], put(rand(128, seed=1))
    return same(ops.rms_norm(x, weight, 1e-5), TRUTH.rms_norm(x, weight, 1e-5))


def embedding_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """Ids of this shard, of the ones around it, and the first of the next."""
    table = PlainLinear(put(rand(6, 10)))
    ids = put(torch.tensor([3, 9, 8, 2, 0], dtype=torch.int32))
    return torch.equal(ops.embedding(ids, table, 3), TRUTH.embedding(ids, table, 3))


def rope_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """Partial rotation with scaled queries."""
    rows, table = put(torch.tensor([4, 0, 2], dtype=torch.int32)), put(rand(5, 12))
    scale = put(rand(3, seed=1))
    (q, k), (their_q, their_k) = [(put(rand(3, 4, 16)), put(rand(3, 2, 16))) for _ in range(2)]
    ops.rope(q, k, rows, table, "half", scale)
    TRUTH.rope(their_q, their_k, rows, table, "half", scale)
    return torch.equal(q, their_q) and torch.equal(k, their_k)


def kv_write_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """A slot to skip; caches of whole pages, so that one before them is no memory."""
    k, v = put(rand(3, 1, 64)), put(rand(3, 1, 64, seed=1))
    slots = put(torch.tensor([5, -1, 63]))
    ours, theirs = [[put(torch.zeros(4, 16, 1, 64)) for _ in range(2)] for _ in range(2)]
    ops.kv_write(k, v, ours[0], ours[1], slots)
    TRUTH.kv_write(k, v, theirs[0], theirs[1], slots)
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def silu_is_right(ops: DeviceOperations, put: Guard) -> bool:
    x = put(rand(3, 2 * 1027))
    return same(ops.silu_and_mul(x), TRUTH.silu_and_mul(x))


def copies_are_right(ops: DeviceOperations, put: Guard) -> bool:
    """More caches than a launch takes."""
    copies = put(torch.tensor([[0, 3, 16], [5, 1, 7]]))
    ours, theirs = ([put(rand(6, 16, 2, 3, seed=i)) for i in range(66)] for _ in range(2))
    ops.copy_blocks(ours, copies)
    TRUTH.copy_blocks(theirs, copies)
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def attention_is_right(ops: DeviceOperations, put: Guard, window: int = 0) -> bool:
    """A long decode row, a prompt and a chunk; what belongs to no sequence is NaN."""
    block_size, lengths, queries = 16, [530, 37, 70], [1, 37, 6]
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(2))
    tables = torch.full((3, max(counts)), -1, dtype=torch.int32)
    caches = [torch.full((sum(counts), block_size, 2, 32), torch.nan) for _ in range(2)]
    taken = 0
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        blocks = order[taken : taken + count]
        tables[row, :count] = blocks.int()
        taken += count
        for index, cache in enumerate(caches):
            filled = torch.full((count * block_size, 2, 32), torch.nan)
            filled[:length] = rand(length, 2, 32, seed=10 * row + index)
            cache[blocks] = filled.view(count, block_size, 2, 32)
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    batch = AttentionBatch(
        put(starts), put(torch.tensor(lengths, dtype=torch.int32)), put(tables), put(starts[:0])
    )
    q, keys, values = put(rand(sum(queries), 6, 32, seed=5)), put(caches[0]), put(caches[1])
    arguments = (q, keys, values, batch, 32**-0.5)
    slopes = put(torch.tensor([0.5, 0.25, 0.125, 0.06, 0.03, 0.015]))
    ours = ops.paged_attention(*arguments, window=window, alibi_slopes=slopes)
    theirs = TRUTH.paged_attention(*arguments, window=window, alibi_slopes=slopes)
    return same(ours, theirs)


def windowed_attention_is_right(ops: DeviceOperations, put: Guard) -> bool:
    return attention_is_right(ops, put, window=21)


def sampling_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """Flat logits in three chunks, and beyond what is sampleable the greatest of all."""
    rows, vocab, sampleable = 16, 8400, 8300
    generator = torch.Generator().manual_seed(3)
    logits = rand(rows, vocab, seed=4)
    logits[:, sampleable:] = 50.0
    none = put(torch.zeros(0, dtype=torch.int32))
    offsets = put(torch.zeros(rows + 1, dtype=torch.int32))
    ones, zeros = put(torch.ones(rows)), put(torch.zeros(rows))
    batch = SamplingBatch(
        temperature=put(torch.tensor([0.0, 0.5, 1.0, 2.0] * 4)),
        top_k=put(torch.tensor([0] * 4 + [2] * 8 + [0] * 4, dtype=torch.int32)),
        top_p=put(torch.tensor([1.0] * 12 + [0.5] * 4)),
        min_p=zeros,
        repetition_penalty=ones,
        presence_penalty=zeros,
        frequency_penalty=zeros,
        seeds=put(torch.arange(rows)),
        choices=put(torch.zeros(rows, dtype=torch.int32)),
        positions=put(torch.arange(rows, dtype=torch.int32)),
        num_logprobs=put(torch.full((rows,), -1, dtype=torch.int32)),
        prompt_tokens=none,
        prompt_offsets=offsets,
        output_tokens=none,
        output_offsets=offsets,
        bias_ids=none,
        bias_values=put(torch.zeros(0)),
        bias_offsets=offsets,
        banned_ids=none,
        banned_offsets=offsets,
        mask=put(torch.randint(-(2**31), 2**31, (rows, 263), generator=generator).int()),
        sampleable=sampleable,
    )
    return torch.equal(ops.sample(put(logits), batch), TRUTH.sample(logits, batch))
