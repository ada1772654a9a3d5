"""The engine over fake workers that check every plan: outputs, ends, aborts, limits, books."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from mtactors.errors import (
    EngineUnavailableError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
)
from mtactors.front.engine import Engine
from mtactors.front.stats import EngineObserver, FinishedRequest
from mtactors.outputs import RequestOutput
from tests.fake_worker import Script
from tests.front.engine_configs import EOS, VOCABULARY
from tests.front.engines import (
    EngineFactory,
    engine_factory,
    final,
    greedy,
    read,
    until,
    until_idle,
    whole,
)


@pytest_asyncio.fixture
async def start(scratch: Path) -> AsyncIterator[EngineFactory]:
    async for factory in engine_factory(scratch):
        yield factory


def _ids(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.encode(text)


async def test_a_request_is_answered(start: EngineFactory) -> None:
    engine = await start()
    assert engine.ready
    ids = _ids(engine, "hello world")
    stream = engine.submit("r1", ids, greedy(max_tokens=len(ids)), prompt="hello world")
    output = await final(stream)
    assert output.request_id == "r1"
    assert output.prompt == "hello world"
    assert output.prompt_token_ids == ids
    (choice,) = output.outputs
    assert (choice.text, choice.token_ids) == ("hello world", ids)
    assert (choice.finish_reason, choice.stop_reason) == ("length", None)
    assert (choice.logprobs, choice.cumulative_logprob, output.prompt_logprobs) == (None,) * 3
    assert output.metrics is not None
    moments = (
        output.metrics.arrival_time,
        output.metrics.first_scheduled_time or 0.0,
        output.metrics.first_token_time or 0.0,
        output.metrics.finished_time or 0.0,
    )
    assert sorted(moments) == list(moments)
    assert min(moments) > 0


async def test_outputs_are_cumulative_and_each_is_a_snapshot(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.002))
    ids = _ids(engine, "one two three four")
    outputs = await read(engine.submit("r", ids, greedy(max_tokens=len(ids), logprobs=0)))
    texts = [output.outputs[0].text for output in outputs]
    assert texts[-1] == "one two three four"
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == sorted(set(lengths))
    assert len(lengths) > 2
    assert [len(output.outputs[0].logprobs or []) for output in outputs] == lengths
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


async def test_unread_outputs_merge(start: EngineFactory) -> None:
    engine = await start()
    stream = engine.submit("r", _ids(engine, "abc def"), greedy(max_tokens=20))
    await until_idle(engine)
    outputs = await read(stream)
    assert len(outputs) == 1
    assert len(outputs[0].outputs[0].token_ids) == 20


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("caching", [True, False])
async def test_many_requests_share_a_pool_for_two(
    start: EngineFactory, tp: int, caching: bool
) -> None:
    engine = await start(
        Script(tokens="hash", num_blocks=9), tp=tp, caching=caching, max_model_len=64,
        scheduler={"max_num_seqs": 8, "max_num_batched_tokens": 32},
    )  # fmt: skip
    randomness = random.Random(3)
    shared = [randomness.randrange(3, VOCABULARY) for _ in range(40)]
    streams = []
    for number in range(32):
        ids = shared[: randomness.randrange(1, 40)]
        ids = ids + [randomness.randrange(3, VOCABULARY) for _ in range(randomness.randrange(5))]
        params = greedy(max_tokens=19, n=1 + number % 3, ignore_eos=True, seed=number)
        streams.append(engine.submit(f"r{number}", ids, params))
    outputs = await asyncio.gather(*(final(stream) for stream in streams))
    for output in outputs:
        assert [choice.index for choice in output.outputs] == list(range(len(output.outputs)))
        assert {len(choice.token_ids) for choice in output.outputs} == {19}
        assert {choice.finish_reason for choice in output.outputs} == {"length"}
    await until_idle(engine)
    whole(engine)


async def test_the_same_seed_gives_the_same_tokens_whatever_else_runs(
    start: EngineFactory,
) -> None:
    engine = await start(Script(tokens="hash"))
    params = greedy(max_tokens=12, n=3, seed=11, ignore_eos=True)
    alone = await final(engine.submit("alone", [5] * 40, params))
    others = [engine.submit(f"o{n}", [5] * 40, greedy(max_tokens=30)) for n in range(6)]
    among = await final(engine.submit("among", [5] * 40, params))
    assert [c.token_ids for c in among.outputs] == [c.token_ids for c in alone.outputs]
    assert len({tuple(choice.token_ids) for choice in alone.outputs}) == 3
    assert among.num_cached_tokens == 39
    await asyncio.gather(*(final(stream) for stream in others))


async def test_without_a_seed_one_is_drawn(start: EngineFactory) -> None:
    async def draw(engine: Engine) -> list[list[int]]:
        streams = [engine.submit(f"{n}", [7, 8], greedy(ignore_eos=True)) for n in range(2)]
        return [(await final(stream)).outputs[0].token_ids for stream in streams]

    script = Script(tokens="hash")
    first, second = await draw(await start(script))
    assert first != second
    # A base seed makes the whole engine repeat itself.
    assert await draw(await start(script, seed=4)) == await draw(await start(script, seed=4))


async def test_eos_ends_a_choice_and_is_not_shown(start: EngineFactory) -> None:
    engine = await start()
    ids = [*_ids(engine, "good bye"), EOS]
    output = await final(engine.submit("r", ids, greedy(max_tokens=50)))
    (choice,) = output.outputs
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("good bye", "stop", None)
    assert choice.token_ids == ids
    ignored = await final(engine.submit("s", ids, greedy(max_tokens=50, ignore_eos=True)))
    assert len(ignored.outputs[0].token_ids) == 50
    later = await final(engine.submit("t", ids, greedy(max_tokens=50, min_tokens=30)))
    assert 30 < len(later.outputs[0].token_ids) < 50


@pytest.mark.parametrize("keep", [True, False])
async def test_stop_token_ids_are_named_and_shown_on_demand(
    start: EngineFactory, keep: bool
) -> None:
    engine = await start()
    ids = _ids(engine, "a b c")
    params = greedy(max_tokens=50, stop_token_ids=[ids[-1]], include_stop_str_in_output=keep)
    (choice,) = (await final(engine.submit("r", ids, params))).outputs
    assert (choice.finish_reason, choice.stop_reason) == ("stop", ids[-1])
    shown = ids if keep else ids[:-1]
    assert choice.text == engine.tokenizer.decode(shown)


async def test_a_stop_string_ends_the_choice_and_frees_its_blocks(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.001))
    ids = _ids(engine, "the quick brown fox jumps over")
    stream = engine.submit("r", ids, greedy(max_tokens=400, stop=["fox ju", "zebra"]))
    outputs = await read(stream)
    (choice,) = outputs[-1].outputs
    assert choice.text == "the quick brown "
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "fox ju")
    assert all("f" not in output.outputs[0].text for output in outputs)
    assert engine.tokenizer.decode(choice.token_ids).startswith("the quick brown fox ju")
    await until_idle(engine)
    whole(engine)
    assert engine.stats().generation_tokens == len(choice.token_ids)


async def test_choices_end_one_by_one(start: EngineFactory) -> None:
    engine = await start(Script(tokens="hash"))
    params = greedy(n=4, max_tokens=60, seed=1, stop_token_ids=list(range(0, VOCABULARY, 20)))
    output = await final(engine.submit("r", [9, 9, 9], params))
    lengths = {len(choice.token_ids) for choice in output.outputs}
    assert len(lengths) > 1
    for choice in output.outputs:
        ended_by_id = choice.token_ids[-1] % 20 == 0
        assert choice.finish_reason == ("stop" if ended_by_id else "length")


async def test_logprobs_come_with_text_and_ranks(start: EngineFactory) -> None:
    engine = await start()
    ids = _ids(engine, "abcdef")
    params = greedy(max_tokens=3, logprobs=2, prompt_logprobs=1)
    output = await final(engine.submit("r", ids, params))
    (choice,) = output.outputs
    assert choice.logprobs is not None
    assert [list(position) for position in choice.logprobs] == [
        [token, token + 1] for token in ids[:3]
    ]
    first = choice.logprobs[0][ids[0]]
    assert first.logprob == pytest.approx(-ids[0] / 1000)
    assert (first.rank, first.decoded_token) == (1, engine.tokenizer.token_text(ids[0]))
    assert choice.logprobs[0][ids[0] + 1].rank == 2
    assert choice.cumulative_logprob == pytest.approx(-sum(ids[:3]) / 1000)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    rest = [position or {} for position in output.prompt_logprobs[1:]]
    assert [list(position) for position in rest] == [[token] for token in ids[1:]]


async def test_prompt_logprobs_survive_chunked_prefill(start: EngineFactory) -> None:
    engine = await start(scheduler={"max_num_seqs": 4, "max_num_batched_tokens": 8})
    ids = list(range(10, 47))
    output = await final(engine.submit("r", ids, greedy(prompt_logprobs=0, max_tokens=0)))
    assert output.outputs[0].token_ids == []
    assert output.outputs[0].finish_reason == "length"
    assert output.prompt_logprobs is not None
    assert [list(p or {}) for p in output.prompt_logprobs] == [[], *([t] for t in ids[1:])]


async def test_no_tokens_asked_is_an_answer_without_tokens(start: EngineFactory) -> None:
    engine = await start(max_model_len=40)
    output = await final(engine.submit("r", [4] * 40, greedy(max_tokens=0)))
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("", "length")


async def test_a_second_turn_reuses_the_first(start: EngineFactory) -> None:
    engine = await start(Script(tokens="hash"))
    ids = list(range(3, 103))
    first = await final(engine.submit("1", ids, greedy(max_tokens=10, ignore_eos=True)))
    assert first.num_cached_tokens == 0
    turn = ids + first.outputs[0].token_ids + [50, 51, 52]
    second = await final(engine.submit("2", turn, greedy(max_tokens=4)))
    assert second.num_cached_tokens >= 109
    stats = engine.stats()
    assert stats.prefix_queries == 100 + 113
    assert stats.prefix_hits == second.num_cached_tokens


async def test_abort_ends_the_stream_and_frees_the_blocks(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.002))
    stream = engine.submit("r", [5] * 50, greedy(max_tokens=400))
    first = await anext(stream)
    assert not first.finished
    engine.abort("r")
    output = await final(stream)
    assert output.outputs[0].finish_reason == "abort"
    assert len(output.outputs[0].token_ids) >= len(first.outputs[0].token_ids)
    engine.abort("r")
    engine.abort("never seen")
    await until_idle(engine)
    whole(engine)
    assert engine.stats().finished == {"abort": 1}


async def test_leaving_a_stream_aborts_only_its_own_request(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.002))
    gone = engine.submit("r", [5] * 5, greedy(max_tokens=400))
    await gone.aclose()
    assert await read(gone) == []
    unread = engine.submit("r", [5] * 5, greedy(max_tokens=2))
    await until_idle(engine)
    other = engine.submit("r", [6] * 5, greedy(max_tokens=9))
    await unread.aclose()  # it has ended: its id belongs to another by now
    await gone.aclose()
    assert (await final(other)).outputs[0].finish_reason == "length"
    await other.aclose()
    assert engine.stats().finished == {"abort": 1, "length": 2}


async def test_two_hundred_streams_aborted_at_random_leave_the_books_whole(
    start: EngineFactory,
) -> None:
    engine = await start(
        Script(tokens="hash", num_blocks=40), tp=2,
        scheduler={"max_num_seqs": 24, "max_num_batched_tokens": 64},
    )  # fmt: skip
    before = engine.ledger()
    randomness = random.Random(17)
    shared = [randomness.randrange(3, VOCABULARY) for _ in range(120)]

    async def client(number: int) -> None:
        await asyncio.sleep(randomness.random() * 0.3)
        ids = [*shared[: randomness.randrange(1, 120)], 3 + number]
        params = greedy(max_tokens=randomness.randrange(1, 60), n=randomness.randrange(1, 4))
        stream = engine.submit(f"r{number}", ids, params)
        reads = randomness.randrange(12)
        async for _ in stream:
            reads -= 1
            if reads < 0:
                break
        if randomness.random() < 0.5:
            engine.abort(f"r{number}")
        await stream.aclose()

    await asyncio.gather(*(client(number) for number in range(200)))
    await until_idle(engine)
    whole(engine)
    assert engine.ledger().total == before.total == 40
    assert sum(engine.stats().finished.values()) == 200
    assert engine.stats().finished["abort"] > 50
    assert engine.phase == "ready"


async def test_the_queue_has_a_bound_when_asked_for(start: EngineFactory) -> None:
    engine = await start(
        Script(step_seconds=0.005), scheduler={"max_num_seqs": 1, "max_num_queued": 2}
    )
    running = engine.submit("1", [5], greedy(max_tokens=400))
    await anext(running)
    waiting = [engine.submit(f"w{n}", [5], greedy(max_tokens=1)) for n in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting already") as caught:
        engine.submit("3", [5], greedy())
    assert caught.value.retry_after > 0
    await running.aclose()
    for stream in waiting:
        assert (await final(stream)).finished
    assert (await final(engine.submit("3", [5], greedy()))).finished


@pytest.mark.parametrize(
    ("ids", "options", "param", "words"),
    [
        ([], {}, "prompt", "no tokens"),
        ([-1], {}, "prompt", "-1 is not between 0 and 407"),
        ([408], {}, "prompt", "408 is not between 0 and 407"),
        ([1.5], {}, "prompt", "must be integers"),
        ([True], {}, "prompt", "must be integers"),
        ([5] * 100, {}, "prompt", "has 100 tokens.*max_model_len, which is 100"),
        ([5] * 101, {"max_tokens": 0}, "prompt", "has 101 tokens"),
        ([5], {"stop_token_ids": [408]}, "stop_token_ids", "408 is not below 408"),
        ([5], {"logit_bias": {400: 1.0}}, "logit_bias", "400 is not below 400"),
        ([5], {"allowed_token_ids": [3, 401]}, "allowed_token_ids", "401 is not below 400"),
        ([5] * 60, {"max_tokens": 39}, "max_tokens", "exceed the 65 that the KV cache holds"),
    ],
)
async def test_what_this_model_cannot_serve_is_refused(
    start: EngineFactory, ids: list[int], options: dict[str, object], param: str, words: str
) -> None:
    engine = await start(Script(num_blocks=4), max_model_len=100)
    with pytest.raises(RequestError, match=words) as caught:
        engine.submit("r", ids, greedy(**options))
    assert caught.value.param == param
    assert isinstance(caught.value, PromptTooLongError) == ("max_model_len" in str(caught.value))
    assert engine.stats().waiting == 0
    assert (await final(engine.submit("r", [5], greedy()))).finished


@pytest.mark.parametrize("request_id", ["", "x" * 513, "\ud800"])
async def test_request_ids_that_cannot_travel_are_refused(
    start: EngineFactory, request_id: str
) -> None:
    engine = await start()
    with pytest.raises(RequestError, match="request_id"):
        engine.submit(request_id, [5], greedy())
    assert (await final(engine.submit("r", [5], greedy()))).finished


async def test_a_request_id_is_taken_while_it_is_open(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.002))
    stream = engine.submit("r", [5], greedy())
    with pytest.raises(RequestError, match="'r' is in use"):
        engine.submit("r", [5], greedy())
    assert (await final(stream)).finished
    assert (await final(engine.submit("r", [5], greedy()))).finished


async def test_prompts_are_truncated_from_the_left_on_demand(start: EngineFactory) -> None:
    engine = await start(max_model_len=50)
    params = greedy(truncate_prompt_tokens=3, max_tokens=3)
    output = await final(engine.submit("r", list(range(10, 110)), params))
    assert output.prompt_token_ids == [107, 108, 109]
    assert output.outputs[0].token_ids == [107, 108, 109]


async def test_without_max_tokens_the_model_or_the_cache_is_the_limit(
    start: EngineFactory,
) -> None:
    endless = greedy(max_tokens=None, ignore_eos=True)
    engine = await start(max_model_len=60)
    assert len((await final(engine.submit("r", [5] * 20, endless))).outputs[0].token_ids) == 40
    small = await start(Script(num_blocks=2), max_model_len=500)
    output = await final(small.submit("r", [5] * 20, endless))
    assert len(output.outputs[0].token_ids) == 13
    assert output.outputs[0].finish_reason == "length"


async def test_drain_finishes_what_is_open_and_takes_no_more(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.002))
    stream = engine.submit("r", [5], greedy(max_tokens=20))
    assert not await engine.drain(0.001)
    assert (engine.phase, engine.ready) == ("draining", False)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        engine.submit("s", [5], greedy())
    assert await engine.drain(20.0)
    assert (await final(stream)).outputs[0].finish_reason == "length"
    assert await engine.drain(20.0)


class _Listener(EngineObserver):
    def __init__(self) -> None:
        self.first: list[float] = []
        self.next: list[float] = []
        self.finished: list[FinishedRequest] = []
        self.rows = 0

    def on_first_token(self, seconds: float) -> None:
        self.first.append(seconds)

    def on_next_token(self, seconds: float) -> None:
        self.next.append(seconds)

    def on_finished(self, request: FinishedRequest) -> None:
        self.finished.append(request)

    def on_step(self, rows: int, tokens: int, seconds: float) -> None:
        self.rows += rows
        assert tokens <= rows
        assert seconds >= 0


async def test_an_observer_hears_what_happens(start: EngineFactory) -> None:
    engine = await start()
    engine.observer = listener = _Listener()
    output = await final(engine.submit("r", [5, 6, 7], greedy(max_tokens=4)))
    (finished,) = listener.finished
    facts = replace(finished, queued_seconds=0, first_token_seconds=0, total_seconds=0)
    assert facts == FinishedRequest("r", "length", 3, 4, 0, 1, 4, 0, 0, 0)
    assert len(listener.first) == 1
    assert len(listener.next) == 3
    assert output.metrics is not None
    assert finished.total_seconds >= listener.first[0] >= (finished.queued_seconds or 0.0) >= 0
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (3, 4)
    assert stats.finished == {"length": 1}
    assert listener.rows == 4


async def test_statistics_are_logged_as_one_plain_line(
    start: EngineFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mtactors.front.stats._LOG_SECONDS", 0.02)
    with caplog.at_level(logging.INFO, "mtactors.front.stats"):
        engine = await start(Script(step_seconds=0.01), log_stats=True)
        caplog.clear()
        await asyncio.sleep(0.05)
        assert caplog.messages == []  # nothing happens, nothing is said
        await final(engine.submit("r", [5] * 20, greedy(max_tokens=10)))
    assert any(line.startswith("running 1, waiting 0; prompt") for line in caplog.messages)


async def test_a_cache_smaller_than_the_model_allows_is_worth_a_warning(
    start: EngineFactory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mtactors.front.engine"):
        engine = await start(Script(num_blocks=3), tp=2, max_model_len=50)
    assert engine.group is not None
    assert engine.group.num_blocks == 3
    assert caplog.messages[0].startswith("2 worker(s) on fake with fake kernels, ready after 0.")
    assert caplog.messages[0].endswith("KV cache of 48 tokens")
    assert caplog.messages[1].startswith("the KV cache holds 49 tokens and max_model_len is 50")


async def test_readers_that_share_nothing_read_at_their_own_pace(start: EngineFactory) -> None:
    engine = await start(Script(step_seconds=0.001))
    slow = engine.submit("slow", [5], greedy(max_tokens=40))
    fast = engine.submit("fast", [6], greedy(max_tokens=40))

    async def read_slowly() -> list[RequestOutput]:
        outputs = []
        async for output in slow:
            outputs.append(output)
            await asyncio.sleep(0.02)
        return outputs

    slowly, quickly = await asyncio.gather(read_slowly(), read(fast))
    assert len(slowly) < len(quickly)
    assert slowly[-1].outputs[0].token_ids == [5] * 40


async def test_a_request_that_comes_while_a_step_runs_is_in_the_next_one(
    start: EngineFactory,
) -> None:
    engine = await start(Script(step_seconds=0.03))
    reading = asyncio.ensure_future(read(engine.submit("long", [5], greedy(max_tokens=100))))
    steps: list[int] = []
    while 2 not in steps and len(steps) < 20:  # a machine under load may be late at times
        before = engine.stats().steps
        await until(lambda: engine.stats().steps > before)  # noqa: B023
        before = engine.stats().steps
        await final(engine.submit(f"short {len(steps)}", [7], greedy(max_tokens=1)))
        steps.append(engine.stats().steps - before)
    assert 2 in steps
    engine.abort("long")
    await reading
