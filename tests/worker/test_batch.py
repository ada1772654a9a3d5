from __future__ import annotations

import numpy as np
import torch

from mtactors.worker import batch as batches
from mtactors.worker.batch import Batch, Batches
from mtactors.worker.rows import Rows
from tests.worker.plans import Plans, known_row, new_row

CPU = torch.device("cpu")


def make_rows() -> Rows:
    return Rows(max_rows=4, max_len=64, block_size=16, num_blocks=10, max_tokens=64)


def test_prefill_chunks_and_decode_rows_share_a_batch() -> None:
    rows, plans = make_rows(), Plans()
    chunks = rows.apply(plans.next(new_row(3, range(100, 116), [9])))
    rows.advance(chunks, np.array([42], np.int32))
    chunks = rows.apply(
        plans.next(
            new_row(0, range(20), [5, 2], computed=14),
            new_row(1, range(50, 53), [7], chunk=2),
            known_row(3, blocks=[1]),
        )
    )
    batch = batches.build(chunks, rows, CPU)
    assert batch.ids.tolist() == [14, 15, 16, 17, 18, 19, 50, 51, 42]
    assert batch.positions.tolist() == [14, 15, 16, 17, 18, 19, 0, 1, 16]
    assert batch.attention.query_start.tolist() == [0, 6, 8, 9]
    assert batch.attention.seq_lens.tolist() == [20, 2, 17]
    assert batch.attention.block_tables.tolist() == [[5, 2], [7, -1], [9, 1]]
    assert batch.attention.slot_mapping.tolist() == [
        *(5 * 16 + 14, 5 * 16 + 15, 2 * 16, 2 * 16 + 1, 2 * 16 + 2, 2 * 16 + 3),
        *(7 * 16, 7 * 16 + 1),
        1 * 16,
    ]
    assert batch.last_tokens.tolist() == [5, 7, 8]
    assert batch.alphas is None


def test_decode_rows_alone() -> None:
    rows, plans = make_rows(), Plans()
    chunks = rows.apply(plans.next(new_row(0, [1, 2], [0]), new_row(1, range(16), [1, 2])))
    rows.advance(chunks, np.array([7, 8], np.int32))
    batch = batches.build(rows.apply(plans.next(known_row(1), known_row(0))), rows, CPU)
    assert batch.ids.tolist() == [8, 7]
    assert batch.positions.tolist() == [16, 2]
    assert batch.attention.query_start.tolist() == [0, 1, 2]
    assert batch.attention.seq_lens.tolist() == [17, 3]
    assert batch.attention.slot_mapping.tolist() == [2 * 16, 2]
    assert batch.attention.block_tables.tolist() == [[1, 2], [0, -1]]


def test_dtypes_are_those_of_the_operation_table() -> None:
    rows = make_rows()
    batch = batches.build(rows.apply(Plans().next(new_row(0, range(3), [0]))), rows, CPU)
    tensors = (batch.ids, batch.positions, batch.attention.query_start, batch.attention.seq_lens)
    assert {tensor.dtype for tensor in tensors} == {torch.int32}
    assert batch.attention.block_tables.dtype is torch.int32
    assert batch.attention.block_tables.is_contiguous()
    assert batch.attention.slot_mapping.dtype is torch.int64


def test_alphas_are_per_token() -> None:
    rows = make_rows()
    plan = Plans().next(new_row(0, [1, 2], [0], rope_alpha=3.0), new_row(1, [1], [1]))
    batch = batches.build(rows.apply(plan), rows, CPU)
    assert batch.alphas is not None
    assert batch.alphas.tolist() == [3.0, 3.0, 1.0]


def as_lists(batch: Batch) -> list[object]:
    """Return what a batch says; of the block tables what is in use."""
    attention = batch.attention
    widest = -(-int(attention.seq_lens.max()) // 16)
    return [
        batch.ids.tolist(),
        batch.positions.tolist(),
        attention.query_start.tolist(),
        attention.seq_lens.tolist(),
        attention.block_tables[:, :widest].tolist(),
        attention.slot_mapping.tolist(),
        batch.last_tokens.tolist(),
        None if batch.alphas is None else batch.alphas.tolist(),
    ]


def test_steps_that_decode_share_tensors_and_say_what_others_would() -> None:
    rows, plans = make_rows(), Plans()
    made = Batches(rows, CPU)
    seen: list[Batch] = []
    long = new_row(2, range(30), [7, 3], rope_alpha=2.0)
    for planned, ended in (
        ([new_row(0, [1, 2], [0]), new_row(1, range(14), [1])], []),
        ([known_row(1), known_row(0)], []),
        ([known_row(1), known_row(0)], []),
        ([known_row(1, blocks=[2]), known_row(0)], []),
        ([known_row(0), known_row(1)], []),
        ([known_row(0), long], [1]),
        ([known_row(0), known_row(2)], []),
        ([known_row(0), known_row(2)], []),
        ([known_row(2, blocks=[5])], [0]),
    ):
        chunks = rows.apply(plans.next(*planned, ended=ended))
        batch = made.build(chunks)
        assert as_lists(batch) == as_lists(batches.build(chunks, rows, CPU))
        rows.advance(chunks, np.arange(len(chunks.slots), dtype=np.int32) + 50 + len(seen))
        seen.append(batch)
    assert seen[1] is seen[2] is seen[3]
    assert seen[3] is not seen[4]
    assert seen[6] is seen[7]
    # A row may hold blocks that it does not need yet.
    assert seen[8].attention.block_tables.tolist() == [[7, 3, 5, -1]]
