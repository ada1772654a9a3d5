"""Results that cannot be answers to their plans are refused whole, whatever is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtactors.errors import WireError
from mtactors.front.request_progress import RequestProgress
from mtactors.front.results import check_ids
from mtactors.sampling_params import SamplingParams
from mtactors.wire.codec import decode_for_front, encode
from mtactors.wire.messages import PromptLogprobs, StepResult, TokenLogprobs
from tests.front.bench import Bench, make_request
from tests.front.engine_configs import VOCABULARY
from tests.front.engines import tiny_tokenizer
from tests.wire.mutations import mutate

TOKENIZER = tiny_tokenizer()


class Front:
    """The part of the front that takes results in, over a worker that may be made to lie."""

    def __init__(self) -> None:
        self.bench = Bench(num_blocks=12, max_num_batched_tokens=24)
        for name, params in {
            "plain": SamplingParams(),
            "logprobs": SamplingParams(logprobs=2, prompt_logprobs=1),
            "choices": SamplingParams(n=2, logprobs=0),
            "stop": SamplingParams(stop=["a"], stop_token_ids=[5]),
        }.items():
            request = make_request(name, range(3, 23 + len(name)), 12, params)
            self.bench.add(request)
        self.progress = {
            name: RequestProgress(request, None, TOKENIZER)
            for name, request in self.bench.requests.items()
        }

    def take(self, result: StepResult) -> None:
        """Take a result in.

        Raises:
            WireError: it is refused.
        """
        check_ids(result, VOCABULARY)
        for update in self.bench.scheduler.apply(result):
            progress = self.progress[update.request.request_id]
            stopped = progress.apply(update, 0.0)
            if stopped:
                self.bench.scheduler.finish(update.request.request_id, update.choice)
            output = progress.snapshot()
            choice = output.outputs[update.choice]
            if choice.logprobs is not None:
                assert len(choice.logprobs) == len(choice.token_ids)
        self.bench.scheduler.check_integrity()


def changed_result(result: StepResult, random: Random, times: int) -> StepResult:
    message = decode_for_front(mutate(encode(result), random, times))
    if not isinstance(message, StepResult):
        raise WireError("another message")
    return message


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_whatever_is_changed_in_a_result_is_refused_or_harmless(seed: int, times: int) -> None:
    random, front = Random(seed), Front()
    for _ in range(14):
        if front.bench.schedule() is None:
            break
        result = front.bench.execute()
        try:
            front.take(changed_result(result, random, times))
        except WireError:
            front.take(result)  # what was refused has changed nothing
        else:
            return  # a worker that makes up ids is not the front's to find out


def result_with_logprobs() -> tuple[Front, StepResult]:
    """Return the first result with logprobs of sampled tokens, not taken yet."""
    front = Front()
    while True:
        assert front.bench.schedule() is not None
        result = front.bench.execute()
        if result.logprobs:
            return front, result
        front.take(result)


LOGPROBS = TokenLogprobs(0, -1.0, 1, [], [])
PIECE = PromptLogprobs(0, 1, [-1.0], [1], [4], [-2.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logprobs": []}, "or lacks some"),
        ({"logprobs": [replace(LOGPROBS, row=99)]}, "or lacks some"),
        ({"prompt_logprobs": [replace(PIECE, row=-1)]}, "not there"),
        ({"prompt_logprobs": [replace(PIECE, row=9)]}, "not there"),
        ({"prompt_logprobs": [replace(PIECE, start=0)]}, "not there"),
        ({"prompt_logprobs": [replace(PIECE, start=2**40)]}, "not there"),
        ({"prompt_logprobs": [replace(PIECE, ranks=[])]}, "not there"),
        ({"prompt_logprobs": [replace(PIECE, top_ids=[])]}, "without ids"),
        ({"prompt_logprobs": [replace(PIECE, top_ids=[-1])]}, "ids that are not below"),
        ({"prompt_logprobs": [replace(PIECE, top_ids=[VOCABULARY])]}, "ids that are not below"),
        ({"ids": [VOCABULARY]}, "an id that is not below"),
        ({"ids": []}, "ids for"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, list[object]], words: str) -> None:
    front, result = result_with_logprobs()
    with pytest.raises(WireError, match=words):
        front.take(replace(result, **changes))  # type: ignore[arg-type]  # fields by name
    front.take(result)
