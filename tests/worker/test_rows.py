from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtactors.errors import WireError
from mtactors.wire.messages import KnownRow, NewRow
from mtactors.worker.rows import Rows
from tests.worker.plans import Plans, known_row, new_row


def make_rows() -> Rows:
    return Rows(max_rows=4, max_len=64, block_size=16, num_blocks=10, max_tokens=48)


def advance(rows: Rows, plans: Plans, *planned: NewRow | KnownRow, ids: list[int]) -> None:
    chunks = rows.apply(plans.next(*planned))
    rows.advance(chunks, np.array(ids, np.int32))


def test_a_row_is_prefilled_in_chunks_and_decodes() -> None:
    rows, plans = make_rows(), Plans()
    chunks = rows.apply(plans.next(new_row(2, range(20), [4, 7], chunk=16)))
    assert (chunks.slots.tolist(), chunks.starts.tolist(), chunks.lengths.tolist()) == (
        [2],
        [0],
        [16],
    )
    assert not chunks.samples[0]
    rows.advance(chunks, np.empty(0, np.int32))
    advance(rows, plans, known_row(2, 4), ids=[99])
    assert rows.output(2).tolist() == [99]
    assert rows.prompt(2).tolist() == list(range(20))
    chunks = rows.apply(plans.next(known_row(2)))
    assert chunks.starts.tolist() == [20]
    assert rows.tokens[2, 20] == 99


def test_a_slot_can_be_reused_in_the_plan_that_ends_it() -> None:
    rows, plans = make_rows(), Plans()
    advance(rows, plans, new_row(0, [1, 2, 3], [5]), ids=[9])
    chunks = rows.apply(plans.next(new_row(0, [7], [6]), ended=[0]))
    assert chunks.starts.tolist() == [0]
    assert rows.prompt(0).tolist() == [7]
    assert rows.output(0).size == 0
    assert rows.block_tables[0].tolist() == [6, -1, -1, -1]


def test_a_resumed_row_keeps_its_output_position() -> None:
    rows = make_rows()
    rows.apply(Plans().next(new_row(1, [1, 2, 3, 4, 5], [0], prompt_len=3)))
    assert rows.output(1).tolist() == [4, 5]


def test_blocks_are_appended() -> None:
    rows, plans = make_rows(), Plans()
    advance(rows, plans, new_row(0, range(16), [3]), ids=[1])
    advance(rows, plans, known_row(0, blocks=[8]), ids=[2])
    assert rows.block_tables[0].tolist() == [3, 8, -1, -1]


def test_new_rows_come_before_known_ones() -> None:
    rows, plans = make_rows(), Plans()
    advance(rows, plans, new_row(3, [1], [0]), ids=[1])
    chunks = rows.apply(plans.next(known_row(3), new_row(1, [1, 2], [1])))
    assert chunks.slots.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("planned", "reason"),
    [
        ([known_row(1)], "no row holds"),
        ([known_row(-1)], "no row holds"),
        ([known_row(4)], "no row holds"),
        ([new_row(4, [1], [0])], "is not one"),
        ([new_row(0, [1], [0])], "taken"),
        ([new_row(1, [], [0])], "0 tokens"),
        ([new_row(1, range(70), [1, 2, 3, 4])], "70 tokens"),
        ([new_row(1, [1], [0], prompt_len=2)], "prompt of 2"),
        ([new_row(1, [1], [10])], "blocks"),
        ([new_row(1, [1], [-1])], "blocks"),
        ([new_row(1, [1], [1, 2, 3, 4, 5])], "blocks"),
        ([new_row(1, range(17), [1])], "room for 16"),
        ([new_row(1, [1, 2], [1], chunk=3, sample=False)], "has 2 tokens"),
        ([new_row(1, [1, 2], [1], chunk=0)], "has 2 tokens"),
        ([new_row(1, [1, 2], [1], chunk=1, sample=True)], "has 2 tokens"),
        ([new_row(1, [1, 2], [1], computed=-1)], "has 2 tokens"),
        ([known_row(0), known_row(0)], "twice"),
        ([known_row(0, 2)], "has 2 tokens"),
        ([new_row(1, range(48), [1, 2, 3]), known_row(0)], "49 tokens, over 48"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(planned: list[NewRow | KnownRow], reason: str) -> None:
    rows, plans = make_rows(), Plans()
    advance(rows, plans, new_row(0, [1], [0]), ids=[5])
    with pytest.raises(WireError, match=reason):
        rows.apply(plans.next(*planned))


@pytest.mark.parametrize(
    ("planned", "ended", "reason"),
    [
        ([known_row(0), known_row(1)], [1], "no row holds"),
        ([known_row(0), known_row(1)], [], "room for 16"),  # for the third time
        ([known_row(0), known_row(1, blocks=[10])], [], "blocks"),
    ],
)
def test_rows_that_were_checked_before_are_checked_again(
    planned: list[KnownRow], ended: list[int], reason: str
) -> None:
    rows, plans = make_rows(), Plans()
    advance(rows, plans, new_row(0, [1], [0]), new_row(1, range(14), [1]), ids=[5, 6])
    advance(rows, plans, known_row(0), known_row(1), ids=[7, 8])
    advance(rows, plans, known_row(0), known_row(1), ids=[9, 10])
    with pytest.raises(WireError, match=reason):
        rows.apply(plans.next(*planned, ended=ended))


def test_ending_what_is_no_slot_is_refused() -> None:
    with pytest.raises(WireError, match="ends slot 4"):
        make_rows().apply(Plans().next(ended=[4]))


@pytest.mark.parametrize("copy", [(0, 10, 1), (-1, 0, 1), (0, 1, 17), (0, 1, 0)])
def test_copies_outside_the_cache_are_refused(copy: tuple[int, int, int]) -> None:
    with pytest.raises(WireError, match="copies"):
        make_rows().check_copies([copy])


@given(
    prompt=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 40), max_size=8),
    outputs=st.lists(st.integers(0, 1000), max_size=8),
)
def test_any_chunking_ends_in_the_same_state(
    prompt: list[int], cuts: list[int], outputs: list[int]
) -> None:
    """However a prompt is cut, each position is computed once and the tokens are kept."""
    rows, plans = make_rows(), Plans()
    blocks, first = [1, 2, 3, 4], 111
    computed = 0
    for cut in [*cuts, len(prompt)]:
        chunk = min(cut, len(prompt) - computed)
        if not chunk:
            break
        last = computed + chunk == len(prompt)
        row = (
            known_row(0, chunk, sample=last)
            if computed
            else new_row(0, prompt, blocks, chunk=chunk)
        )
        advance(rows, plans, row, ids=[first] if last else [])
        computed += chunk
    for sampled in outputs:
        advance(rows, plans, known_row(0), ids=[sampled])
    assert rows.prompt(0).tolist() == prompt
    assert rows.output(0).tolist() == [first, *outputs]
    assert rows.num_computed[0] == rows.num_tokens[0] - 1
