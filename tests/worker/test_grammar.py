"""Rows with a grammar: random weights write what it allows, whatever else is in a batch."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtactors.errors import ModelError
from mtactors.front.guide import guide_of
from mtactors.front.tokenizer import Tokenizer
from mtactors.structured_outputs import StructuredOutputsParams
from mtactors.wire.messages import SamplerSpec
from mtactors.worker.grammar import Grammars, Vocabulary
from mtactors.worker.rows import Rows
from mtactors.worker.runner import Runner
from tests.tiny_models import END_OF_TEXT, IM_END
from tests.worker.plans import Plans, known_row, new_row, sampler
from tests.worker.test_runner import Driver

ROWS, SAMPLEABLE = 352, 320  # the tiny vocabulary, and padding to be left alone
PROMPT = [5, 9, 200]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["colour", "sizes"],
    "additionalProperties": False,
}
JSON = guide_of(StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True))


def guide(**fields: Any) -> str:
    return guide_of(StructuredOutputsParams(**fields))


class Desk:
    """Grammars over hand-made rows."""

    def __init__(self, directory: Path, slots: int = 4) -> None:
        self.rows = Rows(slots, 96, 16, 6 * slots, 4096)
        self.grammars = Grammars(
            lambda: Vocabulary(directory, ROWS, SAMPLEABLE, [END_OF_TEXT, IM_END]), threads=2
        )

    def seat(self, slot: int, grammar: str, output: list[int] | None = None) -> None:
        tokens = PROMPT + (output or [])
        blocks = list(range(6 * slot, 6 * slot + 6))
        self.rows.apply(Plans().next(new_row(slot, tokens, blocks, prompt_len=len(PROMPT))))
        self.grammars.start(slot, f"request-{slot}", grammar)

    def write(self, slot: int, token: int) -> None:
        self.rows.tokens[slot, self.rows.num_tokens[slot]] = token
        self.rows.num_tokens[slot] += 1

    def masks(self, *slots: int) -> list[set[int]]:
        """Return the ids that each slot allows next."""
        mask = np.full((len(slots), ROWS // 32), -1, np.int32)
        self.grammars.fill(mask, list(enumerate(slots)), self.rows)
        bits = np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little")
        return [set(np.flatnonzero(row).tolist()) for row in bits]


@pytest.fixture
def desk(tiny_model: Path) -> Desk:
    return Desk(tiny_model)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.load(tiny_model)


def write_at_random(desk: Desk, slot: int, seed: int, most: int = 90) -> list[int]:
    """Sample evenly from what is allowed until an end id comes."""
    chance = random.Random(seed)
    output: list[int] = []
    while len(output) < most:
        output.append(chance.choice(sorted(desk.masks(slot)[0])))
        desk.write(slot, output[-1])
        if output[-1] in (END_OF_TEXT, IM_END):
            break
    return output


def test_what_a_grammar_needs_can_be_read_before_it_comes(tiny_model: Path) -> None:
    read: list[Vocabulary] = []

    def load() -> Vocabulary:
        read.append(Vocabulary(tiny_model, ROWS, SAMPLEABLE, [END_OF_TEXT, IM_END]))
        return read[-1]

    desk = Desk(tiny_model)
    desk.grammars = Grammars(load)
    for _ in range(2):
        desk.grammars.warm()
    deadline = time.monotonic() + 20.0
    while not read and time.monotonic() < deadline:
        time.sleep(0.002)
    assert len(read) == 1
    desk.seat(0, guide(choice=["a"]))
    assert desk.masks(0) == [{*read[0]("a")}]
    assert len(read) == 1


def test_a_vocabulary_that_cannot_be_read_is_the_first_grammars_to_tell(tiny_model: Path) -> None:
    def load() -> Vocabulary:
        raise ModelError("no tokenizer")

    desk = Desk(tiny_model)
    desk.grammars = Grammars(load)
    desk.grammars.warm()
    desk.seat(0, guide(choice=["a"]))
    with pytest.raises(ModelError, match="no tokenizer"):
        desk.masks(0)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_sampled_matches(desk: Desk, tokenizer: Tokenizer, seed: int) -> None:
    desk.seat(0, JSON)
    output = write_at_random(desk, 0, seed)
    value = json.loads(tokenizer.decode(output))
    assert value["colour"] in ("red", "green")
    assert all(isinstance(size, bool) for size in value["sizes"])
    assert set(value) == {"colour", "sizes"}


def test_choices_regexes_and_grammars(desk: Desk, tokenizer: Tokenizer) -> None:
    for seed in range(4):
        for fields, matches in (
            ({"choice": ["世界", "a/b\n", "x"]}, {"世界", "a/b\n", "x"}),
            ({"regex": "(ab|c)/{2}"}, {"ab//", "c//"}),
            ({"grammar": 'root ::= "yes" | "no"'}, {"yes", "no"}),
            ({"grammar": 'start: WORD "!"\nWORD: "hi" | "ho"'}, {"hi!", "ho!"}),
        ):
            desk.rows.occupied[:] = False
            desk.seat(0, guide(**fields))
            assert tokenizer.decode(write_at_random(desk, 0, seed)) in matches


def test_an_ended_grammar_allows_the_end_ids_alone_forever(desk: Desk) -> None:
    desk.seat(0, guide(choice=["a"]))
    (first,) = desk.masks(0)
    desk.write(0, first.pop())
    for token in (IM_END, IM_END, 77):  # a row may be computed once too often
        assert desk.masks(0) == [{END_OF_TEXT, IM_END}]
        desk.write(0, token)
    assert desk.masks(0) == [{END_OF_TEXT, IM_END}]


def test_a_grammar_that_the_vocabulary_cannot_write_ends_with_a_warning(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    grammar = json.dumps({"grammars": [{"lark_grammar": "start: <[7]> <[999]>"}]})
    desk.seat(0, grammar)
    with caplog.at_level(logging.WARNING):
        assert desk.masks(0, 0) == [{END_OF_TEXT, IM_END}] * 2
    (record,) = caplog.records
    assert "request-0" in record.getMessage()


def test_a_resumed_row_goes_on_where_it_was(desk: Desk) -> None:
    desk.seat(0, JSON)
    output = write_at_random(desk, 0, seed=5)
    for length in range(len(output)):
        desk.rows.occupied[1:] = False
        desk.seat(1, JSON, output[:length])
        desk.seat(2, JSON)
        for token in output[:length]:
            desk.masks(2)
            desk.write(2, token)
        resumed, grown = desk.masks(1, 2)
        assert resumed == grown
        assert output[length] in resumed


def test_many_rows_at_once_are_as_one_by_one(tiny_model: Path) -> None:
    desk = Desk(tiny_model, slots=24)
    for slot in range(24):
        desk.seat(slot, JSON if slot % 2 else guide(regex="[a-z]{5}"))
    for step in range(12):
        together = desk.masks(*range(24))
        assert together == [desk.masks(slot)[0] for slot in range(24)]
        for slot, allowed in enumerate(together):
            desk.write(slot, random.Random(100 * slot + step).choice(sorted(allowed)))


def test_a_slot_without_grammar_follows_none(desk: Desk) -> None:
    desk.seat(0, JSON)
    desk.grammars.start(0, "next", "")
    with pytest.raises(KeyError):
        desk.masks(0)


def test_padding_and_special_ids_are_never_allowed(desk: Desk) -> None:
    desk.seat(0, guide(regex="(.|\n)*"))
    (allowed,) = desk.masks(0)
    assert max(allowed) < SAMPLEABLE
    assert allowed & {0, 1, 2} == {END_OF_TEXT, IM_END}
    assert len(allowed) > 200


def run_to_end(driver: Driver, slot: int, spec: SamplerSpec, grammar: str) -> list[int]:
    """Prefill and decode one row until it samples an end id."""
    row = new_row(slot, PROMPT, [slot * 4 + n for n in range(4)], spec=spec, grammar=grammar)
    output = list(driver.step(row).ids)
    while output[-1] not in (END_OF_TEXT, IM_END) and len(output) < 60:
        output += driver.step(known_row(slot)).ids
    driver.step(ended=(slot,))
    return output


def test_the_runner_samples_within_the_grammar(
    make_runner: Callable[..., Runner], tokenizer: Tokenizer
) -> None:
    driver = Driver(make_runner())
    greedy = run_to_end(driver, 0, sampler(), JSON)
    assert json.loads(tokenizer.decode(greedy))["colour"] in ("red", "green")
    # Beside a row without grammar, both write what they write alone.
    plain = new_row(1, PROMPT, [4, 5, 6, 7])
    alone = [*driver.step(plain).ids, *driver.decode(1, 8)]
    driver.step(ended=(1,))
    guided = new_row(0, PROMPT, [0, 1, 2, 3], grammar=JSON)
    both = [driver.step(guided, plain).ids]
    both += [driver.step(known_row(0), known_row(1)).ids for _ in range(8)]
    assert [ids[1] for ids in both] == alone
    assert [ids[0] for ids in both] == greedy[:9]


def test_min_tokens_cannot_forbid_the_end_of_an_ended_grammar(
    make_runner: Callable[..., Runner], tokenizer: Tokenizer
) -> None:
    driver = Driver(make_runner())
    spec = sampler(min_tokens=40, stop_ids=[END_OF_TEXT, IM_END])
    output = run_to_end(driver, 0, spec, guide(regex="[ab]{3,9}"))
    assert tokenizer.decode(output).strip("ab") == ""
    assert len(output) <= 10
    # Where there is another way than the end, it is taken.
    assert len(run_to_end(driver, 1, sampler(), guide(regex="[ab]{0,9}"))) <= 10
