"""`Journal`: records groups, plans and results as they happen, and never stands in their way.

A disk that is full, or fails, ends the journal with one warning; whoever writes goes on. Knows
nothing of engines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mtactors.journal.live_rows import LiveRows
from mtactors.journal.records import GroupFacts, Kind, pack
from mtactors.journal.ring import Ring
from mtactors.wire.codec import encode
from mtactors.wire.messages import NewRow, StepPlan, StepResult

logger = logging.getLogger(__name__)


class Journal:
    """Writes the journal of one engine.

    Args:
        directory: where; made if it does not exist.
        max_bytes: that its files may take.
        prompts: whether token ids, of prompts and outputs, are recorded.

    Raises:
        JournalError: another process writes there.
        OSError: the directory cannot be used.

    Attributes:
        stopped: nothing is written any more.
    """

    def __init__(self, directory: Path, max_bytes: int, *, prompts: bool) -> None:
        self.stopped = False
        self._directory = directory
        self._ring = Ring(directory, max_bytes)
        self._prompts = prompts
        self._group = b""
        self._rows = LiveRows(0)

    def begin(self, group: GroupFacts) -> None:
        """Record that a group begins: nothing is left of the one before."""
        self._group = pack(Kind.GROUP, group.encode())
        self._rows = LiveRows(group.epoch)
        if self._ring.full:
            self._write(self._open_segment)
        else:
            self._write(lambda: self._ring.append(self._opening()))

    def plan(self, plan: StepPlan, frame: bytes) -> None:
        """Record a plan that is about to be sent.

        Args:
            frame: the plan, encoded.
        """
        if self.stopped:
            return
        if plan.new and not self._prompts:
            plan = replace(plan, new=[_without_tokens(row) for row in plan.new])
            frame = encode(plan)
        record = pack(Kind.PLAN, frame)
        self._rows.planned(plan, record)
        self._write(lambda: self._ring.append(record))

    def result(self, result: StepResult) -> None:
        """Record the result of the oldest plan that has none."""
        if self.stopped:
            return
        ids = result.ids if self._prompts else [min(token, 0) for token in result.ids]
        result = replace(result, ids=ids, logprobs=[], prompt_logprobs=[])
        self._rows.answered(result)
        record = pack(Kind.RESULT, encode(result))
        self._write(lambda: self._ring.append(record))
        if self._ring.full:
            self._write(self._open_segment)

    def close(self) -> None:
        """Stop writing. May be repeated."""
        self.stopped = True
        self._ring.close()

    def _open_segment(self) -> None:
        self._ring.open_segment(self._opening())

    def _opening(self) -> bytes:
        """Return what comes before the next plan where nothing before it is known."""
        rows = pack(Kind.ROWS, encode(self._rows.snapshot()))
        return b"".join([self._group, rows, *(record for _, record in self._rows.unanswered)])

    def _write(self, write: Callable[[], None]) -> None:
        if self.stopped:
            return
        try:
            write()
        except OSError as error:
            reason = error.strerror or error
            logger.warning(
                "the journal in %s ends here, serving goes on: %s", self._directory, reason
            )
            self.close()


def _without_tokens(row: NewRow) -> NewRow:
    """Return a row with zeros for its tokens, and without what else is made of words."""
    sampler = replace(
        row.sampler,
        stop_ids=[],
        bias_ids=[],
        bias_values=[],
        allowed_ids=[],
        bad_ids=[],
        bad_lengths=[],
    )
    return replace(row, tokens=[0] * len(row.tokens), sampler=sampler, grammar="")
