"""The line to one worker group: plans out, each numbered, recorded, and with a deadline.

Knows nothing of what is in a plan, and does not read results; `answered` is called for each.
"""

from __future__ import annotations

from collections.abc import Callable

from mtactors.config import EngineConfig
from mtactors.front.alarm import Alarm
from mtactors.front.journaling import GroupJournal, open_journal
from mtactors.front.step_pace import StepPace
from mtactors.front.step_watch import StepWatch
from mtactors.front.supervisor import Supervisor
from mtactors.front.worker_group import GroupReady
from mtactors.wire.codec import encode
from mtactors.wire.messages import StepPlan, StepResult


class StepLine:
    """Sends plans to whatever group runs, and condemns it when a step is overdue.

    Args:
        config: of the engine; its journal is opened.
        clock: seconds that never go back.
        on_due: called when it is time for a plan that `is_due` found too early, or sooner.

    Raises:
        ConfigError: no journal can be written where it is asked for.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        config: EngineConfig,
        clock: Callable[[], float],
        on_due: Callable[[], None],
    ) -> None:
        self._supervisor = supervisor
        self._step_timeout = config.workers.step_timeout
        self._clock = clock
        self._journal: GroupJournal | None = open_journal(config)
        self._seq = 0
        self._watch = StepWatch(self._step_timeout)
        self._alarm = Alarm(clock, self._check_deadline)
        self._pace = StepPace()
        self._bell = Alarm(clock, on_due)

    @property
    def next_seq(self) -> int:
        """The sequence number of the next plan."""
        return self._seq + 1

    def begin(self, group: GroupReady) -> None:
        """Begin anew: another group runs."""
        self._seq = 0
        if self._journal is not None:
            self._journal.begin(group)
        self._watch = StepWatch(self._step_timeout)
        self._pace = StepPace()

    def came(self) -> None:
        """Note that a request came."""
        if self._watch.started is not None:
            self._pace.came(self._clock())

    def is_due(self) -> bool:
        """Tell whether it is time for one more plan; if it is not, `on_due` says when."""
        started = self._watch.started
        if started is None:
            return True
        moment = self._pace.wait(started, self._watch.tokens, self._clock())
        self._bell.set(moment)
        return moment is None

    def send(self, plan: StepPlan, now: float) -> None:
        """Send a plan."""
        self._seq = plan.seq
        tokens = sum(row.chunk_len for row in plan.new) + sum(row.chunk_len for row in plan.known)
        frame = encode(plan)
        if self._journal is not None:  # before anybody can die of it
            self._journal.plan(plan, frame)
        self._supervisor.send(frame)
        self._watch.sent(plan.seq, tokens, now)
        self._alarm.set(self._watch.deadline)

    def answered(self, result: StepResult) -> float:
        """Note the result of the oldest unanswered plan; return its seconds."""
        if self._journal is not None:
            self._journal.result(result)
        tokens, now = self._watch.tokens, self._clock()
        seconds = self._watch.answered(now)
        self._pace.answered(tokens, seconds, now)
        self._alarm.set(self._watch.deadline)
        return seconds

    def close(self) -> None:
        """Wait for nothing more from the group that ran."""
        self._alarm.cancel()
        self._bell.cancel()

    def end(self) -> None:
        """Wait for nothing more, and record nothing. May be repeated."""
        self.close()
        if self._journal is not None:
            self._journal.close()

    def _check_deadline(self) -> None:
        deadline, started, now = self._watch.deadline, self._watch.started, self._clock()
        if deadline is None or started is None or now < deadline:
            self._alarm.set(deadline)
            return
        seq = self._watch.awaited
        self._supervisor.condemn(f"step {seq} was not answered within {now - started:.1f} s")
