"""One step under construction, and what is remembered of it until its result arrives.

Knows the wire's rows; knows nothing of queues, blocks or slots being free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mtactors.errors import WireError
from mtactors.front.request import Row
from mtactors.front.results import check_logprobs
from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    BlockCopy,
    KnownRow,
    NewRow,
    StepPlan,
    StepResult,
)


@dataclass(slots=True)
class Step:
    """A plan being filled, then waiting for its result.

    Args:
        budget: tokens that may still be planned.
        rows: planned rows in the plan's order once it is sealed: new, then known.
        ends: parallel to `rows`: positions computed when the step is done.
        silent: indexes of rows that sample nothing.
        expected: blocks that results in flight are sure to free; None until it matters.
    """

    budget: int
    epoch: int
    seq: int
    new: list[NewRow] = field(default_factory=list)
    known: list[KnownRow] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    new_rows: list[Row] = field(default_factory=list)
    new_ends: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    expected: int | None = None

    @property
    def empty(self) -> bool:
        """Whether no row is planned."""
        return not (self.rows or self.new_rows)

    def plan_chunk(self, row: Row) -> tuple[int, bool]:
        """Plan as much of a row as the budget allows; return (chunk_len, sample)."""
        chunk = min(row.target - row.planned, self.budget)
        self.budget -= chunk
        row.planned += chunk
        row.in_flight += 1
        sample = row.planned == row.target and row.limit > 0
        if sample:
            row.target += 1
        return chunk, sample

    def add_known(self, row: Row, new_blocks: list[int]) -> None:
        """Plan the next chunk of a row that holds its slot."""
        chunk, sample = self.plan_chunk(row)
        self.known.append(KnownRow(row.slot, chunk, new_blocks, sample))
        self.rows.append(row)
        self.ends.append(row.planned)

    def add_new(self, row: Row, copies: list[BlockCopy]) -> None:
        """Plan the first chunk of a row that was just given slot and blocks."""
        computed = row.planned
        chunk, sample = self.plan_chunk(row)
        request = row.request
        asked = request.params.prompt_logprobs if row.wants_prompt_logprobs else None
        self.new.append(
            NewRow(
                slot=row.slot,
                request_id=request.request_id,
                choice=row.choice,
                sampler=row.family.sampler,
                tokens=row.tokens(),
                prompt_len=row.prompt_len,
                num_computed=computed,
                chunk_len=chunk,
                block_table=list(row.blocks),
                sample=sample,
                prompt_logprobs=-1 if asked is None else asked,
                grammar=request.grammar,
                rope_alpha=request.rope_alpha,
            )
        )
        self.new_rows.append(row)
        self.new_ends.append(row.planned)
        self.copies += copies

    def seal(self, ended: list[int]) -> StepPlan:
        """Close the step and return its plan."""
        self.rows = self.new_rows + self.rows
        self.ends = self.new_ends + self.ends
        new, known = self.new, self.known
        flags = [row.sample for row in new] + [row.sample for row in known]
        if not all(flags):
            self.silent = [index for index, sample in enumerate(flags) if not sample]
        return StepPlan(PROTOCOL_VERSION, self.epoch, self.seq, new, known, ended, self.copies)

    def check(self, result: StepResult) -> None:
        """Verify that a result answers this step.

        Raises:
            WireError: it is another step's, or its rows, ids or logprobs do not fit.
        """
        awaited = f"step {self.seq} of epoch {self.epoch}"
        if (result.epoch, result.seq) != (self.epoch, self.seq):
            raise WireError(
                f"a result of step {result.seq} of epoch {result.epoch} came where "
                f"{awaited} was awaited"
            )
        ids, count = result.ids, len(self.rows)
        if len(ids) != count:
            raise WireError(f"the result of {awaited} has {len(ids)} ids for {count} rows")
        unsampled = [index for index, token in enumerate(ids) if token < 0]
        if unsampled != self.silent:
            raise WireError(f"the result of {awaited} has ids where none belong, or lacks some")
        check_logprobs(result, self.rows)
