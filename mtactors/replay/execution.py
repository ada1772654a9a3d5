"""Goes through a recorded run: each plan is executed again, each result compared with its record.

Plans without a result are executed too: what killed the recorded workers may kill these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mtactors.errors import EngineDeadError, JournalError
from mtactors.journal.reader import Event, Opening, Run
from mtactors.replay.comparison import Sampled, first_difference, sampled_rows
from mtactors.replay.group import ReplayGroup
from mtactors.replay.private_rows import PrivateRows
from mtactors.wire.messages import StepPlan, StepResult


@dataclass(slots=True)
class Report:
    """What came out.

    Args:
        steps: compared. `tokens`: that they sampled.
        unanswered: plans without a recorded result that were executed.
        epochs: worker groups.
        problem: the first difference, or how the workers died; empty when all is equal.
    """

    steps: int = 0
    tokens: int = 0
    unanswered: int = 0
    epochs: int = 0
    problem: str = ""


async def replay(
    run: Run,
    *,
    newest: int = 0,
    model: Path | None = None,
    on_step: Callable[[Report], None] | None = None,
) -> Report:
    """Execute a run again, up to the first difference.

    Args:
        newest: so many segments, the newest; 0 for all.
        model: where the model is now; default: where it was.
        on_step: called after each step.

    Raises:
        JournalError: the journal is damaged, or cannot be compared here.
        ModelError, WorkerStartError: no workers like the recorded ones come up.
    """
    if not run.first.prompts:
        raise JournalError(
            "the journal has no token ids and cannot be replayed: write it with --journal-prompts"
        )
    told = run.first.configure
    rows = PrivateRows(told.block_size, told.max_num_batched_tokens)
    for event in run.events(newest):  # how many blocks it takes
        if isinstance(event, Opening):
            rows.begin(event.rows)
        elif isinstance(event, StepPlan):
            deque(rows.rewrite(event), maxlen=0)
    async with ReplayGroup(run.first, rows.num_blocks, model) as group:
        execution = _Execution(group, PrivateRows(told.block_size, told.max_num_batched_tokens))
        await execution.go(run.events(newest), on_step)
        return execution.report


class _Execution:
    def __init__(self, group: ReplayGroup, rows: PrivateRows) -> None:
        self.report = Report()
        self._group = group
        self._rows = rows
        self._waiting: deque[StepPlan] = deque()

    async def go(self, events: Iterable[Event], on_step: Callable[[Report], None] | None) -> None:
        """Execute until the end or the first problem."""
        for event in events:
            if isinstance(event, StepPlan):
                self._waiting.append(event)
            elif isinstance(event, StepResult):
                await self._compare(event)
                if on_step is not None:
                    on_step(self.report)
            else:
                await self._try_unanswered()
                self.report.epochs += event.rows.seq == 0 or not self.report.epochs
                self._rows.begin(event.rows)
            if self.report.problem:
                return
        await self._try_unanswered()

    async def _compare(self, recorded: StepResult) -> None:
        plan, report = self._waiting.popleft(), self.report
        now = await self._execute(plan)
        if now is None:
            return
        difference = first_difference(plan, recorded, now)
        if difference is not None:
            report.problem = difference.describe(self._owner(difference.slot))
            return
        report.steps += 1
        report.tokens += len(now)

    async def _try_unanswered(self) -> None:
        while self._waiting and not self.report.problem:
            if await self._execute(self._waiting.popleft(), "unanswered in the journal, ") is None:
                return
            self.report.unanswered += 1

    async def _execute(self, plan: StepPlan, note: str = "") -> dict[int, Sampled] | None:
        """Return what the plan's rows sample now, by slot; None when the workers die."""
        sampled: dict[int, Sampled] = {}
        for part in self._rows.rewrite(plan):
            try:
                sampled |= sampled_rows(part, await self._group.run(part))
            except EngineDeadError as error:
                where = f"step {plan.seq} of epoch {plan.epoch}"
                self.report.problem = f"{where}, {note}is not executed now: {error}"
                return None
        return sampled

    def _owner(self, slot: int) -> str:
        private = self._rows.rows[slot]
        row = private.row
        # The token being compared is counted already.
        position = private.length - 1 - row.prompt_len
        return f"request {row.request_id!r}, choice {row.choice}, output token {position}"
