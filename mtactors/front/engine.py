"""The front actor: plan, send, await, apply, publish; and when the workers are lost, go on.

Owns the scheduler and the open requests; everything happens on one event loop, one thing at a
time. Submitting and aborting take effect between two steps, results and deaths of the worker group
come by the mailbox. A lost group is replaced, and open requests wait meanwhile with the tokens
they have. Knows nothing of HTTP, of processes, or of what a step computes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from mtactors.config import EngineConfig
from mtactors.errors import (
    EngineDeadError,
    EngineUnavailableError,
    MtactorsError,
    QueueFullError,
    WireError,
)
from mtactors.front.admission import Admission
from mtactors.front.block_pool import Ledger
from mtactors.front.mailbox import Mailbox
from mtactors.front.open_requests import OpenRequests
from mtactors.front.recovery import Recovery, Restart, probe, quarantine_error
from mtactors.front.request import RowUpdate
from mtactors.front.results import check_ids
from mtactors.front.scheduler import Scheduler
from mtactors.front.stats import EngineObserver, EngineStats, StatsLog
from mtactors.front.step_line import StepLine
from mtactors.front.stream import RequestStream
from mtactors.front.supervisor import Supervisor
from mtactors.front.suspects import PROBE, RowId
from mtactors.front.tokenizer import Tokenizer
from mtactors.front.worker_group import GroupDead, GroupReady
from mtactors.sampling_params import SamplingParams
from mtactors.wire.messages import StepPlan, StepResult

logger = logging.getLogger(__name__)

Phase = Literal["new", "loading", "ready", "restarting", "draining", "dead"]

_NO_BLOCKS = Ledger(0, 0, 0, 0)
_REFUSALS = {
    "loading": "the engine is still loading; try again in a moment",
    "draining": "the engine is shutting down and takes no more requests",
    "dead": "the engine has stopped and will not come back",
}


class Engine:
    """Serves requests with one worker group after another.

    Made, used and stopped on one event loop, by the thread that lives as long as the workers
    shall. `submit` and `abort` are plain calls on that loop.

    Args:
        supervisor: default: one that starts worker processes.
        clock: seconds that never go back.

    Attributes:
        config: as given.
        tokenizer: as given.
        group: what the workers said of themselves when they were ready; None before.
        failed: done when the engine is beyond repair; its result is the error. `stop` leaves it.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        *,
        supervisor: Supervisor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.failed: asyncio.Future[MtactorsError] = asyncio.get_running_loop().create_future()
        self.group: GroupReady | None = None
        self._mailbox = Mailbox()
        self._supervisor = supervisor or Supervisor(config)
        self._supervisor.deliver = self._mailbox.post
        self._clock = clock
        self._admission = Admission(config.model, tokenizer.eos_token_id, tokenizer.encode)
        self._phase: Phase = "new"
        self._draining = False
        self._scheduler: Scheduler | None = None
        self._line = StepLine(self._supervisor, config, clock, self._mailbox.ring)
        self._recovery = Recovery(self._supervisor, config.workers.max_restarts, clock)
        self._open = OpenRequests(tokenizer, clock, self._recovery.forget)
        self._living: asyncio.Task[None] | None = None
        self._stats_log = StatsLog(self.stats)

    @property
    def observer(self) -> EngineObserver:
        """What hears of single events; replace it to listen."""
        return self._open.observer

    @observer.setter
    def observer(self, observer: EngineObserver) -> None:
        self._open.observer = observer

    @property
    def phase(self) -> Phase:
        """Where the engine is in its life; requests are taken in "ready" and "restarting"."""
        return "draining" if self._draining and self._phase != "dead" else self._phase

    @property
    def ready(self) -> bool:
        """Whether a worker group is up and requests are taken."""
        return self.phase == "ready"

    @property
    def detail(self) -> str:
        """Why the workers are being replaced; empty when they are not."""
        return self._recovery.reason

    @property
    def restarts(self) -> tuple[Restart, ...]:
        """The latest replacements of the worker group."""
        return tuple(self._recovery.restarts)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The process ids of the running workers, by rank."""
        return self._supervisor.pids

    async def start(self, group: Awaitable[GroupReady] | None = None) -> None:
        """Start the worker group; return when it is ready.

        Args:
            group: `start` of the engine's own supervisor, if it was called already.

        Raises:
            ModelError: the workers cannot use the model as asked.
            WorkerStartError: a worker failed; nothing is left running.
        """
        self._phase = "loading"
        try:
            ready = await (group or self._supervisor.start())
            self._adopt(ready)
        except BaseException:
            self._phase = "dead"
            await self._supervisor.stop("the engine could not start")
            self._line.end()
            raise
        self._phase = "ready"
        self._living = asyncio.ensure_future(self._live())
        if self.config.log_stats:
            self._stats_log.start()

    def submit(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
    ) -> RequestStream:
        """Take a request; its outputs come out of the stream that is returned.

        Raises:
            RequestError: it cannot be served as asked; `param` names the field.
            QueueFullError: too many requests wait already.
            EngineUnavailableError: the engine is not up yet, or never again.
        """
        scheduler = self._require_open()
        bound = self.config.scheduler.max_num_queued
        if bound and scheduler.num_queued >= bound:
            raise QueueFullError(f"{scheduler.num_queued} requests are waiting already; try later")
        request = self._admission.resolve(
            request_id,
            prompt_token_ids,
            params,
            priority=priority,
            arrival=self._clock(),
            capacity=scheduler.capacity,
        )
        scheduler.add(request)
        self._line.came()
        stream = self._open.open(request, prompt, self.abort)
        self._mailbox.ring()
        return stream

    def abort(self, request_id: str) -> None:
        """End a request; its stream ends with `finish_reason` "abort". Unknown ids are ignored."""
        if self._scheduler is not None and self._open.abort(request_id):
            self._scheduler.abort(request_id)
            self._mailbox.ring()

    def ledger(self) -> Ledger:
        """Count the KV cache's blocks; all zero before the workers are ready."""
        return _NO_BLOCKS if self._scheduler is None else self._scheduler.ledger()

    def stats(self) -> EngineStats:
        """Return the facts of this moment."""
        scheduler, totals = self._scheduler, self._open.totals
        return EngineStats(
            running=scheduler.num_running if scheduler else 0,
            waiting=scheduler.num_waiting if scheduler else 0,
            queued=scheduler.num_queued if scheduler else 0,
            in_flight=scheduler.num_in_flight if scheduler else 0,
            kv=self.ledger(),
            prompt_tokens=totals.prompt_tokens,
            generation_tokens=totals.generation_tokens,
            finished=dict(totals.finished),
            prefix_queries=scheduler.counters.prefix_queries if scheduler else 0,
            prefix_hits=scheduler.counters.prefix_hits if scheduler else 0,
            preemptions=scheduler.counters.preemptions if scheduler else 0,
            steps=totals.steps,
            epoch=self._supervisor.epoch,
            restarts=self._recovery.count,
            suspects=len(self._recovery.suspects),
            workers=self._supervisor.workers(),
        )

    async def drain(self, timeout: float) -> bool:
        """Take no more requests and wait until those that are open have ended.

        Returns:
            False when `timeout` seconds were not enough; what is open goes on then.
        """
        self._draining = True
        return await self._open.wait_for_none(timeout)

    async def restart_workers(self) -> Restart:
        """Replace the worker group; open requests go on. Return when the next one is ready.

        Raises:
            EngineUnavailableError: the engine is not up, or is shutting down.
            EngineDeadError: no group came up, or the engine was stopped.
        """
        self._require_open()
        done = self._recovery.ask()
        self._mailbox.ring()
        return await done

    async def stop(self) -> None:
        """End the workers and, with an error, every request that is still open. May be repeated."""
        self._phase = "dead"
        living, self._living = self._living, None
        if living is not None:
            living.cancel()
            await asyncio.wait((living,))
        self._close_down(EngineDeadError("the engine was stopped with the request open"))
        await self._supervisor.stop("the engine was stopped")

    def _adopt(self, ready: GroupReady) -> None:
        """Begin to work with a new group."""
        model = self.config.model
        self.group = ready
        self._line.begin(ready)
        if self._scheduler is not None:
            if ready.num_blocks != self._scheduler.ledger().total:
                for request_id in self._scheduler.reset(ready.num_blocks):
                    text = f"the new workers' KV cache is too small for request {request_id!r}"
                    self._fail(request_id, EngineDeadError(text))
            return
        self._scheduler = Scheduler(
            self.config.scheduler,
            self.config.cache,
            ready.num_blocks,
            model.max_model_len,
            f"{model.directory}:{model.dtype}",
        )
        capacity = self._scheduler.capacity
        logger.info("%s: KV cache of %d tokens", ready.describe(), capacity - 1)
        if capacity < model.max_model_len:
            logger.warning(
                "the KV cache holds %d tokens and max_model_len is %d: requests that need more "
                "are refused; raise kv_cache_memory_bytes or gpu_memory_utilization",
                *(capacity, model.max_model_len),
            )

    async def _live(self) -> None:
        """Work with one group after another until there can be no further one."""
        try:
            while True:
                await self._replace(await self._serve())
        except EngineDeadError as dead:
            error = EngineDeadError(str(dead))
        except Exception as failure:
            logger.exception("the engine loop failed")
            error = EngineDeadError(f"the engine failed: {type(failure).__name__}: {failure}")
        self._phase = "dead"
        self._close_down(error)
        self.failed.set_result(error)
        await self._supervisor.stop(str(error))

    async def _serve(self) -> GroupDead | None:
        """Serve with the group that is up; return when it is lost (None: to be replaced)."""
        assert self._scheduler is not None
        while True:
            if not self._recovery.asked:
                while (plan := self._plan()) is not None:
                    self._send(plan)
            elif not self._scheduler.num_in_flight:
                return None
            for mail in await self._mailbox.take():
                if mail.epoch != self._supervisor.epoch:
                    continue
                if isinstance(mail, GroupDead):
                    return mail
                for update in self._apply(mail):
                    self._publish(update)

    async def _replace(self, dead: GroupDead | None) -> None:
        """Put another group in the place of one that is lost, or that is to go (None).

        Raises:
            EngineDeadError: it may not be replaced, or no other one comes up.
        """
        assert self._scheduler is not None
        self._phase = "restarting"
        self._line.close()
        unanswered = self._scheduler.unanswered()
        reason = "a restart was asked for" if dead is None else dead.reason
        self._recovery.begin(reason, self._scheduler.running())
        # At once, so that nobody counts on a cache and on rows that are gone.
        self._scheduler.reset(self._scheduler.ledger().total)
        if dead is not None:
            self._bury(dead, unanswered)
        self._adopt(await self._recovery.replace(commanded=dead is None))
        self._phase = "ready"

    def _bury(self, dead: GroupDead, unanswered: list[RowId]) -> None:
        """See what a death means for requests and for the engine.

        Raises:
            EngineDeadError: the group may not be replaced any more.
        """
        if dead.details:
            logger.error("%s\n%s", dead.reason, dead.details)
        assert self._scheduler is not None
        self._scheduler.abort(PROBE[0])
        condemned = self._recovery.lost(unanswered)
        if condemned is not None:
            self._scheduler.add(probe(self._clock(), self.config.model.max_model_len))
            error = quarantine_error(condemned, dead.reason)
            logger.error("%s", error)
            self._fail(condemned, error)
        self._recovery.require_budget(dead.reason)

    def _plan(self) -> StepPlan | None:
        assert self._scheduler is not None
        alone = self._recovery.suspects.next_alone
        # Only what is unanswered alone is to blame alone.
        bound = self.config.scheduler.max_in_flight if alone is None else 1
        if self._scheduler.num_in_flight >= bound or not self._line.is_due():
            return None
        return self._scheduler.schedule(self._supervisor.epoch, self._line.next_seq, alone)

    def _send(self, plan: StepPlan) -> None:
        now = self._clock()
        self._open.scheduled(plan, now)
        self._line.send(plan, now)

    def _apply(self, result: StepResult) -> list[RowUpdate]:
        assert self._scheduler is not None
        try:
            check_ids(result, self.config.model.spec.sampleable_ids)
            updates = self._scheduler.apply(result)
        except WireError as error:
            self._supervisor.condemn(f"worker rank 0 sent nonsense: {error}")
            return []
        seconds = self._line.answered(result)
        self._recovery.progressed(updates)
        self._open.totals.steps += 1
        self.observer.on_step(len(result.ids), len(updates), seconds)
        return updates

    def _publish(self, update: RowUpdate) -> None:
        assert self._scheduler is not None
        if self._open.publish(update):
            self._scheduler.finish(update.request.request_id, update.choice)

    def _fail(self, request_id: str, error: MtactorsError) -> None:
        """End a request with an error that its reader sees."""
        assert self._scheduler is not None
        self._scheduler.abort(request_id)
        self._open.fail(request_id, error)

    def _close_down(self, error: EngineDeadError) -> None:
        """End every open request, and who waits for a restart, with an error."""
        for request_id in list(self._open):
            self._open.fail(request_id, EngineDeadError(str(error)))
        self._recovery.give_up(error)
        self._line.end()
        self._stats_log.stop()

    def _require_open(self) -> Scheduler:
        phase = self.phase
        if phase in ("ready", "restarting") and self._scheduler is not None:
            return self._scheduler
        raise EngineUnavailableError(_REFUSALS.get(phase, _REFUSALS["loading"]))
