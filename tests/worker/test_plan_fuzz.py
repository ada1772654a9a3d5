"""Plans with something wrong in them: refused before anything is computed, or computed."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtactors.errors import WireError
from mtactors.wire.codec import decode_for_worker, encode
from mtactors.wire.messages import StepPlan
from mtactors.worker import startup
from mtactors.worker.runner import Runner
from tests.wire.mutations import mutate
from tests.worker.plans import Plans, configure, known_row, new_row, sampler

SPECS = [
    sampler(),
    sampler(temperature=0.9, top_k=5, top_p=0.9, min_p=0.01, seed=7, logprobs=2),
    sampler(repetition_penalty=1.2, presence_penalty=0.1, bias_ids=[5, 9], bias_values=[1.0, -1.0]),
    sampler(min_tokens=3, stop_ids=[2, 8], allowed_ids=[2, 3, 4, 5, 6, 7, 8]),
    sampler(bad_ids=[4, 5, 6], bad_lengths=[2, 1]),
]


@pytest.fixture(scope="module")
def runner(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A runner over the kernels in C++, which believe what they are told."""
    config = configure(str(tiny_model), str(tmp_path_factory.mktemp("run")), kernels="auto")
    return startup.prepare(config, lambda phase, seconds: None)[0]


def right_plans() -> list[StepPlan]:
    """Return plans that a worker can execute one after the other."""
    plans = Plans()
    news = [
        new_row(slot, range(3, 20 + slot), [3 * slot, 3 * slot + 1, 3 * slot + 2], spec=spec)
        for slot, spec in enumerate(SPECS)
    ]
    return [
        plans.next(*news[:2], new_row(6, range(50, 80), [20, 21], chunk=10, prompt_logprobs=1)),
        plans.next(*news[2:], known_row(6, 20, [], sample=True), known_row(0), known_row(1)),
        plans.next(*(known_row(slot) for slot in range(5)), ended=[6], copies=[(20, 30, 9)]),
        plans.next(known_row(0), known_row(2), ended=[1, 3, 4]),
    ]


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(1, 3))
def test_a_plan_that_was_changed_is_refused_or_computed(
    runner: Runner, seed: int, at: int, times: int
) -> None:
    random = Random(seed)
    plans = right_plans()
    try:
        for plan in plans[:at]:
            runner.run(plan, time.perf_counter())
        changed = decode_for_worker(mutate(encode(plans[at]), random, times))
        if isinstance(changed, StepPlan):
            runner.run(changed, time.perf_counter())
    except WireError:
        pass
    finally:
        # A worker ends when it refuses a plan; here the slots are emptied by hand.
        runner._rows.occupied[:] = False
