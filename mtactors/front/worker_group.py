"""The workers of one epoch, from start to end, and who is to blame for the end.

One for all: the loss of one worker is the loss of the group, because its shard of the weights and
of the KV cache is gone and the others wait for it in a collective. Knows nothing of requests,
plans or credit, and nothing of other epochs.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path

from mtactors.config import EngineConfig
from mtactors.errors import ChannelError
from mtactors.front.worker_process import Launcher, WorkerExit, WorkerHandle, WorkerSeat
from mtactors.wire.channel import FrontChannel
from mtactors.wire.codec import encode
from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    Configure,
    Hello,
    Progress,
    Ready,
    Shutdown,
    StepResult,
    WorkerFailed,
    WorkerMessage,
)

logger = logging.getLogger(__name__)

# When a worker is lost the others fail of it within moments, and news of an exit may overtake the
# last message: who was first is known only after all have had the time to say something.
_BLAME_SECONDS = 0.25
_SHUTDOWN_SECONDS = 5.0
_TERM_SECONDS = 2.0
_KILL_SECONDS = 10.0
_MOST_BLOCKS = 1 << 26  # 8 TiB at 128 KiB each; the front keeps a few words for every block


@dataclass(frozen=True, slots=True)
class GroupReady:
    """Every rank is ready; `ready` holds their reports by rank, `seconds` since the start.

    `parts`: what rank 0 took for each part of it: "spawn" until it said Hello, then its phases.
    """

    epoch: int
    num_blocks: int
    ready: tuple[Ready, ...]
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Say in words who is ready."""
        first, count = self.ready[0], len(self.ready)
        what = f"{count} worker(s) on {first.device_name} with {first.kernels} kernels"
        return f"{what}, ready after {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class GroupDead:
    """The group is lost.

    `reason`: one line about the rank that failed first; `rank` -1: no single one. `details`: its
    traceback or its last output. `usage`: the user can mend it.
    """

    epoch: int
    rank: int
    reason: str
    details: str = ""
    usage: bool = False


def configuration(config: EngineConfig, epoch: int, rank: int, run_dir: Path) -> Configure:
    """Return what a worker is told to load."""
    model, cache = config.model, config.cache
    scheduler, workers = config.scheduler, config.workers
    return Configure(
        version=PROTOCOL_VERSION,
        epoch=epoch,
        rank=rank,
        world_size=workers.tensor_parallel_size,
        model_dir=str(model.directory),
        dtype=model.dtype,
        device=workers.device,
        block_size=cache.block_size,
        gpu_memory_utilization=cache.utilization,
        kv_cache_memory_bytes=cache.memory_bytes,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=model.max_model_len,
        cpu_threads=workers.cpu_threads,
        run_dir=str(run_dir),
        kernels=workers.kernels,
        reshard=model.reshard,
        tokenizer_dir=str(model.tokenizer_directory),
        digests=workers.digests,
        golden_check=workers.golden_check,
    )


class _Evidence(IntEnum):
    """How much a sign of a rank's end tells."""

    UNREACHABLE = 0
    EXITED = 1
    SAID_SO = 2


@dataclass(frozen=True, slots=True)
class _Sign:
    evidence: _Evidence
    dead: GroupDead
    killed: bool = False


