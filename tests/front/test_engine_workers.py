"""The engine over real workers and the kernels in C++: what is cut off goes on to the bit.

Small random models agree by luck more easily than real ones: `make chaos` is the long proof.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtactors.engine_args import EngineArgs
from mtactors.errors import MtactorsError, RequestQuarantinedError
from mtactors.front.engine import Engine
from mtactors.front.launch import launch
from mtactors.front.stream import RequestStream
from mtactors.outputs import RequestOutput
from mtactors.sampling_params import SamplingParams
from tests.front.engines import read, until
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.needs_torch

PATIENCE = 120.0  # seconds: a busy machine takes long to import torch
POISON = 317


@pytest.fixture(autouse=True)
def temporary(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of the test's own, which must be empty at its end."""
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield scratch
    assert os.listdir(scratch) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")


async def start(model: Path, **options: object) -> Engine:
    """Start an engine with little of everything."""
    args = EngineArgs.from_kwargs(
        **{
            "model": str(model),
            "dtype": "bfloat16",
            "cpu_threads": 1,
            "block_size": 16,
            "kv_cache_memory_bytes": 4 << 20,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 64,
            "max_worker_restarts": 100,
            "disable_log_stats": True,
            **options,
        }
    )
    return await asyncio.wait_for(launch(args), PATIENCE)


def submit_mixed(engine: Engine, run: int) -> list[RequestStream]:
    """Submit requests of all kinds, the same in each run."""
    long: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True}
    kinds = [
        SamplingParams(temperature=0.0, logprobs=3, **long),
        SamplingParams(temperature=0.9, seed=7, **long),
        SamplingParams(temperature=1.2, top_k=20, min_p=0.01, seed=9, n=2, logprobs=2, **long),
        SamplingParams(
            temperature=0.8, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3,
            seed=11, **long,
        ),
        SamplingParams(temperature=1.0, seed=13, stop=["ab", "e", " t"], min_tokens=4, **long),
        SamplingParams(temperature=0.0, prompt_logprobs=2, logit_bias={40: 3.0}, **long),
    ]  # fmt: skip
    prompts = ["The quick brown fox", "What is the capital of France? " * 4]
    return [
        engine.submit(f"{run}-{n}-{m}", engine.tokenizer.encode(prompt), params)
        for n, params in enumerate(kinds)
        for m, prompt in enumerate(prompts)
    ]


async def finish(streams: list[RequestStream]) -> list[object]:
    """Read streams to their end; return what clients keep of them."""
    runs: list[list[RequestOutput]] = await asyncio.gather(*map(read_slowly, streams))
    assert all(run[-1].finished for run in runs)
    return [(run[-1].outputs, run[-1].prompt_logprobs) for run in runs]


async def read_slowly(stream: RequestStream) -> list[RequestOutput]:
    async def collect() -> list[RequestOutput]:
        return [output async for output in stream]

    return await asyncio.wait_for(collect(), PATIENCE)


@pytest.mark.parametrize(("tp", "dtype"), [(1, "bfloat16"), (2, "float32")])
async def test_what_is_cut_off_goes_on_to_the_bit(model: Path, tp: int, dtype: str) -> None:
    engine = await start(model, tensor_parallel_size=tp, dtype=dtype)
    try:
        expected = await finish(submit_mixed(engine, 0))
        for run, (tokens, rank) in enumerate([(40, tp - 1), (500, 0)], 1):
            before = engine.stats().generation_tokens
            streams = submit_mixed(engine, run)
            running = asyncio.ensure_future(finish(streams))
            await until(lambda: engine.stats().generation_tokens >= before + tokens)  # noqa: B023
            os.kill(engine.worker_pids[rank], signal.SIGKILL)
            assert await running == expected
        before = engine.stats().generation_tokens
        running = asyncio.ensure_future(finish(submit_mixed(engine, 9)))
        await until(lambda: engine.stats().generation_tokens >= before + 100)
        restart = await asyncio.wait_for(engine.restart_workers(), PATIENCE)
        assert await running == expected
        assert [each.commanded for each in engine.restarts] == [False, False, True]
        parts = ["stop", "spawn", "import", "check", *["group"] * (tp > 1), "load", "kv", "other"]
        assert list(restart.parts) == [*parts, "prefill"]
    finally:
        await engine.stop()


