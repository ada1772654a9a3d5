"""From the files of a journal back to groups, plans and results in order.

A journal may hold several runs: engines that wrote there one after the other. Knows nothing of how
anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mtactors.errors import JournalError, WireError
from mtactors.journal.records import GroupFacts, Kind, Record, read_records
from mtactors.journal.ring import segments
from mtactors.wire.codec import decode_for_front, decode_for_worker
from mtactors.wire.messages import StepPlan, StepResult

_M = TypeVar("_M")


@dataclass(frozen=True, slots=True)
class Opening:
    """What follows builds on this group and on these rows, and on nothing before."""

    group: GroupFacts
    rows: StepPlan


Event = Opening | StepPlan | StepResult


@dataclass(slots=True)
class Run:
    """What one engine wrote; `first` are the facts of the oldest group that is left of it."""

    first: GroupFacts
    paths: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the engine called it."""
        return self.first.run

    def events(self, newest: int = 0) -> Iterator[Event]:
        """Yield what was recorded, without what segments repeat.

        Args:
            newest: so many segments, the newest; 0 for all.

        Raises:
            JournalError: a segment is damaged.
        """
        return _Reading().read(self.paths[-newest:] if newest else self.paths)


def read_runs(directory: Path) -> list[Run]:
    """Return the runs of a journal, the oldest first.

    Raises:
        JournalError: the directory is no journal, or a segment is damaged.
    """
    try:
        paths = list(segments(directory).values())
    except OSError as error:
        raise JournalError(f"{directory} is no journal: {error.strerror}") from error
    runs: list[Run] = []
    for path in paths:
        first = next(read_records(path), None)
        if first is None:
            continue
        group = _group(first)
        if not runs or runs[-1].name != group.run:
            runs.append(Run(group))
        runs[-1].paths.append(path)
    if not runs:
        raise JournalError(f"{directory} is no journal: there is no segment with a record in it")
    return runs


class _Reading:
    """Leaves out what a segment repeats of the one before."""

    def __init__(self) -> None:
        self._epoch = 0
        self._planned = 0  # the last plan of the epoch
        self._answered = 0

    def read(self, paths: list[Path]) -> Iterator[Event]:
        for path in paths:
            group: GroupFacts | None = None
            for record in read_records(path):
                if record.kind is Kind.GROUP:
                    group = _group(record)
                elif group is None:
                    raise JournalError(f"the journal is damaged: no group at {record.place}")
                else:
                    event = self._event(group, record)
                    if event is not None:
                        yield event

    def _event(self, group: GroupFacts, record: Record) -> Event | None:
        if record.kind is Kind.RESULT:
            return self._result(_decoded(record, StepResult), record)
        plan = _decoded(record, StepPlan)
        if record.kind is Kind.PLAN:
            return self._plan(plan, record)
        if (plan.epoch, plan.seq) == (self._epoch, self._answered):
            return None  # nothing is missing
        self._epoch, self._planned, self._answered = plan.epoch, plan.seq, plan.seq
        return Opening(group, plan)

    def _plan(self, plan: StepPlan, record: Record) -> StepPlan | None:
        if plan.epoch == self._epoch and self._answered < plan.seq <= self._planned:
            return None  # unanswered when the segment was opened: told once more
        if (plan.epoch, plan.seq) != (self._epoch, self._planned + 1):
            raise JournalError(f"the journal is damaged: a plan out of order at {record.place}")
        self._planned = plan.seq
        return plan

    def _result(self, result: StepResult, record: Record) -> StepResult:
        expected = (self._epoch, self._answered + 1)
        if (result.epoch, result.seq) != expected or result.seq > self._planned:
            raise JournalError(f"the journal is damaged: a result out of order at {record.place}")
        self._answered = result.seq
        return result


def _group(record: Record) -> GroupFacts:
    try:
        if record.kind is not Kind.GROUP:
            raise ValueError(f"it begins with {record.kind.name}")
        return GroupFacts.decode(record.payload)
    except (ValueError, TypeError) as error:
        raise JournalError(f"no description of a group at {record.place}: {error}") from error


def _decoded(record: Record, kind: type[_M]) -> _M:
    decode = decode_for_front if kind is StepResult else decode_for_worker
    try:
        message = decode(record.payload)
    except WireError as error:
        raise JournalError(f"the journal is damaged at {record.place}: {error}") from error
    if not isinstance(message, kind):
        raise JournalError(f"the journal is damaged: no {kind.__name__} at {record.place}")
    return message