class WorkerGroup:
    """One process per rank and the channel to them. Made, used and stopped on one event loop.

    Args:
        epoch: number of this group.
        run_dir: this epoch's private directory.
        parent_pipe: inherited by each worker; its EOF means that the front is gone.
        on_result: takes each result of rank 0 while the group lives.
        on_dead: called once if the group is lost after it was ready and before `stop`.
        on_phase: called with (phase, seconds) as rank 0 starts up.
    """

    def __init__(
        self,
        config: EngineConfig,
        epoch: int,
        run_dir: Path,
        parent_pipe: int,
        launcher: Launcher,
        *,
        on_result: Callable[[StepResult], None],
        on_dead: Callable[[GroupDead], None],
        on_phase: Callable[[str, float], None],
    ) -> None:
        self.epoch = epoch
        self._config = config
        self._run_dir = run_dir
        self._parent_pipe = parent_pipe
        self._launcher = launcher
        self._on_result = on_result
        self._on_dead = on_dead
        self._on_phase = on_phase
        self._world_size = config.workers.tensor_parallel_size
        self._began = time.monotonic()
        self._workers: dict[int, WorkerHandle] = {}
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._greeted: set[int] = set()
        self._phases: dict[int, str] = {}
        self._parts: dict[str, float] = {}
        self._ready: dict[int, Ready] = {}
        self._ended: set[int] = set()
        self._signs: dict[int, _Sign] = {}  # in the order in which the ranks gave the first one
        self._verdict: asyncio.TimerHandle | None = None
        self._over = False
        self._outcome: asyncio.Future[GroupReady | GroupDead]
        self._outcome = asyncio.get_running_loop().create_future()
        self._channel = FrontChannel(run_dir / "wire", epoch, self._world_size, self._take)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that were started, by rank."""
        return tuple(worker.pid for _, worker in sorted(self._workers.items()))

    async def start(self) -> GroupReady | GroupDead:
        """Start the workers; return when all are ready, or one has failed, or time is up."""
        await asyncio.gather(*(self._launch(rank) for rank in range(self._world_size)))
        await asyncio.wait((self._outcome,), timeout=self._config.workers.start_timeout)
        if not self._outcome.done():
            self.condemn(self._late())
        return self._outcome.result()

    def send(self, frame: bytes) -> None:
        """Send an encoded message to every rank; one that cannot be reached is lost."""
        for rank in range(self._world_size):
            try:
                self._channel.send(rank, frame)
            except ChannelError as error:
                # It has most likely ended, which will be known in a moment, with the reason.
                dead = GroupDead(self.epoch, rank, str(error))
                self._note(rank, _Sign(_Evidence.UNREACHABLE, dead))

    def condemn(self, reason: str) -> None:
        """Declare the group lost for a reason that the workers do not know of."""
        self._pronounce(GroupDead(self.epoch, -1, reason))

    async def stop(self, reason: str) -> None:
        """End every worker: ask, wait, then insist. Nothing of the group is left afterwards."""
        asks = self._outcome.done() and not self._over
        self._over = True
        if self._verdict is not None:
            self._verdict.cancel()
        if not self._outcome.done():
            self._outcome.set_result(GroupDead(self.epoch, -1, reason))
        try:
            if asks:
                self.send(encode(Shutdown(self.epoch, reason)))
                await self._wait_for_ends(_SHUTDOWN_SECONDS)
                self._signal(signal.SIGTERM)
                await self._wait_for_ends(_TERM_SECONDS)
        finally:
            # At once where the group is lost: nothing is left to save, and a process that was
            # stopped does not hear anything else.
            self._signal(signal.SIGKILL)
            self._channel.close()
            await self._wait_for_ends(_KILL_SECONDS)
            for rank, watch in self._watches.items():
                if not watch.done():
                    logger.error("worker rank %d does not die of SIGKILL", rank)
                    watch.cancel()

    async def _launch(self, rank: int) -> None:
        workers = self._config.workers
        seat = WorkerSeat(
            rank=rank,
            world_size=self._world_size,
            epoch=self.epoch,
            address=self._channel.address,
            parent_pipe=self._parent_pipe,
            cpu_threads=workers.cpu_threads,
        )
        try:
            worker = await self._launcher(seat)
        except OSError as error:
            self._pronounce(GroupDead(self.epoch, rank, f"worker rank {rank}: {error}"))
            return
        self._workers[rank] = worker
        self._watches[rank] = asyncio.ensure_future(self._watch(rank, worker))

    async def _watch(self, rank: int, worker: WorkerHandle) -> None:
        try:
            end = await worker.wait()
        except Exception as error:
            logger.exception("cannot watch worker rank %d", rank)
            end = WorkerExit(0, f"{type(error).__name__}: {error}")
        self._ended.add(rank)
        before = "" if self._outcome.done() else " before it was ready"
        dead = GroupDead(self.epoch, rank, f"worker rank {rank} {end.describe(before)}", end.output)
        self._note(rank, _Sign(_Evidence.EXITED, dead, end.code == -signal.SIGKILL))

    def _take(self, rank: int, message: WorkerMessage) -> None:
        if self._over:
            return
        if message.epoch != self.epoch or getattr(message, "rank", rank) != rank:
            logger.warning("worker rank %d: a message of another: %s", rank, message)
        elif isinstance(message, StepResult):
            if rank == 0 and self._outcome.done():
                if not self._signs:  # without one of its ranks the group computes nothing right
                    self._on_result(message)
            else:
                logger.warning("worker rank %d sent a result that nobody asked for", rank)
        elif isinstance(message, Hello):
            self._greet(rank, message)
        elif isinstance(message, Progress):
            self._phases[rank] = message.phase
            if rank == 0:
                self._parts[message.phase] = message.seconds
                self._on_phase(message.phase, message.seconds)
        elif isinstance(message, Ready):
            self._take_ready(rank, message)
        else:
            self._take_failure(rank, message)

    def _greet(self, rank: int, hello: Hello) -> None:
        if hello.version != PROTOCOL_VERSION:
            reason = (
                f"worker rank {rank} speaks protocol version {hello.version}, this front "
                f"{PROTOCOL_VERSION}: install one version of mtactors for both"
            )
            self._pronounce(GroupDead(self.epoch, rank, reason))
            return
        try:
            message = configuration(self._config, self.epoch, rank, self._run_dir)
            self._channel.send(rank, encode(message))
        except ChannelError as error:
            dead = GroupDead(self.epoch, rank, str(error))
            self._note(rank, _Sign(_Evidence.UNREACHABLE, dead))
            return
        self._greeted.add(rank)
        if rank == 0:
            self._parts["spawn"] = time.monotonic() - self._began
        if len(self._greeted) == self._world_size:
            self._channel.unlink()

    def _take_ready(self, rank: int, ready: Ready) -> None:
        if not 0 < ready.num_blocks <= _MOST_BLOCKS:
            self.condemn(f"worker rank {rank} sent nonsense: a cache of {ready.num_blocks} blocks")
            return
        self._ready[rank] = ready
        if len(self._ready) == self._world_size and not self._outcome.done():
            reports = tuple(self._ready[rank] for rank in range(self._world_size))
            blocks = min(report.num_blocks for report in reports)
            seconds = time.monotonic() - self._began
            self._parts.pop("ready", None)  # the sum of the others
            outcome = GroupReady(self.epoch, blocks, reports, seconds, self._parts)
            self._outcome.set_result(outcome)

    def _take_failure(self, rank: int, failed: WorkerFailed) -> None:
        usage = failed.kind == "usage"
        step = f" in step {failed.seq}" if failed.seq else ""
        reason = failed.message if usage else f"worker rank {rank} failed{step}: {failed.message}"
        dead = GroupDead(self.epoch, rank, reason, failed.traceback, usage)
        self._note(rank, _Sign(_Evidence.SAID_SO, dead))

    def _note(self, rank: int, sign: _Sign) -> None:
        """Take down a sign of a rank's end; pronounce the verdict when no better one can come."""
        if self._over:
            return
        known = self._signs.get(rank)
        if known is None or known.evidence < sign.evidence:
            self._signs[rank] = sign
        if sign.killed or all(self._is_explained(rank) for rank in range(self._world_size)):
            self._pronounce(self._blame())
        elif self._verdict is None:
            loop = asyncio.get_running_loop()
            self._verdict = loop.call_later(_BLAME_SECONDS, self._pronounce_blame)

    def _is_explained(self, rank: int) -> bool:
        sign = self._signs.get(rank)
        return rank in self._ended and sign is not None and sign.evidence is _Evidence.SAID_SO

    def _pronounce_blame(self) -> None:
        self._pronounce(self._blame())

    def _blame(self) -> GroupDead:
        """Choose the rank that failed first: a killed one could not say so before the others."""
        signs = list(self._signs.values())
        return next((sign for sign in signs if sign.killed), signs[0]).dead

    def _pronounce(self, dead: GroupDead) -> None:
        if self._over:
            return
        self._over = True
        if self._verdict is not None:
            self._verdict.cancel()
        dead = replace(dead, reason=" ".join(dead.reason.split()))
        if self._outcome.done():
            self._on_dead(dead)
        else:
            self._outcome.set_result(dead)

    def _late(self) -> str:
        seconds = self._config.workers.start_timeout
        waiting = [
            f"{rank} (after {self._phases.get(rank, 'start' if rank in self._greeted else '-')})"
            for rank in range(self._world_size)
            if rank not in self._ready
        ]
        return f"worker rank {', '.join(waiting)} was not ready after {seconds:g} s"

    def _signal(self, number: int) -> None:
        for rank, worker in self._workers.items():
            if rank not in self._ended:
                worker.send_signal(number)

    async def _wait_for_ends(self, seconds: float) -> None:
        alive = [watch for watch in self._watches.values() if not watch.done()]
        if alive:
            await asyncio.wait(alive, timeout=seconds)
