"""Worker processes: what they are started with, and what is heard of them."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtactors.front.worker_process import (
    WorkerExit,
    WorkerSeat,
    launch_process,
    worker_command,
)


@pytest.fixture
def seat() -> Iterator[WorkerSeat]:
    reader, writer = os.pipe()
    yield WorkerSeat(
        rank=1, world_size=2, epoch=3, address="ipc:///x", parent_pipe=reader,
        cpu_threads=5,
    )  # fmt: skip
    os.close(reader)
    os.close(writer)


async def _run(seat: WorkerSeat, code: str) -> WorkerExit:
    worker = await launch_process(seat, [sys.executable, "-c", code])
    return await worker.wait()


async def test_a_worker_gets_our_path_its_options_and_quiet_threads(
    seat: WorkerSeat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "entry.py").write_text(
        "import json, os, sys\n"
        "def main():\n"
        "    names = ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'TORCH_DEVICE_BACKEND_AUTOLOAD')\n"
        "    print(json.dumps([sys.argv, sys.path, [os.environ[name] for name in names]]))\n"
        "    os.fstat(int(sys.argv[-1].split('=')[1]))\n"
        "    return 7\n"
    )
    monkeypatch.setattr(sys, "path", ["", os.getcwd(), *sys.path, str(tmp_path)])
    command = worker_command(seat, "entry")
    assert "worker" in command
    worker = await launch_process(seat, command)
    end = await worker.wait()
    assert end.code == 7, end.output
    argv, path, environment = json.loads(end.output)
    pipe = f"--parent-pipe={seat.parent_pipe}"
    assert argv == [
        "worker", "--connect=ipc:///x", "--rank=1", "--world-size=2", "--epoch=3", pipe,
    ]  # fmt: skip
    assert path[-1] == str(tmp_path)
    assert "" not in path
    assert os.getcwd() not in path
    assert environment == ["5", "PASSIVE", "0"]


async def test_what_the_user_set_wins(seat: WorkerSeat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    end = await _run(seat, "import os; print(os.environ['OMP_WAIT_POLICY'])")
    assert end.output == "ACTIVE"


async def test_output_is_logged_and_its_end_is_kept(
    seat: WorkerSeat, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
import sys
for n in range(100): print("line", n)
print("10 %\\r20 %\\r30 %")
print("no newline, broken \\udcff", end="", file=sys.stderr)
sys.exit(4)
"""
    with caplog.at_level(logging.INFO, "mtactors.worker"):
        end = await _run(seat, f"import sys; sys.stderr.reconfigure(errors='replace'){code}")
    lines = end.output.splitlines()
    assert lines[-2:] == ["30 %", "no newline, broken ?"]
    assert len(lines) == 40
    assert end.describe() == "exited with code 4: no newline, broken ?"
    assert "rank 1: line 0" in caplog.text


async def test_an_orphan_that_holds_the_pipe_does_not_hold_up_the_news(seat: WorkerSeat) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    code += "'import time; time.sleep(3)']); print('gone')"
    assert await _run(seat, code) == WorkerExit(0, "gone")


async def test_signals_reach_it_and_after_the_end_nobody(seat: WorkerSeat) -> None:
    worker = await launch_process(seat, [sys.executable, "-c", "import time; time.sleep(60)"])
    worker.send_signal(signal.SIGTERM)
    end = await worker.wait()
    assert end.describe(" early") == "was killed by SIGTERM early"
    worker.send_signal(signal.SIGKILL)


async def test_an_unknown_signal_and_an_empty_end_have_words() -> None:
    assert WorkerExit(-99, "").describe() == "was killed by signal 99"
    assert WorkerExit(0, "\n \n").describe(" early") == "exited with code 0 early"
