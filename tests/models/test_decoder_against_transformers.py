"""The decoder in float32 against transformers, on tiny checkpoints of the families it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtactors.checkpoint.loader import load_decoder
from mtactors.families import load_spec
from mtactors.kernels.reference import OPERATIONS as OPS
from tests.paged_decoder import PagedDecoder, Row
from tests.tiny_models import make_tiny_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, as many kv heads": ("llama", {"num_key_value_heads": 4, "head_dim": None}),
    "llama, bias": ("llama", {"attention_bias": True}),
    "llama, llama3 rope": ("llama", {"rope_scaling": LLAMA3_ROPE}),
    "llama, linear rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral, window": ("mistral", {}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2-tied", {}),
    "qwen2, window in the second layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
}


def prompt_of(length: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 320, (length,), generator=generator).tolist()


def paged(directory: Path) -> PagedDecoder:
    return PagedDecoder(load_decoder(directory, load_spec(directory), OPS, torch.float32))


class Theirs:
    """transformers' model of the same directory."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )

    def logits(self, ids: list[int]) -> Tensor:
        """Return (tokens, vocab) of a whole sequence at once."""
        with torch.no_grad():
            result = self._model(torch.tensor([ids])).logits[0]
        assert isinstance(result, Tensor)
        return result


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_ids_agree(case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    directory = make_tiny_model(tmp_path, family, **overrides)
    if "sliding_window" in overrides and overrides["sliding_window"] is None:
        rewrite_null(directory)
    theirs, ours = Theirs(directory), paged(directory)
    for length, chunk in ((1, 1), (17, 5), (80, 80), (80, 33)):
        generated = ours.greedy(prompt_of(length), 12, chunk)
        expected = theirs.logits(prompt_of(length) + generated.ids)
        torch.testing.assert_close(generated.logits, expected, atol=1e-4, rtol=0)
        assert expected[length - 1 : -1].argmax(-1).tolist() == generated.ids
    # Otherwise the test would not tell one model from another.
    assert expected.std() > 1


def rewrite_null(directory: Path) -> None:
    """Say "no window" as Mistral's later configs do: a null, which is not an absent key."""
    path = directory / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("{", '{"sliding_window": null,', 1), encoding="utf-8")


def test_rows_of_a_mixed_batch_agree_with_each_on_its_own(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path, "mistral")
    theirs, ours = Theirs(directory), paged(directory)
    prompts = [prompt_of(length, seed=length) for length in (1, 17, 40, 80)]
    rows = [Row() for _ in prompts]
    # The third and fourth prompts arrive in two chunks while the first two already decode.
    first = ours.step([(rows[0], prompts[0]), (rows[1], prompts[1])])
    ids = [int(logits[-1].argmax()) for logits in first]
    second = ours.step(
        [
            (rows[0], [ids[0]]),
            (rows[2], prompts[2][:23]),
            (rows[1], [ids[1]]),
            (rows[3], prompts[3][:64]),
        ]
    )
    third = ours.step([(rows[3], prompts[3][64:]), (rows[2], prompts[2][23:])])
    expected = [theirs.logits(row.tokens) for row in rows]
    torch.testing.assert_close(second[0][0], expected[0][-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(second[2][0], expected[1][-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(second[1], expected[2][:23], atol=1e-4, rtol=0)
    torch.testing.assert_close(third[0], expected[3][64:], atol=1e-4, rtol=0)
    torch.testing.assert_close(third[1], expected[2][23:], atol=1e-4, rtol=0)


def test_a_row_may_read_blocks_that_another_row_wrote(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path)
    ours = paged(directory)
    shared, tails = prompt_of(32), (prompt_of(9, seed=2), prompt_of(20, seed=3))
    writer = Row()
    ours.prefill(writer, shared + tails[0], 17)
    reader = Row(tokens=list(shared), blocks=writer.blocks[:2])
    hot = ours.step([(reader, tails[1])])[0]
    cold = paged(directory).prefill(Row(), shared + tails[1], 100)
    torch.testing.assert_close(hot, cold[32:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.1), (torch.bfloat16, 0.6)], ids=str
)
def test_small_dtypes_stay_near_float32(
    family: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    directory = make_tiny_model(tmp_path, family)
    decoder = load_decoder(directory, load_spec(directory), OPS, dtype)
    logits = PagedDecoder(decoder).prefill(Row(), prompt_of(80), 33)
    assert logits.dtype is torch.float32
    exact = Theirs(directory).logits(prompt_of(80))
    torch.testing.assert_close(logits, exact, atol=tolerance, rtol=0)
