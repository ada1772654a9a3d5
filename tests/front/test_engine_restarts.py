"""Workers die, hang or are sent away, and no client sees more of it than a pause."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mtactors.errors import EngineDeadError, EngineUnavailableError, QueueFullError
from mtactors.front.engine import Engine
from mtactors.front.recovery import Restart
from mtactors.front.stream import RequestStream
from mtactors.front.worker_process import WorkerHandle
from mtactors.outputs import RequestOutput
from mtactors.sampling_params import SamplingParams
from tests.fake_worker import Fault, Script, ThreadWorker, in_processes, in_threads
from tests.front.engines import (
    WAIT,
    EngineFactory,
    engine_factory,
    final,
    greedy,
    read,
    until,
    until_idle,
    whole,
)

MANY = {"max_restarts": 1000}


@pytest_asyncio.fixture
async def start(scratch: Path) -> AsyncIterator[EngineFactory]:
    async for factory in engine_factory(scratch):
        yield factory


def mixed() -> list[tuple[list[int], SamplingParams]]:
    """Requests of all kinds; with `hash` tokens each one's output depends on all that it is."""
    same = [7, 8, 9] * 12
    return [
        (same, greedy(max_tokens=20)),
        (same, greedy(max_tokens=20, logprobs=2)),
        (same, SamplingParams(max_tokens=17, seed=5)),
        (same, SamplingParams(max_tokens=17, n=2, logprobs=1, ignore_eos=True)),
        ([11] * 40, SamplingParams(max_tokens=9, prompt_logprobs=2, n=2)),
        ([11] * 33, greedy(max_tokens=30, stop=["a", "e", "th"])),
        ([300, 301], greedy(max_tokens=40, min_tokens=30, repetition_penalty=1.2)),
        ([12], SamplingParams(max_tokens=1)),
        ([13] * 20, SamplingParams(max_tokens=0, prompt_logprobs=0)),
    ]


async def run_mixed(engine: Engine) -> list[list[RequestOutput]]:
    """Return all outputs of the mixed requests."""
    streams = [engine.submit(f"r{n}", *request) for n, request in enumerate(mixed())]
    return await asyncio.gather(*(read(stream) for stream in streams))


def facts(outputs: Sequence[list[RequestOutput]]) -> list[object]:
    """Return what a client keeps of a run."""
    return [(run[-1].finished, run[-1].outputs, run[-1].prompt_logprobs) for run in outputs]


def check_growth(outputs: list[RequestOutput]) -> None:
    """Assert that nothing was ever taken back or sent twice."""
    for before, after in pairwise(outputs):
        for old, new in zip(before.outputs, after.outputs, strict=True):
            assert new.token_ids[: len(old.token_ids)] == old.token_ids
            assert new.text.startswith(old.text)


def exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


async def undisturbed(start: EngineFactory, **options: Any) -> list[object]:
    engine = await start(Script(tokens="hash"), seed=3, **options)
    return facts(await run_mixed(engine))


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("caching", [True, False])
async def test_a_death_at_any_step_changes_nothing(
    start: EngineFactory, tp: int, caching: bool
) -> None:
    expected = await undisturbed(start, caching=caching)
    for at in (1, 2, 3, 5, 8, 13, 21, 28):
        fault = Fault(at, "kill" if at % 2 else "exit", rank=at % tp)
        script = Script(tokens="hash", faults=(fault,))
        engine = await start(script, seed=3, tp=tp, caching=caching)
        outputs = await run_mixed(engine)
        assert facts(outputs) == expected
        for run in outputs:
            check_growth(run)
        assert (engine.phase, engine.detail) == ("ready", "")
        assert (engine.stats().restarts, engine.stats().epoch) == (1, 2)
        assert engine.stats().suspects == 0
        await until_idle(engine)
        whole(engine)
        await engine.stop()


