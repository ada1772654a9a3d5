"""The worker actor: in this process over real sockets, and as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtactors.errors import CheckpointError, ConfigError, WireError
from mtactors.wire.channel import WorkerChannel
from mtactors.wire.codec import encode
from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    Configure,
    Hello,
    Shutdown,
    StepResult,
)
from mtactors.worker.main import Worker
from tests.worker.fronts import HandFront, ends, exit_code, is_alive
from tests.worker.naive import Naive
from tests.worker.plans import Plans, configure, known_row, new_row

SHORT = [5, 9, 200, 17, 33]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[HandFront]:
    async with HandFront(tmp_path) as front:
        yield front


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Configure:
    return configure(str(tiny_model), str(tmp_path))


def run_here(front: HandFront) -> asyncio.Task[None]:
    """Run a worker of this process on a thread."""

    def live() -> None:
        channel = WorkerChannel(front.channel.address, front.epoch, 0)
        try:
            Worker(channel, front.epoch, 0).run()
        finally:
            channel.close()

    return asyncio.create_task(asyncio.to_thread(live))


async def test_a_worker_lives_from_hello_to_shutdown(
    front: HandFront, settings: Configure, naive: Naive
) -> None:
    process = front.spawn()
    phases, ready = await front.start(settings)
    assert [phase.phase for phase in phases] == ["import", "check", "load", "kv", "ready"]
    assert all(phase.seconds >= 0 for phase in phases)
    assert ready.num_blocks == settings.kv_cache_memory_bytes // (16 * 2 * 2 * 2 * 32 * 4)
    assert ready.kv_bytes <= settings.kv_cache_memory_bytes
    assert ready.weight_bytes > 0
    assert ready.kernels == "reference"
    os.kill(process.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches every process in it
    plans = Plans()
    ids = (await front.step(plans.next(new_row(0, SHORT, [0])))).ids
    # Two plans in flight: the second names an id that nobody has seen yet.
    front.send(plans.next(known_row(0)))
    front.send(plans.next(known_row(0)))
    ids += (await front.receive(StepResult)).ids + (await front.receive(StepResult)).ids
    assert ids == naive.greedy(SHORT, 3)
    page = (front.run_dir / "step-0").read_bytes()
    assert struct.unpack("<q", page[:8]) == (3,)
    assert await front.shut_down() == [0]


async def test_a_gap_ends_the_process_with_a_report(front: HandFront, settings: Configure) -> None:
    process = front.spawn()
    await front.start(settings)
    plans = Plans(seq=1)
    front.send(plans.next(new_row(0, SHORT, [0])))
    failed = await front.failure()
    assert (failed.epoch, failed.rank, failed.seq, failed.kind) == (1, 0, 0, "fault")
    assert failed.message == "expected plan 1 of epoch 1, got plan 2 of epoch 1"
    assert "WireError" in failed.traceback
    assert await exit_code(process) == 1


async def test_a_bad_checkpoint_is_the_users_to_mend(
    front: HandFront, settings: Configure, tmp_path: Path
) -> None:
    process = front.spawn()
    await front.receive(Hello)
    front.send(replace(settings, model_dir=str(tmp_path / "none")))
    failed = await front.failure()
    assert (failed.kind, failed.seq) == ("usage", 0)
    assert "config.json" in failed.message
    assert "\n" not in failed.message
    assert await exit_code(process) == 1


async def test_a_worker_ends_when_the_front_closes_its_pipe(front: HandFront) -> None:
    process = front.spawn()
    await front.receive(Hello)
    front.close_pipe()
    assert await exit_code(process) == 1


async def test_sigterm_ends_a_worker(front: HandFront) -> None:
    process = front.spawn()
    await front.receive(Hello)
    process.terminate()
    assert await exit_code(process) == -signal.SIGTERM


async def test_a_worker_dies_with_the_process_that_started_it(front: HandFront) -> None:
    """The pipe stays open here: it is the kernel that tells."""
    code = (
        "import subprocess, sys, time; "
        f"subprocess.Popen({front.command()!r}, pass_fds=({front.parent_pipe},)); time.sleep(600)"
    )
    parent = front.spawn_command([sys.executable, "-c", code])
    worker = (await front.receive(Hello)).pid
    assert is_alive(worker)
    parent.kill()
    assert await asyncio.to_thread(ends, worker)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seq": 1}, "expected plan 2 of epoch 1, got plan 1 of"),
        ({"seq": 3}, "expected plan 2 of epoch 1, got plan 3 of"),
        ({"epoch": 2}, "expected plan 2 of epoch 1, got plan 2 of epoch 2"),
    ],
)
async def test_plans_out_of_order_are_refused(
    front: HandFront, settings: Configure, change: dict[str, Any], reason: str
) -> None:
    task = run_here(front)
    await front.start(settings)
    plans = Plans()
    await front.step(plans.next(new_row(0, SHORT, [0])))
    front.send(replace(plans.next(known_row(0)), **change))
    with pytest.raises(WireError, match=reason):
        await task


async def test_a_second_configure_is_refused(front: HandFront, settings: Configure) -> None:
    task = run_here(front)
    await front.start(settings)
    front.send(settings)
    with pytest.raises(WireError, match="expected a plan, got Configure"):
        await task


async def test_a_plan_that_fits_no_row_is_refused(front: HandFront, settings: Configure) -> None:
    task = run_here(front)
    await front.start(settings)
    front.send(Plans().next(known_row(5)))
    with pytest.raises(WireError, match="no row holds"):
        await task


async def test_shutdown_before_configure_is_a_normal_end(front: HandFront) -> None:
    task = run_here(front)
    hello = await front.receive(Hello)
    assert hello == Hello(PROTOCOL_VERSION, 1, 0, os.getpid())
    front.send(Shutdown(1, "test"))
    await task


async def test_another_versions_configure_is_refused(front: HandFront, settings: Configure) -> None:
    task = run_here(front)
    await front.receive(Hello)
    front.channel.send(0, encode(replace(settings, version=PROTOCOL_VERSION + 1)))
    with pytest.raises(WireError, match="different mtactors versions"):
        await task


@pytest.mark.parametrize("change", [{"rank": 1, "world_size": 2}, {"epoch": 7}])
async def test_somebody_elses_configure_is_refused(
    front: HandFront, settings: Configure, change: dict[str, Any]
) -> None:
    task = run_here(front)
    await front.receive(Hello)
    front.send(replace(settings, **change))
    with pytest.raises(WireError, match="this is rank 0 of epoch 1"):
        await task


async def test_a_plan_before_configure_is_refused(front: HandFront) -> None:
    task = run_here(front)
    await front.receive(Hello)
    front.send(Plans().next())
    with pytest.raises(WireError, match="first message is no Configure"):
        await task


async def test_too_little_memory_names_what_would_fit(
    front: HandFront, settings: Configure
) -> None:
    task = run_here(front)
    await front.receive(Hello)
    front.send(replace(settings, kv_cache_memory_bytes=40 << 10))
    with pytest.raises(ConfigError, match="lower --max-model-len to 32"):
        await task


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"device": "tpu"}, ConfigError),
        ({"dtype": "int8"}, ConfigError),
        ({"kernels": "none"}, ConfigError),
        ({"model_dir": "/nonexistent"}, CheckpointError),
    ],
)
async def test_what_cannot_be_loaded_is_a_usage_error(
    front: HandFront, settings: Configure, change: dict[str, Any], error: type[Exception]
) -> None:
    task = run_here(front)
    await front.receive(Hello)
    front.send(replace(settings, **change))
    with pytest.raises(error):
        await task
