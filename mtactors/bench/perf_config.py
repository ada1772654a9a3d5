"""The file that says what the perf test measures: a JSON list of models, `#` comments allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtactors.errors import UsageError

_KEYS = ("model_name", "path", "batchs", "batches", "prefill_token_lens", "decode_token_lens")
# A string, or a comment to the end of the line: a `#` within a string is part of it.
_STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|#[^\n]*')


@dataclass(frozen=True, slots=True)
class PerfModel:
    """One entry; `engine` holds further arguments of the engine under their own names."""

    model_name: str
    path: str | None
    batches: list[int]
    prefill_token_lens: list[int]
    decode_token_lens: list[int]
    engine: Mapping[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> list[PerfModel]:
    """Return the entries of a file.

    Raises:
        UsageError: it is missing or damaged; the text names entry and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    try:
        content = json.loads(without_comments(text))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if isinstance(content, Mapping):  # one model needs no list
        content = [content]
    if not isinstance(content, list) or not content:
        raise UsageError(f"{path}: not a list of models")
    return [_entry(entry, f"{path}, entry {index}") for index, entry in enumerate(content)]


def without_comments(text: str) -> str:
    """Return JSON without its `#` comments."""
    return _STRING_OR_COMMENT.sub(lambda match: match[1] or "", text)


def _entry(entry: object, place: str) -> PerfModel:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{place}: not an object")
    if unknown := set(entry) - {*_KEYS, "engine"}:
        raise UsageError(f"{place}: no key {min(unknown)!r}; there are: {', '.join(_KEYS)}, engine")
    if "batchs" in entry and "batches" in entry:
        raise UsageError(f"{place}: batchs and batches are the same; give one")
    path = entry.get("path")
    if not isinstance(path, str) or not path:
        raise UsageError(f"{place}: path is missing: the directory of the model")
    name = entry.get("model_name", Path(path).name)
    if not isinstance(name, str) or not name:
        raise UsageError(f"{place}: model_name is not a text")
    engine = entry.get("engine", {})
    if not isinstance(engine, Mapping):
        raise UsageError(f"{place}: engine is not an object")
    batches = "batchs" if "batchs" in entry else "batches"
    return PerfModel(
        name,
        path,
        _numbers(entry, batches, place),
        _numbers(entry, "prefill_token_lens", place),
        _numbers(entry, "decode_token_lens", place),
        engine,
    )


def _numbers(entry: Mapping[str, object], key: str, place: str) -> list[int]:
    values = entry.get(key)
    good = isinstance(values, list) and values and all(type(v) is int and v > 0 for v in values)
    if not good or not isinstance(values, list):
        raise UsageError(f"{place}: {key} is not a list of positive numbers: {values!r}")
    return values