@pytest.mark.parametrize("budget", [16, 2048])
async def test_deaths_in_every_epoch_change_nothing(start: EngineFactory, budget: int) -> None:
    # With a small budget long prompts are computed in chunks, so that the dead had not begun all.
    scheduler = {"max_num_batched_tokens": budget}
    expected = await undisturbed(start, scheduler=scheduler)
    faults = tuple(Fault(9 + epoch, "kill", epoch=epoch) for epoch in range(1, 12))
    script = Script(tokens="hash", faults=faults)
    engine = await start(script, seed=3, scheduler=scheduler, workers=MANY)
    assert facts(await run_mixed(engine)) == expected
    assert engine.stats().restarts >= 3


async def test_a_stop_string_may_straddle_a_death(start: EngineFactory) -> None:
    for at in range(1, 10):
        engine = await start(Script(faults=(Fault(at, "kill"),)), workers=MANY)
        ids = [engine.tokenizer.encode(letter)[0] for letter in "one two"]
        params = greedy(max_tokens=30, stop=["e t", "never"])
        output = (await final(engine.submit("r", ids, params))).outputs[0]
        assert (output.text, output.finish_reason) == ("on", "stop")
        assert (output.token_ids, output.stop_reason) == (ids[:5], "e t")
        await engine.stop()


