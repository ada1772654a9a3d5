"""The supervisor: one worker group at a time, each in a new epoch with a directory of its own.

It reports `GroupReady` from `start` and `GroupDead` to the engine's mailbox; what follows from
either is the engine's business. Knows nothing of requests, plans or credit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from mtactors.config import EngineConfig
from mtactors.errors import EngineDeadError, ModelError, WorkerStartError
from mtactors.front.run_directory import RunDirectory
from mtactors.front.stats import WorkerFacts
from mtactors.front.step_pages import StepPages
from mtactors.front.worker_group import GroupDead, GroupReady, WorkerGroup
from mtactors.front.worker_process import Launcher, launch_process
from mtactors.wire.messages import StepResult

logger = logging.getLogger(__name__)

Mail = StepResult | GroupDead


class Supervisor:
    """Owns the worker processes and the epoch number.

    Made and used on the event loop of the thread that lives as long as the workers shall.

    Args:
        deliver: takes results and deaths of the running group; must not block or raise. May be
            set later, but before `start` returns.
        on_phase: called with (phase, seconds) as the first group starts up.
        launcher: starts one worker.
        parent: where to make the private directory; default: the temporary directory.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_phase: Callable[[str, float], None] | None = None,
        launcher: Launcher = launch_process,
        parent: Path | None = None,
    ) -> None:
        self.epoch = 0
        self.deliver: Callable[[Mail], None] = _ignore
        self._config = config
        self._on_phase = on_phase or _tell_nobody
        self._launcher = launcher
        self._parent = parent
        self._directory: RunDirectory | None = None
        self._pipe: tuple[int, int] | None = None
        self._group: WorkerGroup | None = None
        self._ending: WorkerGroup | None = None
        self._pages: StepPages | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the running group's workers, by rank."""
        return () if self._group is None else self._group.pids

    def workers(self) -> tuple[WorkerFacts, ...]:
        """Return the running group's workers, by rank, with the steps that they are in."""
        steps = self._pages.steps() if self._pages is not None else {}
        unknown = (0, None)
        return tuple(
            WorkerFacts(rank, pid, *steps.get(rank, unknown)) for rank, pid in enumerate(self.pids)
        )

    async def start(self) -> GroupReady:
        """Start a group in the next epoch; the one before must have been stopped.

        Raises:
            ModelError: a worker says that the model, or what was asked of it, is at fault.
            WorkerStartError: a worker failed, died or was late; no worker is left.
        """
        if self._group is not None or self._ending is not None:
            raise EngineDeadError("the worker group before has not been stopped")
        if self._directory is None:
            self._directory = RunDirectory(self._parent)
            self._pipe = os.pipe()
        assert self._pipe is not None
        self.epoch += 1
        run_dir = self._directory.make_epoch(self.epoch)
        self._group = WorkerGroup(
            self._config,
            self.epoch,
            run_dir,
            self._pipe[0],
            self._launcher,
            on_result=self._deliver,
            on_dead=self._deliver,
            on_phase=self._on_phase if self.epoch == 1 else _tell_nobody,
        )
        try:
            outcome = await self._group.start()
        except BaseException:
            await self.stop_group("starting was given up")
            raise
        if isinstance(outcome, GroupDead):
            await self.stop_group("a worker failed to start")
            raise start_error(outcome)
        if self._group is None:
            raise WorkerStartError("the workers were stopped as soon as they were ready")
        self._pages = StepPages(run_dir, self._config.workers.tensor_parallel_size)
        # Everybody has met: what they met at must not outlive them.
        self._directory.remove_epoch(self.epoch)
        return outcome

    def send(self, frame: bytes) -> None:
        """Send an encoded message to every rank of the running group."""
        assert self._group is not None
        self._group.send(frame)

    def condemn(self, reason: str) -> None:
        """Declare the running group lost; `GroupDead` is delivered at once."""
        if self._group is not None:
            where = self._pages.describe() if self._pages is not None else ""
            self._group.condemn(f"{reason} ({where})" if where else reason)

    async def stop_group(self, reason: str) -> None:
        """End the workers of the running group, if there is one. May be repeated."""
        if self._group is not None:
            self._group, self._ending = None, self._group
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        ending = self._ending
        if ending is not None:
            try:
                # Whoever waits for this may be cancelled: then the next one waits for the rest.
                await ending.stop(reason)
                self._ending = None
            finally:
                if self._directory is not None:
                    self._directory.remove_epoch(ending.epoch)

    async def stop(self, reason: str) -> None:
        """End everything: workers, pipe, directory. May be repeated."""
        try:
            await self.stop_group(reason)
        finally:
            for descriptor in self._pipe or ():
                os.close(descriptor)
            self._pipe = None
            if self._directory is not None:
                self._directory.close()
                self._directory = None

    def _deliver(self, mail: Mail) -> None:
        self.deliver(mail)


def start_error(dead: GroupDead) -> ModelError | WorkerStartError:
    """Turn the end of a group that never was ready into the error that its starter gets."""
    if dead.details:
        # Who can mend it needs the one line that the error is, and no traceback.
        level = logging.DEBUG if dead.usage else logging.ERROR
        logger.log(level, "%s\n%s", dead.reason, dead.details)
    return ModelError(dead.reason) if dead.usage else WorkerStartError(dead.reason)


def _tell_nobody(phase: str, seconds: float) -> None:
    pass


def _ignore(mail: Mail) -> None:
    logger.debug("nobody takes %s", mail)
