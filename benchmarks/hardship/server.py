"""A server as users run it: `mtactors serve` in a process, its workers, its books, and its end.

Knows nothing of what is done to it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.hardship.streams import PATIENCE

_REPLACED = re.compile(r"the workers were replaced in ([0-9.]+) s \((.*)\); (\d+) choices")
_RESUMED = re.compile(r"choices have gone on after ([0-9.]+) s more")


def serve_command(model: str, tp: int, options: Sequence[str]) -> list[str]:
    """Return the command line of a server that replaces its workers as often as it takes."""
    return [
        *(sys.executable, "-m", "mtactors.entrypoints.cli", "serve", model, "--port=0"),
        *(f"--tensor-parallel-size={tp}", "--max-worker-restarts=1000"),
        *("--disable-log-requests", "--disable-log-stats", *options),
    ]


class Server:
    """A server as a process of its own, with a temporary directory of its own.

    Args:
        command: starts it; it says on stderr where it serves.
        name: of its log and of its temporary directory, both in `directory`.
    """

    def __init__(self, command: Sequence[str], name: str, directory: Path) -> None:
        self.log = directory / f"{name}.log"
        self.temporary = directory / name
        self.temporary.mkdir()
        self._shared = _shared_memory()
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        self.url = ""

    def wait_until_it_serves(self) -> None:
        """Return when requests are taken.

        Raises:
            SystemExit: they never are.
        """
        self.url = self._wait(r"serving (http://\S+)/v1")

    @property
    def said(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def ledger(self) -> dict[str, Any]:
        """Return the books."""
        answer = httpx.get(f"{self.url}/debug/ledger", timeout=PATIENCE)
        facts: dict[str, Any] = answer.raise_for_status().json()
        return facts

    def wait_until_idle(self) -> dict[str, Any]:
        """Wait until no request is left and the workers are up; return the books."""
        deadline = time.monotonic() + PATIENCE
        while True:
            books = self.ledger()
            busy = books["running"] + books["waiting"] + books["in_flight"]
            if not busy and books["status"] == "serving":
                return books
            if time.monotonic() > deadline:
                raise SystemExit(f"chaos: the server does not come to rest: {books}")
            time.sleep(0.05)

    def wait_for_epoch(self, epoch: int) -> None:
        """Wait until the workers of an epoch have been started."""
        while self.ledger()["epoch"] < epoch:
            time.sleep(0.05)

    def _wait(self, words: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(words, self.said)
            if found:
                return found.group(1)
            time.sleep(0.2)
        self.process.kill()
        raise SystemExit(f"the server does not serve:\n{self.said[-2000:]}")

    def workers(self) -> list[psutil.Process]:
        """Return the running workers by rank."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                words = child.cmdline()
            except psutil.Error:
                continue
            if "worker" in words and child.status() != psutil.STATUS_ZOMBIE:
                found[next(word for word in words if word.startswith("--rank="))] = child
        return [found[rank] for rank in sorted(found)]

    def restarts(self) -> Iterator[dict[str, float]]:
        """Yield the parts of each restart, read from the log."""
        parts: dict[str, float] = {}
        for line in self.said.splitlines():
            replaced, resumed = _REPLACED.search(line), _RESUMED.search(line)
            if replaced:
                if parts:
                    yield parts
                listed = (part.rsplit(" ", 2) for part in replaced.group(2).split(", "))
                parts = {name: float(seconds) for name, seconds, _ in listed}
            elif resumed:
                parts["prefill"] = float(resumed.group(1))
        if parts:
            yield parts

    def end(self) -> list[str]:
        """End it with SIGTERM; return what is wrong with how it ended."""
        workers = self.workers()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60.0)
        wrong = [] if code == 0 else [f"exit code {code}"]
        wrong += [f"process {worker.pid} is left" for worker in workers if worker.is_running()]
        wrong += [f"{name} is left" for name in os.listdir(self.temporary)]
        wrong += [f"/dev/shm/{name} is left" for name in _shared_memory() - self._shared]
        return wrong + [line for line in self.said.splitlines() if "Traceback" in line]


def _shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "mtactors" in name}
