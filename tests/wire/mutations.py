"""Frames that were right once: each still is msgpack, with something in it that is not."""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

_NUMBERS = (-1, 0, 1, 2, 7, 255, 319, 320, 400, 1 << 15, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1)


def mutate(frame: bytes, random: Random, times: int = 1) -> bytes:
    """Return a frame in which `times` places of a frame were changed."""
    body = msgpack.unpackb(frame, raw=False, strict_map_key=False)
    for _ in range(times):
        body = _change(body, random)
    return bytes(msgpack.packb(body, use_bin_type=True))


def _change(value: Any, random: Random) -> Any:
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        if random.random() < 0.1:
            return [*value[:at], *value[at + random.randrange(2) :], *value[at : at + 1]]
        return [*value[:at], _change(value[at], random), *value[at + 1 :]]
    if isinstance(value, bytes) and random.random() < 0.9:
        return _change_bytes(value, random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        number = random.choice([value + 1, value - 1, *_NUMBERS])
        return type(value)(number)
    if isinstance(value, str):
        return value[: random.randrange(len(value) + 1)] + "\0" * random.randrange(3)
    return random.choice([None, 0, "", b"", [], [[]], 1.5, {}])


def _change_bytes(value: bytes, random: Random) -> bytes:
    """Change one number in a list of four bytes each, or the length of the list."""
    number = random.choice(_NUMBERS[:-1]).to_bytes(4, "little", signed=True)
    at = 4 * random.randrange(len(value) // 4 + 1)
    return value[:at] + number * random.randrange(3) + value[at + 4 * random.randrange(2) :]
