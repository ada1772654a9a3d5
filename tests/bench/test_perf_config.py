from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtactors.bench.perf_config import read_config, without_comments
from mtactors.errors import UsageError

ENTRY: dict[str, Any] = {
    "model_name": "llama2-70b",
    "path": "/models/llama",
    "batchs": [1, 2],
    "prefill_token_lens": [256],
    "decode_token_lens": [64],
}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "perf_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_documented_form_with_its_comments(tmp_path: Path) -> None:
    text = """[
  {
    "model_name": "llama2-70b", # 以实际模型名为准
    "path": "/data/#1/llama",
    "batchs": [1,2,4,8], # "quoted"
    # a line of its own
    "prefill_token_lens": [256,512,1024],
    "decode_token_lens": [64]
  }
]"""
    (model,) = read_config(written(tmp_path, text))
    assert model.model_name == "llama2-70b"
    assert model.path == "/data/#1/llama"
    assert model.batches == [1, 2, 4, 8]
    assert model.prefill_token_lens == [256, 512, 1024]
    assert model.decode_token_lens == [64]


def test_batches_is_the_same_and_a_name_may_be_left_out(tmp_path: Path) -> None:
    entry = {key: value for key, value in ENTRY.items() if key not in ("batchs", "model_name")}
    (model,) = read_config(written(tmp_path, [{**entry, "batches": [3]}]))
    assert (model.model_name, model.batches) == ("llama", [3])


def test_one_model_needs_no_list(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, ENTRY)) == read_config(written(tmp_path, [ENTRY]))


def test_escapes_do_not_end_a_string() -> None:
    assert without_comments(r'"a\"# b" # c') == r'"a\"# b" '


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"batchs": []}, "batchs is not a list of positive numbers"),
        ({"batchs": [0]}, "batchs"),
        ({"decode_token_lens": [True]}, "decode_token_lens"),
        ({"prefill_token_lens": "256"}, "prefill_token_lens"),
        ({"path": None}, "path is missing"),
        ({"batches": [1]}, "give one"),
        ({"bacthes": [1]}, "no key 'bacthes'"),
        ({"engine": 3}, "engine is not an object"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=r"entry 0.*" + problem):
        read_config(written(tmp_path, [{**ENTRY, **change}]))


@pytest.mark.parametrize("content", ["[", "{}", "[]", "[3]"])
def test_what_is_no_list_of_models(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"perf_config\.json"):
        read_config(written(tmp_path, content))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_config(tmp_path / "none.json")
