"""One worker process: its command line and environment, its output, its end.

Knows nothing of messages or of the other ranks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from mtactors.envs import worker_environment

logger = logging.getLogger("mtactors.worker")

_TAIL_LINES = 40
_LONGEST_LINE = 4000
_LAST_WORDS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class WorkerSeat:
    """What a worker is told on its command line, and the environment that it needs.

    `parent_pipe`: descriptor whose EOF means that the front is gone.
    """

    rank: int
    world_size: int
    epoch: int
    address: str
    parent_pipe: int
    cpu_threads: int


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker ended: its exit code, negative for a signal, and its last lines of output."""

    code: int
    output: str

    def describe(self, when: str = "") -> str:
        """Say it in words, `when` after the verb, with the last line that the worker wrote."""
        last = next((line for line in reversed(self.output.splitlines()) if line.strip()), "")
        said = f": {last.strip()}" if last else ""
        if self.code >= 0:
            return f"exited with code {self.code}{when}{said}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        hint = " (out of memory?)" if name == "SIGKILL" else said
        return f"was killed by {name}{when}{hint}"


class WorkerHandle(Protocol):
    """A started worker, as the supervisor sees it."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    def send_signal(self, number: int) -> None:
        """Send a signal; a worker that has ended is left alone."""
        ...

    async def wait(self) -> WorkerExit:
        """Wait until the worker has ended. May be awaited once, by one task."""
        ...


Launcher = Callable[[WorkerSeat], Awaitable[WorkerHandle]]


async def launch_process(seat: WorkerSeat, command: list[str] | None = None) -> WorkerHandle:
    """Start a worker process, by default the one of `worker_command`.

    Call it on the event loop of the thread that lives as long as the workers shall: a worker dies
    with the thread that started it.

    Raises:
        OSError: the process cannot be started.
    """
    output, output_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(command or worker_command(seat)),
            env=worker_environment(seat.cpu_threads),
            stdin=DEVNULL,
            stdout=output_end,
            stderr=output_end,
            pass_fds=(seat.parent_pipe,),
            start_new_session=True,  # Ctrl-C in the terminal is for the front alone
        )
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(output_end)
    return WorkerProcess(seat.rank, process, output)


def worker_command(seat: WorkerSeat, module: str = "mtactors.worker.main") -> list[str]:
    """Return the command line of a worker; `module` has a `main` that returns an exit code."""
    # `-c` puts the working directory on the path: say what is on it before anything is imported.
    stub = (
        f"import sys; sys.path[:] = {_import_path()!r}; sys.argv[:2] = ['worker']; "
        f"from {module} import main; sys.exit(main())"
    )
    return [sys.executable, "-c", stub, "worker", *worker_options(seat)]


def worker_options(seat: WorkerSeat) -> list[str]:
    """Return the options that tell a worker its place."""
    return [
        f"--connect={seat.address}",
        f"--rank={seat.rank}",
        f"--world-size={seat.world_size}",
        f"--epoch={seat.epoch}",
        f"--parent-pipe={seat.parent_pipe}",
    ]


def _import_path() -> list[str]:
    """Return this process's import path without the working directory.

    In the source tree that directory holds `kernels`, which transformers would take for the Hub's
    package of that name.
    """
    here = os.path.realpath(os.curdir)
    return [entry for entry in sys.path if entry and os.path.realpath(entry) != here]


class WorkerProcess:
    """A worker in a process of its own; what it prints is logged.

    Args:
        output: the reading end of the pipe that it writes to; closed by `wait`.
    """

    def __init__(self, rank: int, process: Process, output: int) -> None:
        self._rank = rank
        self._process = process
        self._output = output
        self._silent = asyncio.Event()
        self._unfinished = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        os.set_blocking(output, False)
        asyncio.get_running_loop().add_reader(output, self._read)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Send a signal; a worker that has ended is left alone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended a moment ago
                self._process.send_signal(number)

    async def wait(self) -> WorkerExit:
        """Wait until the worker has ended and its output is read."""
        try:
            code = await self._process.wait()
            with contextlib.suppress(asyncio.TimeoutError):
                # A process that it left behind may hold the pipe open for ever.
                await asyncio.wait_for(self._silent.wait(), _LAST_WORDS_SECONDS)
        finally:
            self._close_output()
        return WorkerExit(code, "\n".join(self._tail))

    def _read(self) -> None:
        try:
            data = os.read(self._output, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_output()
            return
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if len(self._unfinished) > _LONGEST_LINE:
            lines.append(self._unfinished)
            self._unfinished = b""
        for line in lines:
            self._keep(line)

    def _close_output(self) -> None:
        if not self._silent.is_set():
            self._silent.set()
            asyncio.get_running_loop().remove_reader(self._output)
            os.close(self._output)
            self._keep(self._unfinished)

    def _keep(self, line: bytes) -> None:
        # Of a progress bar, which rewrites its line, only the last state counts.
        text = line.rstrip().rpartition(b"\r")[2].decode("utf-8", errors="replace")
        if text:
            self._tail.append(text[:_LONGEST_LINE])
            logger.info("rank %d: %s", self._rank, text)
