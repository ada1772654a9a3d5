"""The other end of an adapter: its process, questions and answers, its memory, its sleep.

An engine that is not measured is stopped (SIGSTOP), so that none can spin or tidy up while another
is measured. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import psutil

from benchmarks.peers.protocol import Options

ROOT = Path(__file__).resolve().parent.parent.parent
#: What an adapter runs. The root is on the path only until the adapter is imported: `kernels`,
#: which lies there, would be taken for the Hub's package of that name.
_STUB = (
    "import sys; root, name = sys.argv[1:]; sys.path.append(root); import importlib; "
    "from benchmarks.peers import protocol; "
    "adapter = importlib.import_module(name).ADAPTER; "
    "sys.path[:] = [entry for entry in sys.path if entry not in ('', root)]; "
    "protocol.serve(adapter())"
)
_OF_THIS_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_SAMPLE_SECONDS = 0.1
_STOP_SECONDS = 30.0
_FREEZE_SECONDS = 5.0


class PeerError(Exception):
    """An engine that is missing or has failed; says why in one line."""


@dataclass(frozen=True)
class Peer:
    """An engine that can be measured.

    Args:
        name: as the tables show it.
        python: of the environment that has the engine.
        adapter: module with `ADAPTER`.
        options: how it is started.
        equal_streams: whether its adapter has `run_streams`.
        environment: variables beside those of this process.
        missing: why it cannot be measured at all; empty: it can.
    """

    name: str
    python: str
    adapter: str
    options: Options
    equal_streams: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


class PeerProcess:
    """One engine at work, with all processes that it starts.

    Args:
        cores: the CPUs that it may use.
        log: takes what the engine prints.
        timeout: seconds for one answer.

    Raises:
        PeerError: it cannot be started.
    """

    def __init__(self, peer: Peer, cores: set[int], log: Path, timeout: float) -> None:
        if peer.missing:
            raise PeerError(peer.missing)
        self.peer = peer
        self._timeout = timeout
        self._log = log
        self._silent = False  # it has not answered in time, and will not
        self._directory = tempfile.TemporaryDirectory(prefix="compare-")

        def settle() -> None:
            os.sched_setaffinity(0, cores)

        with log.open("ab") as errors:
            try:
                self._process = subprocess.Popen(
                    [peer.python, "-c", _STUB, str(ROOT), peer.adapter],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=own_environment() | peer.environment,
                    cwd=self._directory.name,
                    preexec_fn=settle,
                )
            except OSError as error:
                self._directory.cleanup()
                raise PeerError(f"cannot run {peer.python}: {error.strerror}") from error

    def ask(self, what: str, /, **arguments: object) -> object:
        """Ask something and return the answer.

        Raises:
            PeerError: the engine says no, is gone, or takes too long.
        """
        assert self._process.stdin is not None
        line = json.dumps({"do": what, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        answer = json.loads(self._read_line(what))
        if "error" in answer:
            raise PeerError(f"{what}: {answer['error'].splitlines()[0]} (see {self._log})")
        return cast(object, answer["ok"])

    def freeze(self) -> None:
        """Stop every process of the engine until `thaw`; return when they have stopped."""
        freeze(self.processes())

    def thaw(self) -> None:
        """Let the engine go on."""
        thaw(self.processes())

    def processes(self) -> list[psutil.Process]:
        """Return every process of the engine, the adapter first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            adapter = psutil.Process(self._process.pid)
            return [adapter, *adapter.children(recursive=True)]
        return []

    def memory(self) -> int:
        """Return the resident bytes of all processes together; shared pages count in each."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def stop(self) -> None:
        """End every process of the engine, whatever state it is in."""
        left = self.processes()
        self.thaw()
        assert self._process.stdin is not None and self._process.stdout is not None
        if not self._silent:
            with contextlib.suppress(PeerError):
                self._timeout = _STOP_SECONDS
                self.ask("stop")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        end(left)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._directory.cleanup()

    def _read_line(self, what: str) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._silent = True
                    raise PeerError(f"{what}: no answer within {self._timeout:g} s")
                piece = os.read(self._process.stdout.fileno(), 1 << 20)
                if not piece:
                    raise PeerError(f"{what}: {self._last_words()}")
                data += piece
        return bytes(data)

    def _last_words(self) -> str:
        code = self._process.wait(_STOP_SECONDS)
        lines = self._log.read_text(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()[:200]}" if lines else ""
        return f"it ended with code {code}{said} (see {self._log})"


class MemoryWatch:
    """Watches an engine's memory in a thread, ten times a second; use it in a `with` block.

    Attributes:
        peak: bytes.
    """

    def __init__(self, memory: Callable[[], int]) -> None:
        self.peak = 0
        self._memory = memory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, self._memory())

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._memory())
            if self._over.wait(_SAMPLE_SECONDS):
                return


def freeze(processes: Sequence[psutil.Process]) -> None:
    """Stop processes until `thaw`; return when they have stopped."""
    for process in processes:
        _signal(process, signal.SIGSTOP)
    deadline = time.monotonic() + _FREEZE_SECONDS
    while any(map(_is_awake, processes)) and time.monotonic() < deadline:
        time.sleep(0.001)


def thaw(processes: Sequence[psutil.Process]) -> None:
    """Let processes go on, the last first."""
    for process in reversed(processes):
        _signal(process, signal.SIGCONT)


def end(processes: Sequence[psutil.Process]) -> None:
    """Kill processes."""
    for process in processes:
        _signal(process, signal.SIGKILL)


def own_environment() -> dict[str, str]:
    """Return this process's variables without those that would mix the environments."""
    return {name: value for name, value in os.environ.items() if name not in _OF_THIS_PYTHON}


def _is_awake(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
