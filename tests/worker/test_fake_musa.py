"""The musa branch of device, collectives, loader and worker, over a stand-in for torch_musa.

What is covered: every line of that branch, with real tensors of another device than the CPU, so
that a forgotten `.to(device)` fails. What is not: Moore Threads' software and cards.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtactors.wire.messages import Configure, Hello, StepResult, WorkerFailed
from tests.source_tree import ROOT
from tests.worker.fronts import HandFront
from tests.worker.naive import Naive
from tests.worker.plans import Plans, configure, known_row, new_row, sampler

FAKES = str(ROOT / "tests" / "fakes")
SHORT = [5, 9, 200, 17, 33]

pytestmark = pytest.mark.skipif(
    not hasattr(torch._C, "_acc"),
    reason="this torch cannot have a device that is written in Python",
)


def in_a_process(code: str, **environment: str) -> Any:
    """Run code where torch_musa is the stand-in; return what it leaves in `found`."""
    script = f"import sys; sys.path.insert(0, {FAKES!r})\n{code}\n"
    script += "import json, os; print(json.dumps(found), flush=True); os._exit(0)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_card_answers_all_that_a_worker_asks() -> None:
    found = in_a_process(
        """
import torch
from mtactors.worker import device
card = device.open_device("musa", 1)
first = card.record()
before = card.memory()
def work():
    held = [torch.ones(1 << 20, device=card.torch_device) for _ in range(3)]
peak = card.peak_of(work)
held = torch.ones(1 << 20, device=card.torch_device)
last = card.record()
last.synchronize()
card.seed(3)
card.synchronize()
found = {
    "kind": card.kind, "name": card.name, "device": str(card.torch_device),
    "capability": card.capability, "stream": card.stream, "count": device.count("musa"),
    "total": before.total, "shared": before.shared, "taken": before.free - card.memory().free,
    "peak": peak, "ordered": first.milliseconds_until(last) >= 0,
    "threads": card.set_threads(0, 8), "reason": device.unavailable("musa"),
    "current": torch.musa.current_device(),
}
"""
    )
    assert found == {
        "kind": "musa", "name": "Fake MTT S4000", "device": "musa:1", "capability": [2, 2],
        "stream": 0, "count": 2, "total": 1 << 30, "shared": False, "taken": 4 << 20,
        "peak": 12 << 20, "ordered": True, "threads": 1, "reason": None, "current": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "environment", "reason"),
    [
        (0, {"FAKE_MUSA_BROKEN": "import"}, "torch_musa cannot be imported (libmusart.so.4: "),
        (0, {"FAKE_MUSA_CARDS": "0"}, "is not available: no driver and no card are here"),
        (0, {"FAKE_MUSA_BROKEN": "context"}, "musa 0 cannot be used: MUSA error: the card is in"),
        (2, {}, "rank 2 has no device: 2 musa device(s) are visible"),
        (1, {"MUSA_VISIBLE_DEVICES": "5"}, "1 musa device(s) are visible (MUSA_VISIBLE_DEVICES=5)"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    rank: int, environment: dict[str, str], reason: str
) -> None:
    code = f"""
from mtactors.errors import ConfigError
from mtactors.worker.device import open_device
try:
    found = open_device("musa", {rank}).name
except ConfigError as error:
    found = str(error)
"""
    found = in_a_process(code, **environment)
    assert reason in found
    assert "\n" not in found


def test_the_emulated_kernels_take_a_cards_tensors() -> None:
    """Addresses, queue and workspace of another device's tensors reach the kernels."""
    found = in_a_process(
        """
import torch
from mtactors.kernels import device as devices, golden
from mtactors.worker.device import open_device
card = open_device("musa")
path = devices.installed_library("emulated-musa")
found = None
if path is not None:
    ops = devices.open_library(str(path), device_type="musa")
    with torch.inference_mode():
        checked = golden.check(ops, card.torch_device, torch.float16)
        found = [each.describe() for each in checked if not each.right]
"""
    )
    if found is None:
        pytest.skip("this installation has no emulated kernels")
    assert found == []


