"""Which form a model writes calls in, and grammars of calls that the form's reader reads."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from mtactors.entrypoints.openai.protocol import ChatBody
from mtactors.entrypoints.openai.structure import asked_structure
from mtactors.entrypoints.openai.tools.dialects import (
    CALL_PARSERS,
    check_parsers,
    choose_calls,
    splits_thoughts,
)
from mtactors.entrypoints.openai.tools.events import read
from mtactors.entrypoints.openai.tools.plans import AnswerPlan, AnswerStyle
from mtactors.entrypoints.openai.tools.request import read_tools
from mtactors.errors import ConfigError
from mtactors.front.guide import guide_of
from mtactors.front.tokenizer import Tokenizer
from mtactors.tokenizers import chat_templates
from tests.front.tiny_tokenizers import CHATML, byte_level

SHAPE = {
    "$defs": {"Unit": {"enum": ["cm", "inch"]}},
    "type": "object",
    "properties": {"unit": {"$ref": "#/$defs/Unit"}, "wide": {"type": "boolean"}},
    "required": ["unit", "wide"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "measure", "parameters": SHAPE}},
    {"type": "function", "function": {"name": "leave"}},
]
THINK = CHATML + "{# </think> #}"
BYTES = LLTokenizer("byte")


def style(template: str = CHATML, parser: str = "auto") -> AnswerStyle:
    return AnswerStyle(Tokenizer(byte_level(), {}, {"default": template}), parser)


def plan(style: AnswerStyle, prompt: str = "", **fields: Any) -> AnswerPlan:
    body = ChatBody.model_validate({"messages": [], **fields})
    ids = [] if not prompt else Tokenizer(byte_level()).encode(prompt)
    return style.plan(read_tools(body), asked_structure(body), ids)


def written_at_random(plan: AnswerPlan, seed: int, most: int = 400) -> str | None:
    """Write evenly at random within a plan's structure; None if it would take too long."""
    assert plan.structure is not None
    plan.check()
    chance = random.Random(seed)
    matcher = LLMatcher(BYTES, guide_of(plan.structure), log_level=0)
    text = bytearray()
    while not (matcher.is_accepting() and (matcher.is_stopped() or chance.random() < 0.5)):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [byte for byte in np.flatnonzero(bits[:256]).tolist() if 32 <= byte < 127]
        text.append(chance.choice(allowed or [10]))
        assert matcher.consume_token(text[-1])
        if len(text) > most:
            return None
    return text.decode()


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }}[TOOL_CALLS]", "mistral"),
        ("{{ tools }}<tool_call>", "hermes"),
        ("{{ tools }}<|python_tag|>", "llama3_json"),
        ('{{ tools }} {"name": function name, "parameters": dictionary of argument name and its',
         "llama3_json"),
        (chat_templates.chatglm3(as_text=False), "chatglm3"),
        (CHATML, "hermes"),
    ],
)  # fmt: skip
def test_the_template_tells_the_form(template: str, name: str) -> None:
    assert choose_calls("auto", {"default": template}).name == name
    assert choose_calls("auto", {"default": CHATML, "tool_use": template}).name == name


def test_names_win_over_templates_and_unknown_ones_are_refused() -> None:
    for name in set(CALL_PARSERS) - {"auto"}:
        assert choose_calls(name, {"default": "[TOOL_CALLS]"}).name in CALL_PARSERS
    assert choose_calls("qwen", {}).name == "hermes"
    with pytest.raises(ConfigError, match="tool_call_parser"):
        check_parsers("pythonic", "auto")
    with pytest.raises(ConfigError, match="reasoning_parser"):
        check_parsers("auto", "granite")


def test_thoughts_are_split_where_the_template_speaks_of_them() -> None:
    assert splits_thoughts("auto", {"default": THINK})
    assert not splits_thoughts("auto", {"default": CHATML})
    assert splits_thoughts("deepseek_r1", {})
    assert not splits_thoughts("none", {"default": THINK})


@pytest.mark.parametrize("parser", ["hermes", "llama3_json", "mistral", "chatglm3"])
@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls_are_read_back(parser: str, parallel: bool) -> None:
    made = plan(
        style(parser=parser),
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=parallel,
    )
    names = []
    for seed in range(12):
        text = written_at_random(made, seed)
        if text is None:  # ever more calls
            continue
        assert made.reader is not None
        answer = read(made.reader(), text)
        assert answer.content is None
        assert len(answer.calls) == 1 or parallel
        for call in answer.calls:
            names.append(call.name)
            arguments = json.loads(call.arguments)
            assert set(arguments) == ({"unit", "wide"} if call.name == "measure" else set())
    assert set(names) == {"measure", "leave"}


def test_a_named_call_is_that_call_and_no_other() -> None:
    named = {"type": "function", "function": {"name": "leave"}}
    made = plan(style(), tools=TOOLS, tool_choice=named)
    assert made.reader is not None
    for seed in range(12):
        (call,) = read(made.reader(), written_at_random(made, seed) or "").calls
        assert (call.name, call.arguments) == ("leave", "{}")


def test_thoughts_come_before_a_structure() -> None:
    for prompt, opened in (("<|im_start|>assistant\n", False), ("assistant\n<think>\n", True)):
        made = plan(style(THINK), prompt, guided_choice=["yes"])
        assert made.structure is not None and made.reader is not None
        guide = guide_of(made.structure)
        for text, thought in (
            ("yes", None),
            ("<think>a</think>\n\nyes", "a"),
            ("a</think>yes", "a"),
        ):
            matcher = LLMatcher(BYTES, guide, log_level=0)
            data = list(text.encode())
            fits = matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
            wanted = not text.startswith("yes") if opened else not text.startswith("a")
            assert fits == wanted, text
            if fits and not (opened and text.startswith("<think>")):
                answer = read(made.reader(), text)
                assert (answer.content, answer.reasoning) == ("yes", thought)


def test_a_question_about_thoughts_does_not_begin_them() -> None:
    made = plan(style(THINK), "What is <think>?<|im_end|>\n<|im_start|>assistant\n")
    assert made.reader is not None
    assert read(made.reader(), "A tag.").content == "A tag."


def test_special_tokens_are_shown_only_where_a_reader_needs_them() -> None:
    backend = byte_level()
    backend.add_special_tokens(["[TOOL_CALLS]"])
    template = "{{ tools }}[TOOL_CALLS]"
    special = AnswerStyle(Tokenizer(backend, {}, {"default": template}))
    plain = style(template)
    assert plan(special, tools=TOOLS).show_special
    assert plan(special, tools=TOOLS).short_ids
    assert not plan(plain, tools=TOOLS).show_special
    assert not plan(special).show_special
    assert plan(special).reader is None
