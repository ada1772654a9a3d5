"""Rewritten plans, executed by a worker that notices every wrong token in its cache."""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtactors.errors import JournalError
from mtactors.front.request import Request
from mtactors.journal.reader import Event, Opening, read_runs
from mtactors.journal.writer import Journal
from mtactors.replay.private_rows import PrivateRows
from mtactors.sampling_params import SamplingParams
from mtactors.wire.codec import encode
from mtactors.wire.messages import KnownRow, NewRow, StepPlan, StepResult
from tests.front.bench import Bench, make_request
from tests.front.simulated_worker import SimulatedWorker
from tests.journal.scenes import group
from tests.worker.plans import Plans, known_row, new_row

_BLOCK = 16
_prompts = st.builds(
    lambda head, tail: [*head, *tail],
    st.sampled_from([[], [1] * 16, [1] * 20, [1] * 33, [1] * 16 + [2] * 20]),
    st.lists(st.integers(1, 2), min_size=1, max_size=24),
)
_params = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 2, 3]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([None, [3, 4]]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
)
#: A request, an abort, some steps, or the loss of the workers.
_actions = st.one_of(
    st.tuples(st.just("add"), _prompts, _params, st.integers(0, 30)),
    st.tuples(st.just("abort"), st.integers(0, 20)),
    st.tuples(st.just("step"), st.integers(1, 8)),
    st.tuples(st.just("step"), st.integers(1, 8)),
    st.tuples(st.just("lose")),
)


class RecordedBench(Bench):
    """A scheduler and its worker, with a journal between them."""

    def begin(self, journal: Journal) -> None:
        self.journal = journal
        journal.begin(group(self.epoch))

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is not None:
            self.journal.plan(plan, encode(plan))
        return plan

    def execute(self) -> StepResult:
        result = super().execute()
        self.journal.result(result)
        return result

    def reset(self, num_blocks: int | None = None) -> list[str]:
        unfit = super().reset(num_blocks)
        self.journal.begin(group(self.epoch))
        return unfit


def record(bench: RecordedBench, actions: list[tuple[object, ...]]) -> None:
    """Let things happen to a scheduler."""
    for number, (what, *details) in enumerate(actions):
        if what == "add":
            prompt, params, max_tokens = details
            request = make_request(f"r{number}", prompt, max_tokens, params)  # type: ignore[arg-type]
            if bench.scheduler.fits(request):
                bench.add(request)
        elif what == "abort":
            bench.scheduler.abort(f"r{details[0]}")
        elif what == "lose":
            bench.reset()
        else:
            for _ in range(int(str(details[0]))):
                bench.fill()
                if bench.scheduler.num_in_flight:
                    bench.apply()
    while bench.scheduler.has_work:
        bench.fill()
        bench.apply()


def execute(events: list[Event], requests: dict[str, Request], budget: int) -> int:
    """Execute what was recorded on a worker with nothing to spare; return the steps compared."""
    counted = PrivateRows(_BLOCK, budget)
    for event in events:
        if isinstance(event, Opening):
            counted.begin(event.rows)
        elif isinstance(event, StepPlan):
            deque(counted.rewrite(event), maxlen=0)
    worker = SimulatedWorker(counted.num_blocks, _BLOCK, 8, budget, requests)
    rows = PrivateRows(_BLOCK, budget)
    waiting: deque[StepPlan] = deque()
    steps = 0

    def sample(plan: StepPlan) -> list[int]:
        sampled: dict[int, int] = {}
        for part in rows.rewrite(plan):
            sampled |= dict(zip(slots_of(part), worker.execute(part).ids, strict=True))
        return [sampled[slot] for slot in slots_of(plan)]

    def catch_up() -> None:
        while waiting:  # never answered, since the worker was lost
            sample(waiting.popleft())

    for event in events:
        if isinstance(event, StepPlan):
            waiting.append(event)
        elif isinstance(event, StepResult):
            assert sample(waiting.popleft()) == event.ids
            steps += 1
        else:
            catch_up()
            rows.begin(event.rows)
    catch_up()
    assert rows.num_blocks == counted.num_blocks
    return steps


def slots_of(plan: StepPlan) -> list[int]:
    """Return the slots of a plan's rows, in order."""
    return [row.slot for row in plan.new] + [row.slot for row in plan.known]


@settings(max_examples=80)
@given(
    actions=st.lists(_actions, min_size=4, max_size=20),
    num_blocks=st.integers(4, 12),
    budget=st.sampled_from([9, 33, 256]),
    caching=st.booleans(),
    limit=st.sampled_from([2048, 1 << 20]),
)
def test_what_any_scheduler_did_comes_out_again(
    actions: list[tuple[object, ...]], num_blocks: int, budget: int, caching: bool, limit: int
) -> None:
    bench = RecordedBench(num_blocks, _BLOCK, 8, budget, prefix_caching=caching)
    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name), limit, prompts=True)
        bench.begin(journal)
        record(bench, actions)
        journal.close()
        (run,) = read_runs(Path(name))
        for newest in (0, 1, 2):
            events = list(run.events(newest))
            results = sum(isinstance(event, StepResult) for event in events)
            assert execute(events, bench.requests, budget) == results


def test_a_long_history_is_computed_in_pieces() -> None:
    rows = PrivateRows(_BLOCK, 32)
    plans = Plans()
    opening = plans.next(new_row(0, range(100), [], computed=99, chunk=0, sample=False))
    rows.begin(opening)
    short = new_row(1, range(6), [7], computed=5)  # five of them were in the cache
    parts = list(rows.rewrite(plans.next(short, known_row(0))))
    chunks: list[list[NewRow | KnownRow]] = [[*part.new, *part.known] for part in parts]
    shapes = [
        ([(row.slot, row.chunk_len) for row in named], [row.sample for row in part.new])
        for named, part in zip(chunks, parts, strict=True)
    ]
    assert shapes == [
        ([(1, 6), (0, 26)], [True, False]),
        ([(0, 32)], []),
        ([(0, 32)], []),
        ([(0, 10)], []),
    ]
    assert [row.sample for part in parts for row in part.known] == [False, False, True]
    assert [part.seq for part in parts] == [1, 2, 3, 4]
    assert rows.num_blocks == 1 + 7
    (after,) = rows.rewrite(plans.next(known_row(0), ended=[1]))
    assert after.ended == [1]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plans().next(known_row(3)), "names slot 3, which no row holds"),
        (Plans().next(known_row(0, 2)), "computes more of slot 0 than there is"),
        (Plans().next(new_row(0, [1], [0])), "starts a row in slot 0, which is taken"),
    ],
)
def test_plans_that_fit_no_row_are_damage(plan: StepPlan, words: str) -> None:
    rows = PrivateRows(_BLOCK, 32)
    rows.begin(Plans().next(new_row(0, range(5), [], computed=4, chunk=0, sample=False)))
    with pytest.raises(JournalError, match=f"step 1 of epoch 1 {words}"):
        list(rows.rewrite(plan))
