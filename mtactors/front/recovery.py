"""What follows from the loss of a worker group: who is suspected, what is spent, the next group.

Knows nothing of scheduling or streams; the engine does to requests what is decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mtactors.errors import (
    EngineDeadError,
    ModelError,
    RequestQuarantinedError,
    WorkerStartError,
)
from mtactors.front.request import Request, RowUpdate
from mtactors.front.restart_budget import RestartBudget
from mtactors.front.supervisor import Supervisor
from mtactors.front.suspects import PROBE, RowId, Suspects
from mtactors.front.worker_group import GroupReady
from mtactors.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

# A group that does not come up may want for something that comes back: memory, most of all.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 10.0
_REMEMBERED = 64


@dataclass(slots=True)
class Restart:
    """One replacement of the worker group.

    Args:
        epoch: of the new group.
        reason: why, in one line.
        commanded: somebody asked for it; else the group was lost.
        rows: choices that had been computed and were computed again.
        parts: seconds, in order: "stop", "failed" (groups that did not come up), "spawn",
            "import", "check", "group", "load", "kv", "other"; and "prefill", from then until all
            `rows` had gone on.
    """

    epoch: int
    reason: str
    commanded: bool
    rows: int
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        """From the loss to the last row that went on."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """Return the parts in one line."""
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.parts.items())


def probe(now: float, max_model_len: int) -> Request:
    """Return the request that shows whether workers die whatever they compute; nobody reads it."""
    params = SamplingParams(temperature=0.0)
    return Request(PROBE[0], [0], params, now, 0, frozenset(), min(1, max_model_len - 1))


def quarantine_error(request_id: str, reason: str) -> RequestQuarantinedError:
    """Return what the reader of a condemned request gets; `reason` is that of the last death."""
    return RequestQuarantinedError(
        f"request {request_id!r} was ended: the workers died each time that they computed it "
        f"alone, at last so: {reason}"
    )


class Recovery:
    """Replaces one engine's worker group, as often as it may be.

    Args:
        max_restarts: replacements within ten minutes; 0: none.
        clock: seconds that never go back.

    Attributes:
        suspects: rows that may have killed the workers.
        restarts: the latest replacements, the last one perhaps not complete yet.
        count: replacements so far.
        reason: why the group is being replaced; empty when it is not.
    """

    def __init__(
        self, supervisor: Supervisor, max_restarts: int, clock: Callable[[], float]
    ) -> None:
        self.suspects = Suspects()
        self.restarts: deque[Restart] = deque(maxlen=_REMEMBERED)
        self.count = 0
        self.reason = ""
        self._supervisor = supervisor
        self._clock = clock
        self._budget = RestartBudget(max_restarts)
        self._began = 0.0
        self._ready = 0.0
        self._resuming: set[RowId] = set()
        self._waiting: list[asyncio.Future[Restart]] = []  # for a replacement that is to begin
        self._served: list[asyncio.Future[Restart]] = []  # by the one that has begun

    @property
    def asked(self) -> bool:
        """Whether somebody waits for a replacement that has not begun."""
        return bool(self._waiting)

    def ask(self) -> asyncio.Future[Restart]:
        """Ask for a replacement that begins later than now."""
        done: asyncio.Future[Restart] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        return done

    def give_up(self, error: EngineDeadError) -> None:
        """Tell whoever waits that there is no further group."""
        for done in self._take_waiting():
            if not done.done():
                done.set_exception(EngineDeadError(str(error)))

    def lost(self, unanswered: Iterable[RowId]) -> str | None:
        """Note that the group was lost with these rows in unanswered plans.

        Returns:
            id of a request that is to be ended for it.
        """
        now = self._clock()
        self._budget.spend(now)
        condemned = self.suspects.died(unanswered, now)
        if condemned is None:
            return None
        self._budget.refund(condemned.refund)
        return condemned.request_id

    def begin(self, reason: str, resuming: Iterable[RowId]) -> None:
        """Begin to replace the group; these rows will be computed again."""
        self._began = self._clock()
        self.reason = reason
        self._served = self._take_waiting()
        self._resuming = {*resuming}

    def require_budget(self, reason: str) -> None:
        """Do nothing while the group may be replaced.

        Raises:
            EngineDeadError: it may not, or not any more.
        """
        limit = self._budget.limit
        if not limit:
            raise EngineDeadError(reason)
        if self._budget.exceeded(self._clock()):
            often = f"{limit} replacement{'s' * (limit > 1)} of the workers within 10 minutes"
            raise EngineDeadError(f"{reason}; --max-worker-restarts allows {often}, and no more")

    async def replace(self, *, commanded: bool) -> GroupReady:
        """End what is left of the group and start the next one, again if it does not come up.

        Raises:
            EngineDeadError: the budget is spent.
        """
        logger.warning("%s: replacing the workers", self.reason)
        await self._supervisor.stop_group(self.reason)
        stopped = self._clock()
        ready, began = await self._start(stopped)
        parts = {"stop": stopped - self._began}
        if began > stopped:
            parts["failed"] = began - stopped
        parts |= ready.parts
        self._ready = self._clock()
        parts["other"] = max(0.0, self._ready - began - sum(ready.parts.values()))
        restart = Restart(ready.epoch, self.reason, commanded, len(self._resuming), parts)
        logger.warning(
            "the workers were replaced in %.2f s (%s); %d choices go on",
            *(restart.seconds, restart.describe(), restart.rows),
        )
        self.count += 1
        self.restarts.append(restart)
        self.reason = ""
        for done in self._served:
            if not done.done():
                done.set_result(restart)
        self._served = []
        return ready

    async def _start(self, began: float) -> tuple[GroupReady, float]:
        """Start a group, again if it does not come up; return it and when that start began."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._supervisor.start(), began
            except (ModelError, WorkerStartError) as error:
                self._budget.spend(self._clock())
                self.require_budget(str(error))
                logger.error("the workers did not come up: %s", error)
            await asyncio.sleep(pause)
            began, pause = self._clock(), min(2 * pause, _LONGEST_PAUSE)

    def progressed(self, updates: list[RowUpdate]) -> None:
        """Note what a step has brought."""
        if self.suspects.quiet and not self._resuming:
            return  # as in almost every step
        for update in updates:
            row = (update.request.request_id, update.choice)
            self.suspects.progressed(row)
            if self._resuming:
                self._resumed(row)

    def forget(self, request_id: str) -> None:
        """Note that a request has ended."""
        self.suspects.forget(request_id)
        for row in [row for row in self._resuming if row[0] == request_id]:
            self._resumed(row)

    def _take_waiting(self) -> list[asyncio.Future[Restart]]:
        waiting, self._waiting, self._served = [*self._served, *self._waiting], [], []
        return waiting

    def _resumed(self, row: RowId) -> None:
        self._resuming.discard(row)
        if not self._resuming and self.restarts and not self.reason:
            restart = self.restarts[-1]
            restart.parts["prefill"] = self._clock() - self._ready
            seconds = restart.parts["prefill"]
            logger.info("all %d choices have gone on after %.2f s more", restart.rows, seconds)
