"""A front driven by hand: real sockets, real worker processes, no scheduler."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mtactors.envs import worker_environment
from mtactors.front.worker_process import WorkerSeat, worker_command
from mtactors.wire.channel import FrontChannel
from mtactors.wire.codec import encode
from mtactors.wire.messages import (
    Configure,
    FrontMessage,
    Hello,
    Progress,
    Ready,
    Shutdown,
    StepPlan,
    StepResult,
    WorkerFailed,
    WorkerMessage,
)

_M = TypeVar("_M", bound=WorkerMessage)
TIMEOUT = 60.0  # seconds; generous, since the machine may be busy


@dataclass
class HandFront:
    """The socket of an epoch, what came in by rank, and the processes started.

    `async with HandFront(run_dir)`: what is still running at the end is killed.
    """

    run_dir: Path
    world_size: int = 1
    epoch: int = 1
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def __aenter__(self) -> HandFront:
        self._inboxes: list[asyncio.Queue[WorkerMessage]] = [
            asyncio.Queue() for _ in range(self.world_size)
        ]
        self.channel = FrontChannel(self.run_dir / "s", self.epoch, self.world_size, self._take)
        self._pipe = os.pipe()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.channel.close()
        self.close_pipe()
        os.close(self._pipe[0])

    def _take(self, rank: int, message: WorkerMessage) -> None:
        self._inboxes[rank].put_nowait(message)

    @property
    def parent_pipe(self) -> int:
        """The end that a worker inherits."""
        return self._pipe[0]

    def close_pipe(self) -> None:
        """Let the workers see that the front is gone."""
        if self._pipe[1] >= 0:
            os.close(self._pipe[1])
            self._pipe = (self._pipe[0], -1)

    def command(self, rank: int = 0) -> list[str]:
        """Return the command line of a worker, as the supervisor writes it."""
        seat = WorkerSeat(
            rank, self.world_size, self.epoch, self.channel.address, self.parent_pipe, 1
        )
        return worker_command(seat)

    def spawn(self, rank: int = 0) -> subprocess.Popen[bytes]:
        """Start a worker process."""
        return self.spawn_command(self.command(rank))

    def spawn_command(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that inherits the pipe."""
        process = subprocess.Popen(command, env=worker_environment(1), pass_fds=(self.parent_pipe,))
        self.processes.append(process)
        return process

    def send(self, message: FrontMessage, rank: int = 0) -> None:
        """Send to a rank."""
        self.channel.send(rank, encode(message))

    async def receive(self, kind: type[_M], rank: int = 0) -> _M:
        """Return the next message of a rank, which must be of this kind."""
        message = await asyncio.wait_for(self._inboxes[rank].get(), TIMEOUT)
        assert isinstance(message, kind), message
        return message

    async def start(self, configure: Configure) -> tuple[list[Progress], Ready]:
        """Answer a single worker's Hello and wait until it is ready."""
        await self._configure(configure)
        return await self._until_ready(configure.rank)

    async def start_all(self, settings: Sequence[Configure]) -> list[Ready]:
        """Start a group: every rank must be told before any can be ready."""
        for configure in settings:
            await self._configure(configure)
        return [(await self._until_ready(configure.rank))[1] for configure in settings]

    async def _configure(self, configure: Configure) -> None:
        hello = await self.receive(Hello, configure.rank)
        assert (hello.epoch, hello.rank) == (self.epoch, configure.rank)
        self.send(configure, configure.rank)

    async def _until_ready(self, rank: int) -> tuple[list[Progress], Ready]:
        phases: list[Progress] = []
        while True:
            message = await asyncio.wait_for(self._inboxes[rank].get(), TIMEOUT)
            if isinstance(message, Ready):
                return phases, message
            assert isinstance(message, Progress), message
            phases.append(message)

    async def step(self, plan: StepPlan) -> StepResult:
        """Send a plan to every rank and return rank 0's result."""
        self.channel.broadcast(encode(plan))
        return await self.receive(StepResult)

    async def failure(self, rank: int = 0) -> WorkerFailed:
        """Return the next WorkerFailed of a rank, skipping its progress."""
        while True:
            message = await asyncio.wait_for(self._inboxes[rank].get(), TIMEOUT)
            if isinstance(message, WorkerFailed):
                return message
            assert isinstance(message, (Hello, Progress)), message

    async def shut_down(self) -> list[int]:
        """Ask every rank to end and return their exit codes."""
        for rank in range(self.world_size):
            self.send(Shutdown(self.epoch, "test"), rank)
        return [await exit_code(process) for process in self.processes]


async def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process."""
    return await asyncio.to_thread(process.wait, TIMEOUT)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def ends(pid: int) -> bool:
    """Wait for a process that is not a child; False when it is still there after a minute."""
    deadline = time.monotonic() + TIMEOUT
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process as the kernel would."""
    process.send_signal(signal.SIGKILL)
    process.wait()