def test_a_decoder_on_a_card_runs_on_device_kernels_alone(
    tiny_model: Path, tmp_path: Path, naive: Naive
) -> None:
    found = in_a_process(
        f"""
from mtactors import kernels
from mtactors.kernels import device as devices
from mtactors.worker import startup
sys.path.append({str(ROOT)!r})  # mtactors takes it off when it is imported
from tests.worker.plans import Plans, configure, known_row, new_row
path = devices.installed_library("emulated-musa")
found = None
if path is not None:
    ops = devices.open_library(str(path), device_type="musa")
    kernels.load = lambda device, name: ops
    config = configure({str(tiny_model)!r}, {str(tmp_path)!r}, device="musa")
    runner, ready = startup.prepare(config, lambda phase, seconds: None)
    plans = Plans()
    steps = [plans.next(new_row(0, {SHORT!r}, [0]))] + [plans.next(known_row(0)) for _ in range(4)]
    ids = [runner.run(plan, 0.0).ids[0] for plan in steps]
    found = [ready.kernels, list(ops.reference), ids]
"""
    )
    if found is None:
        pytest.skip("this installation has no emulated kernels")
    assert found == ["emulated-musa", [], naive.greedy(SHORT, 5)]


@pytest.fixture
def musa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the stand-in, and nothing but the reference computes."""
    monkeypatch.setattr(sys, "path", [FAKES, *sys.path])


@pytest.fixture
async def front(tmp_path: Path, musa: None) -> AsyncIterator[HandFront]:
    async with HandFront(tmp_path) as front:
        yield front


def settings(model: Path, run_dir: Path, **changes: Any) -> Configure:
    return configure(str(model), str(run_dir), device="musa", **changes)


async def test_a_worker_computes_on_the_card(
    front: HandFront, tiny_model: Path, naive: Naive
) -> None:
    front.spawn()
    _, ready = await front.start(settings(tiny_model, front.run_dir))
    assert ready.device_name == "Fake MTT S4000"
    plans = Plans()
    spec = sampler(logprobs=2, bias_ids=[4], bias_values=[-9.0], repetition_penalty=1.2)
    other = new_row(1, SHORT, [1], spec=spec, prompt_logprobs=1)
    ids = (await front.step(plans.next(new_row(0, SHORT, [0]), other))).ids[:1]
    ids += (await front.step(plans.next(known_row(0), copies=[(1, 2, 4)]))).ids
    ids += (await front.step(plans.next(known_row(0)))).ids
    assert ids == naive.greedy(SHORT, 3)
    assert await front.shut_down() == [0]


@pytest.mark.parametrize("tokens", [300, 64])
async def test_the_cache_takes_what_the_largest_step_leaves(
    front: HandFront, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    total = 48 << 20
    monkeypatch.setenv("FAKE_MUSA_BYTES", str(total))
    front.spawn()
    config = settings(
        tiny_model,
        front.run_dir,
        kv_cache_memory_bytes=0,
        max_num_batched_tokens=tokens,
        gpu_memory_utilization=1.0,
    )
    _, ready = await front.start(config)
    assert total // 2 < ready.kv_bytes < total - ready.weight_bytes
    # The largest steps that there can be, of long prompts and of many: the card has no more.
    plans = Plans()
    long = [new_row(slot, [7 + slot] * 64, list(range(4 * slot, 4 * slot + 4))) for slot in (0, 1)]
    for row in long[: max(1, tokens // 64 // 2)]:
        assert len((await front.step(plans.next(row))).ids) == 1
    short = [new_row(slot, [9] * 8, [20 + slot]) for slot in range(2, 8)]
    assert len((await front.step(plans.next(*short))).ids) == 6
    assert await front.shut_down() == [0]


async def test_a_step_that_has_no_room_says_what_to_lower(
    front: HandFront, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MUSA_BYTES", str(1 << 20))
    front.spawn()
    config = settings(
        tiny_model, front.run_dir, kv_cache_memory_bytes=0, max_num_batched_tokens=2048
    )
    failed = await failure(front, replace(config, golden_check=False))
    assert failed.kind == "usage"
    assert "no memory for a step of 2048 tokens" in failed.message


async def test_two_cards_add_up_to_one(
    tmp_path: Path, musa: None, tiny_model: Path, naive: Naive
) -> None:
    async with HandFront(tmp_path, world_size=2) as front:
        for rank in range(2):
            front.spawn(rank)
        config = settings(tiny_model, tmp_path, world_size=2)
        await front.start_all([replace(config, rank=rank) for rank in range(2)])
        plans = Plans()
        ids = (await front.step(plans.next(new_row(0, SHORT, [0])))).ids
        for _ in range(3):
            ids += (await front.step(plans.next(known_row(0)))).ids
        assert ids == naive.greedy(SHORT, 4)
        assert await front.shut_down() == [0, 0]


async def failure(front: HandFront, config: Configure) -> WorkerFailed:
    await front.receive(Hello, config.rank)
    front.send(config, config.rank)
    return await front.failure(config.rank)


async def test_a_card_that_multiplies_wrongly_does_not_serve(
    front: HandFront, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MUSA_BROKEN", "matmul")
    front.spawn()
    failed = await failure(front, settings(tiny_model, front.run_dir))
    assert failed.kind == "fault"
    assert "Fake MTT S4000 with reference kernels computes wrongly: linear is off" in failed.message


async def test_collectives_that_add_wrongly_do_not_serve(
    tmp_path: Path, musa: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MUSA_BROKEN", "all_reduce")
    async with HandFront(tmp_path, world_size=2) as front:
        config = settings(tiny_model, tmp_path, world_size=2)
        for rank in range(2):
            front.spawn(rank)
            await front.receive(Hello, rank)
            front.send(replace(config, rank=rank), rank)
        failed = await front.failure(0)
        assert "mccl adds wrongly: 2 ranks of ones gave 3" in failed.message


async def test_no_card_is_the_users_to_mend(
    front: HandFront, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MUSA_CARDS", "0")
    front.spawn()
    failed = await failure(front, settings(tiny_model, front.run_dir))
    assert (failed.kind, failed.seq) == ("usage", 0)
    assert failed.message.startswith("device: musa is not available: no driver")


async def test_a_card_without_room_for_the_weights_says_so(
    front: HandFront, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MUSA_BYTES", str(300 << 10))
    front.spawn()
    failed = await failure(front, settings(tiny_model, front.run_dir, golden_check=False))
    assert failed.kind == "usage"
    assert "no memory for the weights" in failed.message


async def test_a_plan_that_comes_early_is_taken_in_its_turn(
    front: HandFront, tiny_model: Path, naive: Naive
) -> None:
    """Plans, and the end, are decoded while the card computes, and done in order."""
    front.spawn()
    await front.start(settings(tiny_model, front.run_dir))
    plans = Plans()
    front.send(plans.next(new_row(0, SHORT, [0])))
    front.send(plans.next(known_row(0)))
    ids = []
    for _ in range(6):
        ids.append((await front.receive(StepResult)).ids[0])
        front.send(plans.next(known_row(0)))
    ids.append((await front.receive(StepResult)).ids[0])
    codes = asyncio.create_task(front.shut_down())
    ids.append((await front.receive(StepResult)).ids[0])
    assert ids == naive.greedy(SHORT, 8)
    assert await codes == [0]


async def test_a_gap_that_was_read_early_still_ends_the_worker(
    front: HandFront, tiny_model: Path
) -> None:
    front.spawn()
    await front.start(settings(tiny_model, front.run_dir))
    plans = Plans()
    first = plans.next(new_row(0, SHORT, [0]))
    plans.next(known_row(0))
    front.send(first)
    front.send(plans.next(known_row(0)))
    assert len((await front.receive(StepResult)).ids) == 1
    failed = await front.failure()
    assert "expected plan 2 of epoch 1, got plan 3" in failed.message
