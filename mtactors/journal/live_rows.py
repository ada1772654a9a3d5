"""What the workers' slots hold after the plan that was answered last, told from the outside.

Follows plans and results as they are recorded, so that a segment can open with all that its plans
build on. Knows nothing of files, and nothing of the scheduler's reasons.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, replace

from mtactors.errors import WireError
from mtactors.wire.messages import PROTOCOL_VERSION, NewRow, StepPlan, StepResult


@dataclass(slots=True)
class _Live:
    """A row that holds a slot: as it began, all its tokens, and positions that are computed."""

    row: NewRow
    tokens: array[int]
    computed: int


class LiveRows:
    """The rows of one worker group.

    Attributes:
        seq: of the last answered plan; 0 before.
        unanswered: plans since, each with what is recorded of it.
    """

    def __init__(self, epoch: int) -> None:
        self.seq = 0
        self.unanswered: deque[tuple[StepPlan, bytes]] = deque()
        self._epoch = epoch
        self._rows: dict[int, _Live] = {}

    def planned(self, plan: StepPlan, record: bytes) -> None:
        """Note a plan."""
        self.unanswered.append((plan, record))

    def answered(self, result: StepResult) -> None:
        """Note the result of the oldest unanswered plan.

        Raises:
            WireError: it is another plan's.
        """
        plan = self.unanswered[0][0] if self.unanswered else None
        if plan is None or (plan.epoch, plan.seq) != (result.epoch, result.seq):
            raise WireError(f"a result of step {result.seq} of epoch {result.epoch} that no plan")
        self.unanswered.popleft()
        self.seq = plan.seq
        rows = self._rows
        for slot in plan.ended:
            rows.pop(slot, None)
        ids = iter(result.ids)
        for new in plan.new:
            live = _Live(new, array("i", new.tokens), new.num_computed + new.chunk_len)
            rows[new.slot] = live
            if (token := next(ids)) >= 0:
                live.tokens.append(token)
        for known in plan.known:
            live = rows[known.slot]
            live.computed += known.chunk_len
            if (token := next(ids)) >= 0:
                live.tokens.append(token)

    def snapshot(self) -> StepPlan:
        """Return a plan whose new rows are the ones that hold a slot; it computes nothing."""
        new = [
            replace(
                live.row,
                tokens=live.tokens.tolist(),
                num_computed=live.computed,
                chunk_len=0,
                block_table=[],
                sample=False,
            )
            for live in self._rows.values()
        ]
        return StepPlan(PROTOCOL_VERSION, self._epoch, self.seq, new, [], [], [])
