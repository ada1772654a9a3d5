"""Paged attention of the device kernels: near the reference, and one row's bits in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from mtactors.errors import ConfigError
from mtactors.kernels import AttentionBatch
from mtactors.kernels.device import DeviceOperations
from mtactors.kernels.reference import OPERATIONS as TRUTH
from tests.kernels.musa.emulated import Emulator

# Sums and exponentials are float32: with values of variance 1 they end within 4e-6. A result is
# rounded once: at most 2^-11 and 2^-8 of it for the 11 and 8 bits of float16 and bfloat16.
ABSOLUTE = 4e-6
RELATIVE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}

# (query heads, kv heads, head size, block size): each head size of the families and each way to
# divide a block, groups of one, few, and more than a block's rows.
LAYOUTS = [
    ((9, 3, 64, 64), torch.float16),
    ((4, 4, 32, 16), torch.bfloat16),
    ((8, 2, 80, 32), torch.float16),
    ((6, 1, 96, 128), torch.bfloat16),
    ((5, 1, 112, 64), torch.float32),
    ((12, 1, 128, 64), torch.float16),
    ((3, 3, 128, 16), torch.float32),
    ((40, 1, 16, 48), torch.float32),
    ((4, 2, 256, 64), torch.float16),
    ((2, 1, 160, 32), torch.float32),
]
# Queries and lengths of the sequences of a batch; one has no query this time.
QUERIES = [1, 7, 0, 1, 33, 2]
LENGTHS = [1, 129, 40, 300, 65, 530]


@dataclass(frozen=True)
class Case:
    """A filled cache, a batch that reads it and its queries."""

    k_cache: Tensor
    v_cache: Tensor
    batch: AttentionBatch
    q: Tensor
    window: int = 0
    slopes: Tensor | None = None

    def run(self, ops: DeviceOperations) -> Tensor:
        """Return the kernels' result."""
        return ops.paged_attention(
            self.q, self.k_cache, self.v_cache, self.batch, self.q.shape[-1] ** -0.5,
            window=self.window, alibi_slopes=self.slopes,
        )  # fmt: skip

    def truth(self) -> Tensor:
        """Return the reference's float32 result."""
        caches = self.k_cache.float(), self.v_cache.float()
        return TRUTH.paged_attention(
            self.q.float(), *caches, self.batch, self.q.shape[-1] ** -0.5, window=self.window,
            alibi_slopes=self.slopes,
        )  # fmt: skip

    def rows(self, sequence: int) -> slice:
        """Return where the result has a sequence's queries."""
        return slice(*self.batch.query_start[sequence : sequence + 2].tolist())

    def chunks(self, sequence: int, ends: Sequence[int]) -> Case:
        """Return a batch whose sequences are chunks of the queries of one, up to each of `ends`.

        Each sees the keys up to its own last query, all of them in the same blocks.
        """
        rows = self.rows(sequence)
        before = int(self.batch.seq_lens[sequence]) - (rows.stop - rows.start)
        batch = AttentionBatch(
            query_start=ints([0, *ends]),
            seq_lens=ints([before + end for end in ends]),
            block_tables=self.batch.block_tables[sequence].repeat(len(ends), 1),
            slot_mapping=self.batch.slot_mapping,
        )
        return replace(self, batch=batch, q=self.q[rows][: ends[-1]])


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@cache
def make_case(
    layout: tuple[int, int, int, int],
    dtype: torch.dtype,
    queries: tuple[int, ...] = tuple(QUERIES),
    lengths: tuple[int, ...] = tuple(LENGTHS),
) -> Case:
    """Scatter the sequences' blocks; what lies behind their ends is NaN and must not matter."""
    heads, kv_heads, dim, block = layout
    random = torch.Generator().manual_seed(heads * dim)
    counts = [-(-length // block) for length in lengths]
    shape = (sum(counts) + 1, block, kv_heads, dim)
    caches = [torch.randn(shape, generator=random).to(dtype) for _ in range(2)]
    tables = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
    free = torch.randperm(shape[0], generator=random).tolist()
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine, free = free[:count], free[count:]
        tables[row, :count] = ints(mine)
        if length % block:
            for kept in caches:
                kept[mine[-1], length % block :] = float("nan")
    batch = AttentionBatch(
        query_start=torch.tensor([0, *queries]).cumsum(0).int(),
        seq_lens=ints(lengths),
        block_tables=tables,
        slot_mapping=torch.empty(0, dtype=torch.int64),
    )
    fused = torch.randn(sum(queries), (heads + 2) * dim, generator=random).to(dtype)
    return Case(caches[0], caches[1], batch, fused[:, : heads * dim].view(-1, heads, dim))


def moved(case: Case, block: int) -> Case:
    """Return the case with its keys in other blocks of another size, tables wider than needed."""
    lengths = case.batch.seq_lens.tolist()
    counts = [-(-length // block) for length in lengths]
    free = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(block)).tolist()
    tables = torch.full((len(lengths), max(counts) + 40), -1, dtype=torch.int32)
    shape = (sum(counts), block, *case.k_cache.shape[2:])
    targets = [torch.full(shape, float("nan"), dtype=case.q.dtype) for _ in range(2)]
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine, free = free[:count], free[count:]
        tables[row, :count] = ints(mine)
        positions = torch.arange(length)
        old = case.k_cache.shape[1]
        source = case.batch.block_tables[row].long()[positions // old], positions % old
        place = torch.tensor(mine)[positions // block], positions % block
        for target, cached in zip(targets, (case.k_cache, case.v_cache), strict=True):
            target[place] = cached[source]
    batch = replace(case.batch, block_tables=tables)
    return replace(case, k_cache=targets[0], v_cache=targets[1], batch=batch)


def with_slopes(case: Case) -> Case:
    return replace(case, slopes=torch.linspace(0.01, 0.3, case.q.shape[1]))


def assert_near_truth(case: Case, actual: Tensor) -> None:
    relative = RELATIVE[case.q.dtype]
    torch.testing.assert_close(actual.float(), case.truth(), atol=ABSOLUTE, rtol=relative)


@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
def test_near_the_reference(
    ops: DeviceOperations, layout: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    plain = make_case(layout, dtype)
    for case in (plain, replace(with_slopes(plain), window=50)):
        assert_near_truth(case, case.run(ops))


@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
def test_chunks_and_single_tokens_give_the_same_bits(
    ops: DeviceOperations, layout: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    for case in (
        make_case(layout, dtype),
        replace(with_slopes(make_case(layout, dtype)), window=70),
    ):
        whole = case.run(ops)
        for sequence, count in enumerate(QUERIES):
            rows = case.rows(sequence)
            # All at once, in chunks with a single token among them, and as decode rows.
            for ends in ([count], [count // 3, count // 3 + 1, count], range(1, count + 1)):
                part = case.chunks(sequence, list(ends)) if count else case
                assert torch.equal(part.run(ops), whole[rows] if count else whole)


@pytest.mark.parametrize(("layout", "dtype"), [LAYOUTS[0], LAYOUTS[5], LAYOUTS[6], LAYOUTS[9]])
def test_where_the_blocks_are_does_not_matter(
    ops: DeviceOperations, layout: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    case = with_slopes(make_case(layout, dtype))
    whole = case.run(ops)
    for block in (16, 32, 64, 128):
        assert torch.equal(moved(case, block).run(ops), whole)


@pytest.mark.parametrize("window", [1, 2, 31, 255, 256, 257, 300])
def test_window_edges(ops: DeviceOperations, window: int) -> None:
    case = make_case((4, 2, 16, 32), torch.float32, (40, 1, 3), (560, 513, 258))
    case = replace(case, window=window)
    whole = case.run(ops)
    assert_near_truth(case, whole)
    for sequence in range(3):
        rows = case.rows(sequence)
        ends = list(range(1, rows.stop - rows.start + 1))
        assert torch.equal(case.chunks(sequence, ends).run(ops), whole[rows])


def test_slots_that_no_query_sees_are_not_read(ops: DeviceOperations, emulator: Emulator) -> None:
    """Blocks below the window and behind the end lie where there is no memory.

    The lowest key of the first is the first of a block in the middle of a tile, and the last key
    of the last, which has no room for a whole tile of dimensions, is the last of the caches.
    """
    lengths, queries = (420, 65, 310, 16), (1, 5, 33, 1)
    case = make_case((6, 2, 80, 16), torch.float16, queries, lengths)
    blocks = len(case.k_cache)
    shift = blocks - 1 - int(case.batch.block_tables[3, 0])
    tables = (case.batch.block_tables + shift) % blocks
    case = replace(
        case,
        k_cache=case.k_cache.roll(shift, 0),
        v_cache=case.v_cache.roll(shift, 0),
        batch=replace(case.batch, block_tables=tables.clone()),
        window=52,
    )
    for row, (length, count) in enumerate(zip(lengths, queries, strict=True)):
        tables[row, : max(0, length - count - 51) // 16] = 2**24
        tables[row, -(-length // 16) :] = 2**24
    hidden = replace(
        case,
        k_cache=emulator.guarded(case.k_cache),
        v_cache=emulator.guarded(case.v_cache),
        q=emulator.guarded(case.q),
        batch=replace(
            case.batch,
            query_start=emulator.guarded(case.batch.query_start),
            seq_lens=emulator.guarded(case.batch.seq_lens),
            block_tables=emulator.guarded(tables),
        ),
        slopes=emulator.guarded(torch.zeros(6)),
    )
    with emulator.running(guard=True):
        actual = hidden.run(ops)
    assert torch.equal(actual, case.run(ops))


@pytest.mark.parametrize(
    ("layout", "dtype"), [LAYOUTS[0], LAYOUTS[3], LAYOUTS[5], LAYOUTS[6], LAYOUTS[8], LAYOUTS[9]]
)
def test_order_of_threads_and_warp_size_do_not_matter(
    ops: DeviceOperations,
    emulator: Emulator,
    layout: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> None:
    case = with_slopes(make_case(layout, dtype, (1, 9, 1), (70, 33, 290)))
    expected = case.run(ops)
    for seed, warp in ((0, 128), (1, 32), (2, 128), (3, 32)):
        with emulator.running(seed, warp):
            assert torch.equal(case.run(ops), expected)


def test_blocks_that_add_their_partitions_themselves(
    ops: DeviceOperations, emulator: Emulator
) -> None:
    """Enough chunks to fill a device are not split: one launch, where one of them takes two."""
    case = make_case((128, 128, 16, 32), torch.float16, (2, 2, 2, 2), (300, 257, 40, 258))
    before = emulator.launches
    whole = case.run(ops)
    decode_rows, chunks = 2, 1
    assert emulator.launches - before == decode_rows + chunks
    for sequence in range(4):
        before = emulator.launches
        assert torch.equal(case.chunks(sequence, [2]).run(ops), whole[case.rows(sequence)])
        assert emulator.launches - before == 2


def test_rounds_when_partial_results_would_be_too_many(
    ops: DeviceOperations, emulator: Emulator
) -> None:
    """Tables for half a million keys: 64 MiB hold the partial results of 7 of the 9 rows."""
    lengths = (300, 257, 1, 512, 513, 20, 256, 290, 600)
    case = make_case((64, 8, 16, 64), torch.float16, (1,) * 9, lengths)
    narrow = case.run(ops)
    wide = torch.full((9, 8192), -1, dtype=torch.int32)
    wide[:, : case.batch.block_tables.shape[1]] = case.batch.block_tables
    before = emulator.launches
    actual = replace(case, batch=replace(case.batch, block_tables=wide)).run(ops)
    assert emulator.launches - before == 4
    assert torch.equal(actual, narrow)
    assert_near_truth(case, narrow)


def test_queries_that_are_not_aligned(ops: DeviceOperations) -> None:
    case = make_case((3, 1, 64, 16), torch.float16)
    storage = torch.zeros(case.q.shape[0], 3 * 64 + 1, dtype=torch.float16)
    odd = storage[:, 1:].view(-1, 3, 64)
    odd.copy_(case.q)
    assert torch.equal(replace(case, q=odd).run(ops), case.run(ops))


def test_a_batch_without_queries(ops: DeviceOperations) -> None:
    case = make_case((3, 1, 64, 16), torch.float16, (0, 0), (5, 40))
    assert case.run(ops).shape == (0, 3 * 64)


@pytest.mark.parametrize("dim", [4, 20, 264])
def test_head_sizes_without_a_kernel_are_refused(ops: DeviceOperations, dim: int) -> None:
    case = make_case((2, 1, dim, 16), torch.float32)
    with pytest.raises(ConfigError, match="no kernel for such shapes"):
        case.run(ops)


@pytest.mark.usefixtures("emulator")  # elsewhere the copies are aligned
def test_caches_that_are_not_aligned_are_refused(ops: DeviceOperations) -> None:
    case = make_case((2, 1, 64, 16), torch.float16)
    storage = torch.zeros(case.k_cache.numel() + 1, dtype=torch.float16)
    odd = storage[1:].view(case.k_cache.shape)
    with pytest.raises(ConfigError, match="no kernel for such shapes"):
        replace(case, k_cache=odd).run(ops)
