"""What users see of `mtactors serve` when it cannot start, loses workers, or is killed itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.entrypoints.openai.server_process import command as fake_server
from tests.tiny_models import make_tiny_model

WAIT = 90.0  # seconds: a busy machine takes long to import torch
PATH = "/v1/completions"
LONG: dict[str, Any] = {
    "prompt": "The quick brown fox", "max_tokens": 400, "stream": True, "ignore_eos": True,
    "temperature": 0,
}  # fmt: skip


class Served:
    """A server in a process, with a temporary directory of its own."""

    def __init__(self, command: list[str], temporary: Path, fault: str = "") -> None:
        self.temporary = temporary
        self._log = temporary.with_suffix(".log")
        environment = {**os.environ, "TMPDIR": str(temporary), "MTACTORS_TEST_FAULT": fault}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    @property
    def lines(self) -> list[str]:
        """What was said so far."""
        return self._log.read_text().splitlines()

    def url(self) -> str:
        """Wait until it serves; return where."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"serving (http://\S+)/v1", self._log.read_text())
            if found:
                return found[1]
            time.sleep(0.05)
        raise AssertionError("\n".join(self.lines))

    def workers(self) -> list[psutil.Process]:
        """Return the running workers, by rank."""
        children = psutil.Process(self.process.pid).children()
        found = {}
        for child in children:
            with contextlib.suppress(psutil.Error):
                ranks = [word for word in child.cmdline() if word.startswith("--rank=")]
                found.update(dict.fromkeys(ranks, child))
        return [found[rank] for rank in sorted(found)]

    def sockets(self) -> list[str]:
        """Return what lies in the temporary directory and is no directory."""
        return [str(path) for path in self.temporary.rglob("*") if not path.is_dir()]


Start = Callable[..., Served]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers: the command itself, or `fake` over workers that compute nothing."""
    with tempfile.TemporaryDirectory(prefix="mt", dir="/tmp") as parent:
        servers: list[Served] = []

        def begin(*arguments: str, fault: str = "", fake: list[str] | None = None) -> Served:
            place = Path(parent) / f"t{len(servers)}"
            place.mkdir()
            serve = [str(Path(sys.executable).with_name("mtactors")), "serve", "--port=0"]
            command = [*serve, "--device=cpu", "--kv-cache-memory-bytes=8000000", *arguments]
            servers.append(Served(fake or command, place, fault))
            return servers[-1]

        yield begin
        for server in servers:
            server.process.kill()
            server.process.wait(WAIT)


def lives(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that nobody waits for may lie about dead for ever."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def no_process_uses(directory: Path) -> bool:
    """Tell whether no process is left that was started with a temporary directory."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(directory):
                return False
        except psutil.Error:
            continue
    return True


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("fault", "options", "code", "words"),
    [
        ("memory:phase=load", [], 2, "no memory"),
        ("kill:phase=load,rank=1", ["-tp=2"], 1, "rank 1 was killed by SIGKILL before it was re"),
        ("exit:phase=load", [], 1, "worker rank 0 exited with code 3 before it was ready"),
        ("", ["--kernels=nosuch"], 2, "kernels: no implementation 'nosuch'; there are: auto"),
    ],
)
def test_a_worker_that_does_not_come_up_is_one_line(
    start: Start, tiny_model: Path, fault: str, options: list[str], code: int, words: str
) -> None:
    server = start(str(tiny_model), *options, fault=fault)
    assert server.process.wait(WAIT) == code
    last = server.lines[-1]
    assert last.startswith("mtactors: error: ") and words in last
    assert sum("error" in line.lower() for line in server.lines) == 1, server.lines
    assert "Traceback" not in "".join(server.lines)
    assert os.listdir(server.temporary) == []
    assert no_process_uses(server.temporary)


@pytest.mark.needs_torch
def test_bad_weights_are_one_line(start: Start, tmp_path: Path) -> None:
    broken = make_tiny_model(tmp_path / "broken")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    server = start(str(broken))
    assert server.process.wait(WAIT) == 2
    assert f"mtactors: error: {file}: cannot be read" in server.lines[-1]
    assert "Traceback" not in "".join(server.lines)
    assert os.listdir(server.temporary) == []


@pytest.mark.needs_torch
def test_more_losses_than_allowed_are_told_to_all_and_end_it(
    start: Start, tiny_model: Path
) -> None:
    server = start(str(tiny_model), "--max-worker-restarts=1")
    with (
        httpx.Client(base_url=server.url(), timeout=WAIT) as http,
        http.stream("POST", PATH, json=LONG) as response,
    ):
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        killed: set[int] = set()
        deadline = time.monotonic() + WAIT
        while len(killed) < 2:  # the second one as soon as it is there
            assert time.monotonic() < deadline
            for worker in server.workers():
                if worker.pid not in killed:
                    worker.kill()
                    killed.add(worker.pid)
        last = [*lines][-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "killed by SIGKILL" in error["message"]
    assert server.process.wait(WAIT) == 1
    assert server.lines[-1].startswith("mtactors: error: worker rank 0 was killed by SIGKILL")
    assert "--max-worker-restarts allows 1 replacement" in server.lines[-1]
    assert os.listdir(server.temporary) == []


@pytest.mark.needs_torch
def test_nothing_is_left_of_a_front_that_is_killed(start: Start, tiny_model: Path) -> None:
    shared = set(os.listdir("/dev/shm"))
    server = start(str(tiny_model), "-tp=2")
    with (
        httpx.Client(base_url=server.url(), timeout=WAIT) as http,
        http.stream("POST", PATH, json=LONG) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        workers = server.workers()
        assert len(workers) == 2
        assert server.sockets() == []
        server.process.kill()
        server.process.wait(WAIT)
        deadline = time.monotonic() + 1.0
        while alive := [worker for worker in workers if lives(worker)]:
            assert time.monotonic() < deadline, alive
        with pytest.raises(httpx.HTTPError):
            list(lines)
    assert server.sockets() == []
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if "mtactors" in name}


def test_a_stopped_worker_is_named_and_replaced(start: Start) -> None:
    script = {"step_seconds": 0.01, "start_seconds": 1.0}
    config = {"tp": 2, "workers": {"step_timeout": 1.0}}
    server = start(fake=fake_server(script, {}, config))
    with (
        httpx.Client(base_url=server.url(), timeout=WAIT) as http,
        httpx.Client(base_url=server.url(), timeout=WAIT) as other,
        http.stream("POST", PATH, json={**LONG, "max_tokens": 100}) as response,
    ):
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        server.workers()[0].send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + WAIT
        while (ready := other.get("/ready")).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert ready.status_code == 503
        assert re.search(
            r"step \d+ was not answered within .*\(rank 0 (is in|has left) step \d+",
            ready.json()["detail"],
        )
        assert other.get("/health").json() == {"status": "restarting"}
        rest = [*lines]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
