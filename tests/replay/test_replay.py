"""Real workers and a real journal: killed in the middle, computed again, and compared.

Small random models agree by luck more easily than real ones in what they choose, but not in the
bits of their logits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mtactors.front.engine import Engine
from mtactors.journal import ring
from mtactors.journal.reader import Run, read_runs
from mtactors.journal.ring import segments
from mtactors.replay.execution import Report, replay
from mtactors.sampling_params import SamplingParams, StructuredOutputsParams
from mtactors.wire.codec import encode
from mtactors.wire.messages import StepPlan, StepResult
from tests.front.engines import until
from tests.front.test_engine_workers import PATIENCE, finish, start, submit_mixed
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.needs_torch

POISON = 317
MTACTORS = Path(sys.executable).with_name("mtactors")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 8 kB, so that there are several after a second."""
    monkeypatch.setattr(ring, "_PARTS", 128)


@asynccontextmanager
async def recording(model: Path, directory: Path, **options: object) -> AsyncIterator[Engine]:
    """Run an engine with a journal that can be replayed."""
    engine = await start(
        model, journal=str(directory), journal_prompts=True, journal_bytes=1 << 20, **options
    )
    try:
        yield engine
    finally:
        await engine.stop()


async def serve_all_kinds(engine: Engine, run: int) -> None:
    """Serve requests of all kinds, with a grammar among them, to their end."""
    structure = StructuredOutputsParams(regex="[a-f]{3}-[0-9]{2}( [a-z]{4}){8}")
    params = SamplingParams(structured_outputs=structure, max_tokens=80, seed=1, n=2)
    guided = engine.submit(f"{run}-guided", engine.tokenizer.encode("the lazy"), params)
    await finish([guided, *submit_mixed(engine, run)])