async def test_a_killed_process_is_replaced_and_nothing_is_left_of_it(
    start: EngineFactory,
) -> None:
    workers: list[WorkerHandle] = []
    engine = await start(launcher=in_processes(Script(step_seconds=0.002), workers), tp=2)
    streams = [engine.submit(f"r{n}", [5 + n] * 30, greedy(max_tokens=200)) for n in range(8)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    dead = engine.worker_pids
    os.kill(dead[1], signal.SIGKILL)
    for n, stream in enumerate(streams):
        assert (await final(stream)).outputs[0].token_ids == [5 + n] * 200
    assert len(workers) == 4
    assert not set(dead) & set(engine.worker_pids)
    assert not any(exists(pid) for pid in dead)


async def test_a_restart_is_reported_in_parts(
    start: EngineFactory, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start(Script(faults=(Fault(5, "kill"),)))
    with caplog.at_level(logging.INFO, "mtactors.front.recovery"):
        await final(engine.submit("r", [5] * 30, greedy(max_tokens=20, n=2)))
    (restart,) = engine.restarts
    assert (restart.epoch, restart.commanded, restart.rows) == (2, False, 2)
    assert "was killed by SIGKILL" in restart.reason
    assert list(restart.parts) == ["stop", "spawn", "load", "other", "prefill"]
    assert restart.seconds == sum(restart.parts.values())
    assert all(seconds >= 0 for seconds in restart.parts.values())
    first, second, third = caplog.messages
    assert first == "worker rank 0 was killed by SIGKILL (out of memory?): replacing the workers"
    assert second.startswith("the workers were replaced in")
    assert third.startswith("all 2 choices have gone on")


async def test_requests_that_come_meanwhile_wait(start: EngineFactory) -> None:
    script = Script(start_seconds=0.05, faults=(Fault(5, "kill"),))
    engine = await start(script, scheduler={"max_num_queued": 2})
    before = [engine.submit(f"r{n}", [n + 5] * 20, greedy(max_tokens=40)) for n in range(2)]
    await until(lambda: engine.phase == "restarting")
    assert not engine.ready
    assert engine.detail.startswith("worker rank 0 was killed by SIGKILL")
    assert engine.ledger().used == 0
    # Those who are to go on do not count against the bound of those who wait.
    late = [engine.submit(f"late{n}", [50 + n] * 20, greedy(n=2)) for n in range(2)]
    with pytest.raises(QueueFullError):
        engine.submit("too late", [60], greedy())
    engine.abort("late1")
    assert (await final(late[1])).outputs[0].finish_reason == "abort"
    assert len((await final(late[0])).outputs[1].token_ids) == 8
    for n, stream in enumerate(before):
        assert (await final(stream)).outputs[0].token_ids == [n + 5] * 40
    await until_idle(engine)
    whole(engine)


async def test_a_hung_rank_is_named_and_replaced(start: EngineFactory) -> None:
    script = Script(start_seconds=0.05, faults=(Fault(4, "hang"),))
    engine = await start(script, tp=2, workers={"step_timeout": 0.4})
    stream = engine.submit("r", [5], greedy(max_tokens=30))
    await until(lambda: engine.phase == "restarting")
    assert engine.detail.startswith("step 4 was not answered within 0.")
    assert "rank 0 is in step 4 since" in engine.detail
    assert "rank 1" in engine.detail
    assert (await final(stream)).outputs[0].token_ids == [5] * 30


async def test_a_stopped_process_is_replaced(start: EngineFactory) -> None:
    workers: list[WorkerHandle] = []
    launcher = in_processes(Script(step_seconds=0.002), workers)
    engine = await start(launcher=launcher, workers={"step_timeout": 0.3})
    stream = engine.submit("r", [5], greedy(max_tokens=300))
    await anext(stream)
    os.kill(workers[0].pid, signal.SIGSTOP)
    assert (await final(stream)).outputs[0].token_ids == [5] * 300
    assert re.search(r"rank 0 (is in|has left) step \d", engine.restarts[0].reason)
    assert not exists(workers[0].pid)


async def test_more_losses_than_allowed_end_everything(start: EngineFactory) -> None:
    faults = tuple(Fault(5, "kill", epoch=epoch) for epoch in range(1, 9))
    engine = await start(Script(faults=faults), workers={"max_restarts": 2})
    streams = [engine.submit(f"r{n}", [5 + n] * 3, greedy(max_tokens=90)) for n in range(3)]
    for stream in streams:
        with pytest.raises(EngineDeadError, match="--max-worker-restarts allows 2 replacements"):
            await read(stream)
    error = await asyncio.wait_for(engine.failed, WAIT)
    assert "\n" not in str(error)
    assert str(error).startswith("worker rank 0 was killed by SIGKILL")
    assert (engine.phase, engine.stats().restarts) == ("dead", 2)
    assert engine.stats().finished == {"error": 3}
    with pytest.raises(EngineUnavailableError, match="will not come back"):
        await engine.restart_workers()


async def test_losses_count_for_ten_minutes(start: EngineFactory) -> None:
    faults = tuple(Fault(3, "kill", epoch=epoch) for epoch in range(1, 5))
    engine = await start(Script(faults=faults), workers={"max_restarts": 1})
    engine._recovery._clock = lambda: engine._clock() + 700 * engine._supervisor.epoch
    assert len((await final(engine.submit("r", [5], greedy(max_tokens=15)))).outputs) == 1
    assert engine.stats().restarts == 4


async def test_a_group_that_does_not_come_up_is_tried_again(
    start: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtactors.front.recovery._FIRST_PAUSE", 0.001)
    faults = (Fault(3, "kill"), Fault("ready", "raise", epoch=2), Fault("ready", "usage", epoch=3))
    engine = await start(Script(faults=faults))
    assert (await final(engine.submit("r", [5], greedy()))).outputs[0].token_ids == [5] * 8
    assert (engine.stats().epoch, engine.stats().restarts) == (4, 1)
    assert engine.restarts[0].parts["failed"] > 0


async def test_a_group_that_never_comes_up_is_the_end(
    start: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtactors.front.recovery._FIRST_PAUSE", 0.001)
    faults = (Fault(3, "kill"), *(Fault("ready", "usage", epoch=epoch) for epoch in range(2, 9)))
    engine = await start(Script(faults=faults))
    with pytest.raises(EngineDeadError, match="this went wrong"):
        await read(engine.submit("r", [5], greedy()))
    assert "this went wrong" in str(await asyncio.wait_for(engine.failed, WAIT))
    assert engine.stats().epoch == 4


async def test_idle_workers_are_replaced_as_well(start: EngineFactory) -> None:
    started: list[ThreadWorker] = []
    engine = await start(launcher=in_threads(Script(), started))
    started[0].send_signal(signal.SIGKILL)
    await until(lambda: engine.stats().restarts == 1)
    await until(lambda: engine.ready)
    assert (await final(engine.submit("r", [5], greedy()))).finished


@pytest.mark.parametrize("max_restarts", [0, 3])
async def test_workers_are_replaced_on_command_under_load(
    start: EngineFactory, max_restarts: int
) -> None:
    expected = await undisturbed(start)
    script = Script(tokens="hash", step_seconds=0.001)
    engine = await start(script, seed=3, workers={"max_restarts": max_restarts})
    running = asyncio.ensure_future(run_mixed(engine))
    restarts: list[Restart] = []
    for _ in range(5):  # commands never count
        await asyncio.sleep(0.005)
        restarts += await asyncio.gather(engine.restart_workers(), engine.restart_workers())
    assert facts(await asyncio.wait_for(running, WAIT)) == expected
    assert [restart.epoch for restart in restarts] == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert restarts[0].commanded
    assert engine.stats().suspects == 0


async def test_a_command_in_the_midst_of_a_restart_is_another_one(start: EngineFactory) -> None:
    script = Script(start_seconds=0.05, faults=(Fault(3, "kill"),))
    engine = await start(script)
    stream = engine.submit("r", [5], greedy(max_tokens=60))
    await until(lambda: engine.phase == "restarting")
    assert (await asyncio.wait_for(engine.restart_workers(), WAIT)).epoch == 3
    assert (await final(stream)).outputs[0].token_ids == [5] * 60


async def test_a_death_serves_who_asked_for_a_restart(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.02, faults=(Fault(2, "kill"),)))
    stream = engine.submit("r", [5], greedy(max_tokens=9))
    await until(lambda: engine.stats().in_flight == 2)
    restart = await asyncio.wait_for(engine.restart_workers(), WAIT)
    assert (restart.epoch, restart.commanded) == (2, False)
    assert (await final(stream)).finished


async def test_draining_outlives_a_death(start: EngineFactory) -> None:
    engine = await start(Script(start_seconds=0.02, faults=(Fault(5, "kill"),)))
    stream = engine.submit("r", [5], greedy(max_tokens=40))
    await anext(stream)
    draining = asyncio.ensure_future(engine.drain(WAIT))
    await until(lambda: engine.stats().restarts == 1)
    assert engine.phase == "draining"
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        engine.submit("late", [5], greedy())
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        await engine.restart_workers()
    assert await asyncio.wait_for(draining, WAIT)
    assert (await final(stream)).outputs[0].token_ids == [5] * 40


async def test_stopping_in_the_midst_of_a_restart(start: EngineFactory) -> None:
    workers: list[WorkerHandle] = []
    script = Script(start_seconds=0.3, faults=(Fault(3, "kill"),))
    engine = await start(launcher=in_processes(script, workers))
    stream = engine.submit("r", [5], greedy(max_tokens=40))
    await until(lambda: engine.phase == "restarting" and len(workers) == 2)
    asked = asyncio.ensure_future(engine.restart_workers())
    await asyncio.sleep(0)
    await asyncio.wait_for(engine.stop(), WAIT)
    for waiting in (read(stream), asked):
        with pytest.raises(EngineDeadError, match="was stopped"):
            await waiting
    assert not engine.failed.done()
    assert not any(exists(worker.pid) for worker in workers)


async def test_deaths_amid_random_aborts_answer_everybody(start: EngineFactory) -> None:
    randomness = random.Random(5)
    faults = tuple(Fault(15, "kill", epoch % 2, epoch) for epoch in range(1, 100))
    script = Script(tokens="hash", faults=faults, step_seconds=0.0005)
    engine = await start(script, tp=2, workers=MANY)
    ends: list[str] = []

    async def client(number: int) -> None:
        await asyncio.sleep(randomness.random() * 0.2)
        prompt = [5 + number % 3] * randomness.randrange(1, 40)
        stream: RequestStream = engine.submit(f"r{number}", prompt, greedy(n=2))
        reads = randomness.randrange(20)
        async for output in stream:
            reads -= 1
            if output.finished:
                ends.append("finished")
            elif reads == 0:
                await stream.aclose()
                ends.append("left")

    await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(120))), 3 * WAIT)
    assert len(ends) == 120
    assert set(ends) == {"finished", "left"}
    assert engine.stats().restarts > 3
    await until_idle(engine)
    whole(engine)