async def test_a_rank_that_skips_its_collectives_is_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTACTORS_TEST_FAULT", "skip:rank=1,seq=9,epoch=1")
    engine = await start(model, tensor_parallel_size=2, step_timeout=2.0)
    try:
        (stream,) = submit_mixed(engine, 0)[:1]
        assert (await read_slowly(stream))[-1].finished
        reason = engine.restarts[0].reason
        assert reason.startswith("step 9 was not answered within")
        assert "rank 0 is in step 9 since" in reason
        assert "rank 1 has left step 8" in reason
    finally:
        await engine.stop()


async def test_a_request_that_kills_its_worker_costs_only_itself(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTACTORS_TEST_FAULT", f"kill:token={POISON}")
    engine = await start(model, max_worker_restarts=3)
    try:
        params = SamplingParams(temperature=0.0, max_tokens=40, logit_bias={POISON: -100.0})
        stream = engine.submit("good", [5, 6, 7], params)
        await anext(stream)
        bad = engine.submit("bad", [5, POISON], params)
        with pytest.raises(RequestQuarantinedError):
            await asyncio.wait_for(read_slowly(bad), PATIENCE)
        good = (await read_slowly(stream))[-1].outputs[0].token_ids
        again = (await read(engine.submit("again", [5, 6, 7], params)))[-1]
        assert good == again.outputs[0].token_ids
    finally:
        await engine.stop()


async def test_a_restart_on_command_reloads_the_weights(model: Path, tmp_path: Path) -> None:
    place = make_tiny_model(tmp_path / "model")
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine = await start(place)
    try:
        ids = engine.tokenizer.encode("The quick brown fox jumps over the lazy dog")
        before = (await read_slowly(engine.submit("before", ids, params)))[-1].outputs
        other = make_tiny_model(tmp_path / "other", seed=1)
        os.replace(other / "model.safetensors", place / "model.safetensors")
        await asyncio.wait_for(engine.restart_workers(), PATIENCE)
        after = (await read_slowly(engine.submit("after", ids, params)))[-1].outputs
    finally:
        await engine.stop()
    fresh = await start(place)
    try:
        expected = (await read_slowly(fresh.submit("fresh", ids, params)))[-1].outputs
    finally:
        await fresh.stop()
    assert after == expected
    assert before != after


EXTREMES: list[dict[str, Any]] = [
    {"top_k": 2**31}, {"top_k": 2**40}, {"top_k": 2**70}, {"top_p": 5e-324}, {"min_p": 1.0},
    {"repetition_penalty": 5e-324}, {"repetition_penalty": 100.0}, {"temperature": 100.0},
    {"temperature": 2e-5}, {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"max_tokens": 2**70},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0}, {"min_tokens": 2**70, "max_tokens": None},
    {"logit_bias": dict.fromkeys(range(300), -100.0)}, {"truncate_prompt_tokens": 2**70},
]  # fmt: skip


async def test_extreme_values_are_no_poison(model: Path) -> None:
    engine = await start(model, max_num_seqs=32)
    try:
        for number, extreme in enumerate(EXTREMES):
            values: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 6, **extreme}
            stream = engine.submit(f"{number}", [5, 6, 7], SamplingParams(**values))
            output = (await read_slowly(stream))[-1]
            assert output.finished and output.outputs[0].finish_reason in ("stop", "length")
        assert engine.stats().restarts == 0
    finally:
        await engine.stop()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("memory:phase=load", "no memory"),
        ("kill:phase=load", "worker rank 0 was killed by SIGKILL before it was ready"),
        ("nonsense", "MTACTORS_TEST_FAULT: 'nonsense' is not one of kill, exit"),
    ],
)
async def test_a_worker_that_does_not_come_up_says_why_in_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv("MTACTORS_TEST_FAULT", fault)
    with pytest.raises(MtactorsError) as caught:
        await start(model)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_kernels_that_are_not_there_are_named(model: Path) -> None:
    with pytest.raises(MtactorsError, match="nosuch"):
        await start(model, kernels="nosuch")


async def test_bad_weights_are_named(model: Path, tmp_path: Path) -> None:
    broken = make_tiny_model(tmp_path / "broken", "llama")
    file = broken / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(MtactorsError, match=r"model\.safetensors") as caught:
        await start(broken)
    assert "\n" not in str(caught.value)
