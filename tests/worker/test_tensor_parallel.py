"""Two ranks over gloo against one, on a model whose heads do not divide."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtactors.wire.codec import encode
from tests.tiny_models import make_tiny_model
from tests.worker.fronts import HandFront, exit_code, kill
from tests.worker.naive import Naive
from tests.worker.plans import Plans, configure, known_row, new_row, sampler

SHORT = [5, 9, 200, 17, 33]
LONG = [(7 * i * i + 11) % 310 + 3 for i in range(40)]


@pytest.fixture(scope="module")
def uneven_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine query and three KV heads, as SmolLM2 has."""
    return make_tiny_model(
        tmp_path_factory.mktemp("uneven") / "model",
        num_attention_heads=9,
        num_key_value_heads=3,
    )


async def test_two_ranks_give_the_tokens_of_one(uneven_model: Path, tmp_path: Path) -> None:
    truth = Naive(uneven_model)
    async with HandFront(tmp_path, world_size=2) as front:
        for rank in (0, 1):
            front.spawn(rank)
        settings = [
            configure(str(uneven_model), str(tmp_path), rank=rank, world_size=2) for rank in (0, 1)
        ]
        # Both must be told before either can be ready: they meet in between.
        readies = await front.start_all(settings)
        assert readies[0].num_blocks == readies[1].num_blocks
        plans = Plans()
        spec = sampler(logprobs=2)
        first = await front.step(
            plans.next(
                new_row(0, LONG, [0, 1, 2, 3], chunk=30, prompt_logprobs=1),
                new_row(1, SHORT, [4], spec=spec),
            )
        )
        second = await front.step(plans.next(known_row(0, 10), known_row(1)))
        long, short = [second.ids[0]], [first.ids[1], second.ids[1]]
        for _ in range(6):
            result = await front.step(plans.next(known_row(0), known_row(1)))
            long.append(result.ids[0])
            short.append(result.ids[1])
        assert long == truth.greedy(LONG, 7)
        assert short == truth.greedy(SHORT, 8)
        logprobs = truth.logprobs(SHORT)[-1]
        assert first.logprobs[0].logprob == pytest.approx(float(logprobs.max()), abs=1e-4)
        assert len(first.prompt_logprobs[0].logprobs) == 30
        assert await front.shut_down() == [0, 0]


async def test_steps_of_greedy_rows_alone_and_with_others(
    uneven_model: Path, tmp_path: Path
) -> None:
    truth = Naive(uneven_model)
    async with HandFront(tmp_path, world_size=2) as front:
        for rank in (0, 1):
            front.spawn(rank)
        await front.start_all(
            [
                configure(str(uneven_model), str(tmp_path), rank=rank, world_size=2)
                for rank in (0, 1)
            ]
        )
        plans = Plans()
        first = await front.step(plans.next(new_row(0, LONG, [0, 1, 2, 3]), new_row(1, SHORT, [4])))
        second = await front.step(plans.next(known_row(0), known_row(1)))
        drawn = sampler(temperature=5.0, seed=3, top_k=300)
        third = await front.step(
            plans.next(known_row(0), known_row(1), new_row(2, SHORT, [5], spec=drawn))
        )
        fourth = await front.step(plans.next(known_row(0), known_row(1)))
        # New rows come first in a plan's results.
        ids = [first.ids, second.ids, third.ids[1:], fourth.ids]
        assert [step[0] for step in ids] == truth.greedy(LONG, 4)
        assert [step[1] for step in ids] == truth.greedy(SHORT, 4)
        assert third.ids[0] >= 0
        assert await front.shut_down() == [0, 0]


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_lost_rank_ends_the_other_with_a_report(
    tiny_model: Path, tmp_path: Path, victim: int
) -> None:
    survivor = 1 - victim
    async with HandFront(tmp_path, world_size=2) as front:
        for rank in (0, 1):
            front.spawn(rank)
        await front.start_all(
            [configure(str(tiny_model), str(tmp_path), rank=rank, world_size=2) for rank in (0, 1)]
        )
        plans = Plans()
        await front.step(plans.next(new_row(0, SHORT, [0])))
        kill(front.processes[victim])
        front.channel.send(survivor, encode(plans.next(known_row(0))))
        failed = await front.failure(survivor)
        assert (failed.rank, failed.seq, failed.kind) == (survivor, 2, "fault")
        assert await exit_code(front.processes[survivor]) == 1
