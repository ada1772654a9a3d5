"""The decoder on the families that transformers does not know, against plain torch.

float32 logits within 1e-4, float16 within 0.1; Qwen v1 below, across and beyond the length that
it was trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtactors.checkpoint.loader import load_decoder
from mtactors.families import load_spec
from mtactors.families.rope import prompt_alpha
from mtactors.families.spec import DecoderSpec
from mtactors.kernels.reference import OPERATIONS as OPS
from tests.models.plain_models import PlainModel
from tests.paged_decoder import PagedDecoder, Row
from tests.tiny_models import make_tiny_model

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen": ("qwen", {}),
    "qwen, neither ntk nor logn": ("qwen", {"use_dynamic_ntk": False, "use_logn_attn": False}),
    "chatglm": ("chatglm", {}),
    "chatglm, 32k": ("chatglm", {"rope_ratio": 50}),
    "baichuan-7b": ("baichuan-7b", {}),
    "baichuan-13b": ("baichuan-13b", {}),
    "baichuan2-7b": ("baichuan2-7b", {}),
    "baichuan2-13b": ("baichuan2-13b", {}),
    "yayi": ("yayi", {}),
}


def prompt_of(length: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 320, (length,), generator=generator).tolist()


def paged(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[PagedDecoder, DecoderSpec]:
    spec = load_spec(directory)
    return PagedDecoder(load_decoder(directory, spec, OPS, dtype)), spec


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_ids_agree(case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    directory = make_tiny_model(tmp_path, family, **overrides)
    plain = PlainModel(family, directory)
    ours, spec = paged(directory)
    # 40 + 12 tokens cross Qwen's 48 while decoding: logn begins, alpha stays.
    for length, chunk in ((17, 5), (40, 40), (80, 33)):
        prompt = prompt_of(length)
        generated = ours.greedy(prompt, 12, chunk, alpha=prompt_alpha(spec, length))
        expected = plain.logits(prompt + generated.ids, length)
        torch.testing.assert_close(generated.logits, expected, atol=1e-4, rtol=0)
        assert expected[length - 1 : -1].argmax(-1).tolist() == generated.ids
    assert expected.std() > 0.5


@pytest.mark.parametrize(
    "case",
    ["qwen", "chatglm", "baichuan-7b", "baichuan-13b", "baichuan2-7b", "baichuan2-13b", "yayi"],
)
def test_float16_stays_within_a_tenth(case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    directory = make_tiny_model(tmp_path, family, **overrides)
    ours, spec = paged(directory, torch.float16)
    row = Row(alpha=prompt_alpha(spec, 80))
    logits = ours.prefill(row, prompt_of(80), 33)
    expected = PlainModel(family, directory).logits(prompt_of(80), 80)
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0)


def test_rows_of_one_step_keep_their_own_alphas(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path, "qwen")
    ours, spec = paged(directory)
    lengths = (20, 60, 150, 70)
    rows = [Row(alpha=prompt_alpha(spec, length)) for length in lengths]
    assert [row.alpha for row in rows] == [1.0, 3.0, 7.0, 3.0]
    prompts = [prompt_of(length, seed=length) for length in lengths]
    plain = PlainModel("qwen", directory)
    results = ours.step(list(zip(rows, prompts, strict=True)))
    for result, prompt in zip(results, prompts, strict=True):
        expected = plain.logits(prompt, len(prompt))
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    wrong = plain.logits(prompts[1], 40)
    assert (results[1] - wrong).abs().max() > 0.1
