"""Sampling defaults of a checkpoint: where they come from, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtactors.errors import ConfigError
from mtactors.generation_defaults import read_generation_defaults


def write(directory: Path, content: object) -> Path:
    directory.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "generation_config.json").write_text(text)
    return directory


def test_what_is_about_sampling_is_taken(tmp_path: Path) -> None:
    content = {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "min_p": None,
        "presence_penalty": 1.5, "frequency_penalty": 0.5, "max_new_tokens": 99,
        "eos_token_id": [1, 2], "do_sample": True,
    }  # fmt: skip
    found = read_generation_defaults("auto", write(tmp_path, content))
    assert found == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05,
        "presence_penalty": 1.5, "frequency_penalty": 0.5, "max_tokens": 99,
    }  # fmt: skip
    assert read_generation_defaults("vllm", tmp_path) == {}


def test_another_directory_may_be_named(tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"top_k": 3})
    assert read_generation_defaults(str(other), tmp_path) == {"top_k": 3}
    assert read_generation_defaults("auto", tmp_path) == {}
    with pytest.raises(ConfigError, match="generation_config: there is no"):
        read_generation_defaults(str(tmp_path / "gone"), other)


@pytest.mark.parametrize(
    "content, word",
    [
        ("{", "not JSON"), ([1], "not a JSON object"), ({"temperature": -1}, "temperature"),
        ({"top_k": "x"}, "top_k"), ({"top_p": 0}, "--generation-config vllm"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, content: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_generation_defaults("auto", write(tmp_path, content))
