"""Paged attention of the CPU kernels: near the reference, and one row's bits in every batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from mtactors.errors import ConfigError
from mtactors.kernels import AttentionBatch
from mtactors.kernels.native import CpuOperations
from mtactors.kernels.reference import OPERATIONS as TRUTH

# Outputs are means of values of variance 1. float32 differs by rounding; fp16 and bf16 results are
# rounded (2^-11 and 2^-8 of values up to 4), and bf16 builds with pair products round P to bf16.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# (query heads, kv heads, head size, block size)
LAYOUTS = [
    (9, 3, 64, 64),
    (4, 4, 32, 16),
    (8, 2, 80, 32),
    (6, 1, 96, 128),
    (5, 1, 112, 64),
    (4, 2, 128, 64),
    (40, 1, 64, 16),
    (2, 1, 256, 64),
    (4, 2, 16, 16),
]
CASES = [(layout, torch.bfloat16) for layout in LAYOUTS]
CASES += [(layout, torch.float32) for layout in LAYOUTS[:6:2]]
CASES += [(layout, torch.float16) for layout in LAYOUTS[1:6:2]]
# The last is long enough that an item fetches its own keys ahead.
LENGTHS = [1, 64, 65, 200, 300, 17, 600]
QUERIES = [1, 64, 1, 77, 300, 5, 3]


@dataclass(frozen=True)
class Case:
    """A filled cache, a batch that reads it and its queries."""

    k_cache: Tensor
    v_cache: Tensor
    batch: AttentionBatch
    q: Tensor

    def run(self, ops: CpuOperations, window: int = 0, slopes: Tensor | None = None) -> Tensor:
        scale = self.q.shape[-1] ** -0.5
        return ops.paged_attention(
            self.q, self.k_cache, self.v_cache, self.batch, scale, window=window,
            alibi_slopes=slopes,
        )  # fmt: skip

    def alone(self, sequence: int, first: int, count: int) -> Case:
        """Return queries first..first+count-1 of one sequence as a batch of their own."""
        start, end = self.batch.query_start[sequence : sequence + 2].tolist()
        length = int(self.batch.seq_lens[sequence]) - (end - start) + first + count
        batch = AttentionBatch(
            query_start=torch.tensor([0, count], dtype=torch.int32),
            seq_lens=torch.tensor([length], dtype=torch.int32),
            block_tables=self.batch.block_tables[sequence : sequence + 1],
            slot_mapping=self.batch.slot_mapping,
        )
        q = self.q[start + first : start + first + count]
        return Case(self.k_cache, self.v_cache, batch, q)


@cache
def make_case(heads: int, kv_heads: int, dim: int, block: int, dtype: torch.dtype) -> Case:
    """Scatter the sequences' blocks; what lies behind their ends is NaN and must not matter."""
    random = torch.Generator().manual_seed(heads * dim)
    counts = [-(-length // block) for length in LENGTHS]
    total = sum(counts) + 1
    shape = (total, block, kv_heads, dim)
    caches = [torch.randn(shape, generator=random).to(dtype) for _ in range(2)]
    tables = torch.full((len(LENGTHS), max(counts)), -1, dtype=torch.int32)
    free = torch.randperm(total, generator=random).tolist()
    for row, (length, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        mine, free = free[:count], free[count:]
        tables[row, :count] = torch.tensor(mine)
        if length % block:
            for cache in caches:
                cache[mine[-1], length % block :] = float("nan")
    batch = AttentionBatch(
        query_start=torch.tensor([0, *QUERIES]).cumsum(0).int(),
        seq_lens=torch.tensor(LENGTHS, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.empty(0, dtype=torch.int64),
    )
    fused = torch.randn(sum(QUERIES), (heads + 2) * dim, generator=random).to(dtype)
    return Case(caches[0], caches[1], batch, fused[:, : heads * dim].view(-1, heads, dim))


@cache
def truth(
    layout: tuple[int, int, int, int], dtype: torch.dtype, window: int, alibi: bool
) -> Tensor:
    """Return the reference's result: the same for every build."""
    case = make_case(*layout, dtype)
    return TRUTH.paged_attention(
        case.q, case.k_cache, case.v_cache, case.batch, layout[2] ** -0.5, window=window,
        alibi_slopes=slopes_of(layout[0], alibi),
    )  # fmt: skip


def slopes_of(heads: int, alibi: bool) -> Tensor | None:
    return torch.linspace(0.01, 0.3, heads) if alibi else None


@pytest.mark.parametrize(("layout", "dtype"), CASES)
def test_near_the_reference(
    ops: CpuOperations, layout: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    case = make_case(*layout, dtype)
    ops.set_threads(2)
    for window, alibi in ((0, False), (50, False), (0, True)):
        slopes = slopes_of(layout[0], alibi)
        actual = case.run(ops, window, slopes)
        expected = truth(layout, dtype, window, alibi)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("layout", "dtype"), CASES)
@pytest.mark.parametrize(("window", "alibi"), [(0, False), (70, True)])
def test_prefill_chunks_and_decode_give_the_same_bits(
    ops: CpuOperations,
    layout: tuple[int, int, int, int],
    dtype: torch.dtype,
    window: int,
    alibi: bool,
) -> None:
    case = make_case(*layout, dtype)
    slopes = slopes_of(layout[0], alibi)
    ops.set_threads(2)
    whole = case.run(ops, window, slopes)
    ops.set_threads(1)
    assert torch.equal(whole, case.run(ops, window, slopes))
    for sequence, count in enumerate(QUERIES):
        start = int(case.batch.query_start[sequence])
        chunks = [(0, min(17, count)), (count // 2, count - count // 2)]
        rows = {0, 15, 16, 63, 64, 192, count - 1}
        singles = [(row, 1) for row in sorted(rows) if row < count]
        for first, length in chunks + singles:
            part = case.alone(sequence, first, length).run(ops, window, slopes)
            assert torch.equal(part, whole[start + first : start + first + length])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scores_that_grow_from_tile_to_tile(ops: CpuOperations, dtype: torch.dtype) -> None:
    # A score grows by one with each key: by more than an exponential in float32 holds.
    case = make_case(9, 3, 64, 64, dtype)
    length = LENGTHS[4]
    direction = torch.ones(64) / 8
    growing = torch.arange(length).view(-1, 1, 1) * direction
    keys = case.k_cache.clone()
    table = case.batch.block_tables[4].long()
    blocks = keys[table[: -(-length // 64)]].view(-1, 3, 64)
    blocks[:length] = growing.to(dtype)
    keys[table[: -(-length // 64)]] = blocks.view(-1, 64, 3, 64)
    q = (case.q + 8 * direction).to(dtype)
    whole = Case(keys, case.v_cache, case.batch, q).alone(4, 0, length)
    ops.set_threads(2)
    actual = whole.run(ops)
    expected = TRUTH.paged_attention(whole.q, whole.k_cache, whole.v_cache, whole.batch, 64**-0.5)
    # Products of up to 2400 in float32 are not exact, and their errors are in the exponent.
    tolerance = max(TOLERANCE[dtype], 5e-4)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
    for row in (0, 63, 64, 200, length - 1):
        assert torch.equal(whole.alone(0, row, 1).run(ops), actual[row : row + 1])


def test_a_block_size_that_no_tile_fits_is_refused(ops: CpuOperations) -> None:
    case = make_case(2, 1, 32, 16, torch.float32)
    odd = torch.zeros(4, 24, 1, 32)
    with pytest.raises(ConfigError, match="multiple of 16"):
        ops.paged_attention(case.q, odd, odd, case.batch, 1.0)
