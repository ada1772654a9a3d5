"""16 streams of mixed kinds over HTTP, and what a client keeps of them.

Knows nothing of what is done to the server meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

STORY = (
    "The lighthouse keeper climbed the stairs every evening, counted the steps, and wrote the "
    "number into a book. One night the number was not the same. "
)
QUESTION = "Explain in plain words how a sailing boat can go against the wind."
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 40},
        "steps": {"type": "array", "items": {"type": "string"}, "minItems": 12},
    },
    "required": ["title", "steps"],
}
TOOL = {"type": "function", "function": {"name": "plan_trip", "parameters": SCHEMA}}
PATIENCE = 600.0  # seconds, for a start and for a run
Bodies = Sequence[tuple[str, dict[str, Any]]]


def say(text: str) -> None:
    """Tell of progress."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Choice:
    """What a client keeps of one choice."""

    text: str = ""
    tool_calls: dict[str, str] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Answer:
    """What a client keeps of a stream; `gap` is its longest silence after the first event."""

    choices: dict[int, Choice] = field(default_factory=dict)
    ending: str = ""
    gap: float = 0.0

    @property
    def facts(self) -> object:
        """What must not depend on the fate of workers."""
        return self.choices, self.ending


def requests(tokens: int, without: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return 16 requests of mixed kinds, as path and body."""
    text: dict[str, Any] = {"prompt": STORY}
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}]}
    seeded: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 1}
    penal = {"repetition_penalty": 1.15, "presence_penalty": 0.3, "frequency_penalty": 0.2}
    kinds: list[dict[str, Any]] = [
        {**text, "temperature": 0},
        {**text, "temperature": 0, "logprobs": 3},
        {**text, "temperature": 0, "repetition_penalty": 1.1},
        {**text, "temperature": 0, "prompt": STORY * 12, "logit_bias": {"28": -2, "198": 1.5}},
        {**text, **seeded},
        {**text, **seeded, "seed": 2, "temperature": 1.3, "top_k": 50, "min_p": 0.02},
        {**text, **seeded, "seed": 3, "logprobs": 1},
        {**text, **seeded, **penal, "seed": 4, "logprobs": 0},
        {**text, **seeded, "n": 2, "seed": 5, "logprobs": 2},
        {**text, **seeded, **penal, "n": 2, "seed": 6},
        {**text, **seeded, "seed": 7, "stop": ["xyzzy", " the end of the st"]},
        {**text, **seeded, "seed": 8, "stop": [". The n", "?\n"], "min_tokens": tokens // 2},
        {**chat, "temperature": 0, "logprobs": True, "top_logprobs": 2},
        {**chat, **seeded, "seed": 9, "stop": ["e wind, but only when"]},
    ]
    fallback = {**text, **seeded, "prompt": STORY[:60], "seed": 10}
    structured = {"type": "json_schema", "json_schema": {"name": "article", "schema": SCHEMA}}
    kinds += [
        {**chat, **seeded, "seed": 11, "response_format": structured}
        if "structured" not in without
        else fallback,
        {**chat, **seeded, "seed": 12, "tools": [TOOL], "tool_choice": "required"}
        if "tools" not in without
        else {**fallback, "seed": 13},
    ]
    common = {"stream": True, "return_token_ids": True, "max_tokens": tokens}
    ready = []
    for kind in kinds:
        free = {} if {"response_format", "tools"} & set(kind) else {"ignore_eos": True}
        path = "/v1/chat/completions" if "messages" in kind else "/v1/completions"
        ready.append((path, {**common, **free, **kind}))
    return ready


class Load:
    """The streams of one run.

    Attributes:
        tokens: that have come so far.
    """

    def __init__(self, url: str, bodies: Bodies) -> None:
        self.tokens = 0
        self._url = url
        self._bodies = bodies
        self._awaited: tuple[int, asyncio.Future[None]] | None = None

    def reached(self, tokens: int) -> asyncio.Future[None]:
        """Return what is done when so many tokens have come."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited = (tokens, done)
        self._look()
        return done

    def _look(self) -> None:
        if self._awaited is not None and self.tokens >= self._awaited[0]:
            self._awaited[1].set_result(None)
            self._awaited = None

    async def run(self) -> list[Answer]:
        """Read all streams to their end."""
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE) as client:
            work = [self._read(client, path, body) for path, body in self._bodies]
            return await asyncio.gather(*work)

    async def _read(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Answer:
        answer, last = Answer(), 0.0
        async with client.stream("POST", path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                answer.ending = f"{response.status_code} {(await response.aread()).decode()}"
                return answer
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                now = time.monotonic()
                answer.gap = max(answer.gap, now - last) if last else 0.0
                last = now
                self._take(answer, line.removeprefix("data: "))
        return answer

    def _take(self, answer: Answer, data: str) -> None:
        event = json.loads(data) if data.startswith("{") else {}
        if "choices" not in event:
            answer.ending += data
            return
        for part in event["choices"]:
            choice = answer.choices.setdefault(part["index"], Choice())
            delta = part.get("delta") or part
            choice.text += delta.get("text") or delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                for name in ("name", "arguments"):
                    key = f"{call['index']} {name}"
                    said = call["function"].get(name) or ""
                    choice.tool_calls[key] = choice.tool_calls.get(key, "") + said
            ids = part.get("token_ids") or []
            choice.token_ids += ids
            self.tokens += len(ids)
            self._look()
            if part.get("logprobs"):
                choice.logprobs += _listed(part["logprobs"])
            choice.finish_reason = part["finish_reason"] or choice.finish_reason


def _listed(logprobs: dict[str, Any]) -> list[Any]:
    """Return one entry for each token, so that it does not matter how they came in chunks."""
    if "content" in logprobs:
        return list(logprobs["content"])
    names = sorted(name for name, values in logprobs.items() if values is not None)
    entries = zip(*(logprobs[name] for name in names), strict=True)
    return [dict(zip(names, entry, strict=True)) for entry in entries]


def compare(expected: Sequence[Answer], answers: Sequence[Answer], where: str) -> int:
    """Count equal streams; say how the others differ."""
    equal = 0
    for number, (want, have) in enumerate(zip(expected, answers, strict=True)):
        if want.facts == have.facts:
            equal += 1
            continue
        say(f"{where}: stream {number} ended with {have.ending[:200]!r}")
        for index, choice in want.choices.items():
            mine, other = vars(choice), vars(have.choices.get(index, Choice()))
            names = [name for name in mine if mine[name] != other[name]]
            say(f"    choice {index} differs in {', '.join(names)}")
    return equal


async def undisturbed(url: str, bodies: Bodies) -> tuple[list[Answer], int]:
    """Return what the streams say when nobody disturbs them, and the number of tokens.

    Raises:
        SystemExit: the server does not serve one of them.
    """
    load = Load(url, bodies)
    answers = await load.run()
    for number, answer in enumerate(answers):
        if answer.ending != "[DONE]":
            raise SystemExit(f"chaos: request {number} is not served: {answer.ending}")
    return answers, load.tokens
