"""Recorded plans, rewritten for workers that start from nothing.

Each row gets blocks that are its alone and is computed from position 0, whatever it had copied or
found in the cache: by the numerics contract its bits are the same. Knows nothing of results.

Of a row's positions, half-open intervals:
    [0, computed)        computed by the workers that replay
    [computed, reached)  was computed by the workers that were recorded, and is due
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mtactors.errors import JournalError
from mtactors.wire.messages import PROTOCOL_VERSION, KnownRow, NewRow, StepPlan


@dataclass(slots=True)
class PrivateRow:
    """A row that holds a slot; `length` counts its tokens, those being sampled included."""

    row: NewRow
    length: int
    reached: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


class PrivateRows:
    """The slots of the workers that replay.

    Args:
        block_size: tokens in a block.
        max_tokens: that one plan may compute.

    Attributes:
        rows: by slot.
        num_blocks: that were in use at once, at most.
    """

    def __init__(self, block_size: int, max_tokens: int) -> None:
        self.rows: dict[int, PrivateRow] = {}
        self.num_blocks = 0
        self._block_size = block_size
        self._max_tokens = max_tokens
        self._free: list[int] = []
        self._ended: list[int] = []
        self._seq = 0

    def begin(self, rows: StepPlan) -> None:
        """Start over with the rows that a segment opens with."""
        for slot in list(self.rows):
            self._end(slot)
        for row in rows.new:
            self._add(row, row.num_computed)

    def rewrite(self, plan: StepPlan) -> Iterator[StepPlan]:
        """Yield the plans that do what a recorded one did; each must have been executed in order.

        Raises:
            JournalError: it does not fit the plans before.
        """
        for slot in plan.ended:
            self._end(slot)
        for row in plan.new:
            if row.slot in self.rows:
                raise JournalError(f"{_step(plan)} starts a row in slot {row.slot}, which is taken")
            self._add(row, row.num_computed)
        draft = _Draft(self._max_tokens)
        named: list[NewRow | KnownRow] = [*plan.new, *plan.known]
        for each in named:
            private = self.rows.get(each.slot)
            if private is None:
                raise JournalError(f"{_step(plan)} names slot {each.slot}, which no row holds")
            private.reached += each.chunk_len
            if private.reached > private.length:
                raise JournalError(f"{_step(plan)} computes more of slot {each.slot} than there is")
            while private.computed < private.reached:
                if draft.room == 0:
                    yield self._number(draft)
                    draft = _Draft(self._max_tokens)
                self._compute(draft, each.slot, private, each.sample)
            private.length += each.sample
        if draft.new or draft.known:
            yield self._number(draft)

    def _add(self, row: NewRow, reached: int) -> None:
        self.rows[row.slot] = PrivateRow(row, len(row.tokens), reached)

    def _end(self, slot: int) -> None:
        private = self.rows.pop(slot, None)
        if private is not None and private.computed:
            self._ended.append(slot)
            self._free += private.blocks

    def _compute(self, draft: _Draft, slot: int, private: PrivateRow, sample: bool) -> None:
        """Plan as much of what is due as there is room for."""
        start = private.computed
        end = min(private.reached, start + draft.room)
        draft.room -= end - start
        sample = sample and end == private.reached
        count = -(-end // self._block_size) - len(private.blocks)
        blocks = [self._take_block() for _ in range(count)]
        private.blocks += blocks
        private.computed = end
        if start:
            draft.known.append(KnownRow(slot, end - start, blocks, sample))
            return
        row = private.row
        draft.new.append(
            replace(
                row,
                sampler=replace(row.sampler, logprobs=-1),
                num_computed=0,
                chunk_len=end,
                block_table=blocks,
                sample=sample,
                prompt_logprobs=-1,
            )
        )

    def _take_block(self) -> int:
        if self._free:
            return self._free.pop()
        self.num_blocks += 1
        return self.num_blocks - 1

    def _number(self, draft: _Draft) -> StepPlan:
        self._seq += 1
        ended, self._ended = self._ended, []
        return StepPlan(PROTOCOL_VERSION, 1, self._seq, draft.new, draft.known, ended, [])


@dataclass(slots=True)
class _Draft:
    """A plan being filled."""

    room: int
    new: list[NewRow] = field(default_factory=list)
    known: list[KnownRow] = field(default_factory=list)


def _step(plan: StepPlan) -> str:
    return f"the journal is damaged: step {plan.seq} of epoch {plan.epoch}"