def run_command(directory: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `mtactors replay`."""
    return subprocess.run(
        [str(MTACTORS), "replay", str(directory), *options],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def change(run: Run, wanted: Callable[[StepPlan, StepResult], StepResult | None]) -> StepResult:
    """Change a recorded result in its segment; return what it was.

    Args:
        wanted: returns another result, of the same size, for the one to change.
    """
    plans: dict[tuple[int, int], StepPlan] = {}
    for event in run.events():
        if isinstance(event, StepPlan):
            plans[event.epoch, event.seq] = event
        elif isinstance(event, StepResult):
            other = wanted(plans[event.epoch, event.seq], event)
            if other is not None:
                old, new = encode(event), encode(other)
                assert len(old) == len(new)
                (path,) = [path for path in run.paths if old in path.read_bytes()]
                path.write_bytes(path.read_bytes().replace(old, new))
                return event
    raise AssertionError("no result is wanted")


def start_endless(model: Path, journal: Path) -> subprocess.Popen[bytes]:
    """Start a program that generates until it is killed."""
    program = f"""
from mtactors import LLM, SamplingParams
llm = LLM({str(model)!r}, journal={str(journal)!r}, journal_prompts=True, cpu_threads=1,
          block_size=16, kv_cache_memory_bytes=1 << 22, disable_log_stats=True)
params = SamplingParams(temperature=1.0, seed=3, n=2, max_tokens=480, ignore_eos=True)
while True:
    llm.generate(["the lazy dog", "the quick"], params, use_tqdm=False)
"""
    return subprocess.Popen([sys.executable, "-c", program], cwd=journal.parent)


def flip(data: bytes, at: int) -> bytes:
    """Flip the lowest bit of a byte."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(("tp", "dtype"), [(1, "bfloat16"), (2, "float32")])
async def test_a_run_with_killed_workers_comes_out_again(
    model: Path, tmp_path: Path, tp: int, dtype: str
) -> None:
    journal = tmp_path / "journal"
    async with recording(model, journal, tensor_parallel_size=tp, dtype=dtype) as engine:
        running = asyncio.ensure_future(serve_all_kinds(engine, 0))
        await until(lambda: engine.stats().generation_tokens >= 300)
        os.kill(engine.worker_pids[-1], signal.SIGKILL)
        await running
        running = asyncio.ensure_future(serve_all_kinds(engine, 1))  # its prompts are in the cache
        await until(lambda: engine.stats().generation_tokens >= 1300)
        assert engine.stats().prefix_hits
        await asyncio.wait_for(engine.restart_workers(), PATIENCE)
        await running
        steps = engine.stats().steps
    (run,) = read_runs(journal)
    assert len(run.paths) >= 4
    equal = run_command(journal)
    assert equal.returncode == 0, equal.stderr
    assert f": {steps} steps with" in equal.stdout
    assert "of 3 worker group(s)" in equal.stdout
    assert "ids and digests are equal" in equal.stdout
    report = await replay(run, newest=2)
    assert not report.problem
    assert 0 < report.steps < steps

    def with_another_bit(plan: StepPlan, result: StepResult) -> StepResult | None:
        if (result.epoch, len(result.ids)) < (2, 5) or min(result.ids) < 0:
            return None
        return replace(result, digests=flip(result.digests, 3 * 12 + 8))

    def with_another_id(plan: StepPlan, result: StepResult) -> StepResult | None:
        if len(result.ids) < 5 or min(result.ids) < 0:
            return None
        return replace(result, ids=[*result.ids[:2], result.ids[2] ^ 1, *result.ids[3:]])

    for alter, row, what in ((with_another_bit, 3, "logsumexp"), (with_another_id, 2, "id")):
        was = change(run, alter)
        found = run_command(journal)
        assert found.returncode == 1, found.stderr
        line = found.stdout.splitlines()[1]
        where = f"step {was.seq} of epoch {was.epoch}, rank 0, row {row} (slot "
        assert line.startswith(where)
        assert "request '" in line and f"): {what} " in line
        assert line.count("was recorded") == 1


async def test_a_run_with_a_killed_front_comes_out_again(model: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    front = start_endless(model, journal)
    try:
        deadline = time.monotonic() + PATIENCE
        while sum(path.stat().st_size for path in journal.glob("segment-*")) < 20_000:
            assert time.monotonic() < deadline and front.poll() is None
            await asyncio.sleep(0.02)
    finally:
        front.kill()
        front.wait()
    (run,) = read_runs(journal)
    report = await replay(run)
    assert report == Report(report.steps, report.tokens, report.unanswered, 1, "")
    assert report.steps > 50
    assert report.unanswered in (0, 1, 2)


async def test_what_killed_the_workers_kills_them_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTACTORS_TEST_FAULT", f"kill:token={POISON}")
    async with recording(model, tmp_path / "journal") as engine:
        await finish([engine.submit("good", [5, 6, 7], SamplingParams(max_tokens=4))])
        engine.submit("bad", [5, POISON], SamplingParams(max_tokens=4))
        await until(lambda: engine.restarts != ())
        engine.abort("bad")
    (run,) = read_runs(tmp_path / "journal")
    report = await replay(run)
    assert report.steps >= 4
    assert report.problem.startswith("step ")
    assert (
        "of epoch 1, unanswered in the journal, is not executed now: worker rank 0 was killed by "
        "SIGKILL" in report.problem
    )


async def test_other_instructions_are_not_compared(model: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with recording(model, journal) as engine:
        await finish([engine.submit("a", [5, 6, 7], SamplingParams(max_tokens=4))])
        assert engine.group is not None
        kernels = engine.group.ready[0].kernels
    if kernels == "cpu-portable":
        pytest.skip("this machine has no other build to compare with")
    other = run_command(journal, MTACTORS_CPU_ISA="portable")
    assert other.returncode == 2
    assert f"was written with kernels {kernels}, here they are cpu-portable" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


async def test_the_model_may_have_moved(model: Path, tmp_path: Path) -> None:
    journal, moved = tmp_path / "journal", tmp_path / "moved"
    here = make_tiny_model(tmp_path / "here", "llama")
    async with recording(here, journal) as engine:
        await finish([engine.submit("a", [5, 6, 7], SamplingParams(max_tokens=4))])
    here.rename(moved)
    lost = run_command(journal)
    assert lost.returncode == 2
    assert str(here) in lost.stderr
    assert run_command(journal, "--model", str(moved)).returncode == 0
    other = make_tiny_model(tmp_path / "other", "llama", seed=1)
    found = run_command(journal, "--model", str(other))
    assert found.returncode == 1
    assert "step 1 of epoch 1, rank 0, row 0" in found.stdout


async def test_a_journal_without_prompts_cannot_be_replayed(model: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    engine = await start(model, journal=str(journal))
    await finish([engine.submit("a", [5, 6, 7], SamplingParams(max_tokens=4))])
    await engine.stop()
    assert len(segments(journal)) == 1
    refused = run_command(journal)
    assert refused.returncode == 2
    assert refused.stderr.startswith("mtactors: error: the journal has no token ids")
    assert "--journal-prompts" in refused.stderr
