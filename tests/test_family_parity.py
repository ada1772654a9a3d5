"""Every family through the whole engine: its greedy ids on 1, 2 and 4 ranks, cold and hot.

The prompts arrive together and are of 17, 80 and 70 tokens, the last two longer than a block; the
second time they find their blocks cached. The truth is transformers for the families that it knows
and the tests' own plain torch for the others. Ranks are processes, two of them over gloo, four
through shared memory; logits are compared in `tests/models`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from mtactors.entrypoints.llm import LLM
from mtactors.outputs import RequestOutput
from mtactors.sampling_params import SamplingParams
from tests.models.plain_models import PlainModel
from tests.tiny_models import make_tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 331, "intermediate_size": 93},  # nothing divides
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen": {},
    "chatglm": {},
    "baichuan-7b": {},
    "baichuan-13b": {},
    "baichuan2-7b": {},
    "yayi": {},
}
KNOWN_TO_TRANSFORMERS = ("llama", "mistral", "qwen2", "qwen3")
LENGTHS = (17, 80, 70)
NEW_TOKENS = 6
Logits = Callable[[list[int], int], torch.Tensor]


def prompt_of(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, 320, (length,), generator=generator).tolist()


def logits_of(family: str, directory: Path) -> Logits:
    """Return the truth: ids and the prompt's length to logits of all positions."""
    if family not in KNOWN_TO_TRANSFORMERS:
        return PlainModel(family, directory).logits
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return lambda ids, _: model(torch.tensor([ids])).logits[0]


def greedy(logits: Logits, prompt: list[int], sampleable: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            ids.append(int(logits(ids, len(prompt))[-1, :sampleable].argmax()))
    return ids[len(prompt) :]


def answers(llm: LLM, prompts: list[list[int]]) -> tuple[list[list[int]], list[RequestOutput]]:
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs], outputs


@pytest.mark.parametrize(("ranks", "kernels"), [(1, "cpu"), (2, "reference"), (4, "cpu")])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_are_the_familys(family: str, ranks: int, kernels: str, tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path / "model", family, **FAMILIES[family])
    logits = logits_of(family, directory)
    prompts = [prompt_of(length) for length in LENGTHS]
    with LLM(
        str(directory),
        dtype="float32",
        max_model_len=128,
        tensor_parallel_size=ranks,
        kernels=kernels,
        disable_log_stats=True,
    ) as llm:
        cold, _ = answers(llm, prompts)
        hot, outputs = answers(llm, prompts)
    assert [output.num_cached_tokens for output in outputs] == [length - 1 for length in LENGTHS]
    sampleable = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()
    expected = [greedy(logits, prompt, sampleable) for prompt in prompts]
    assert cold == expected
    assert hot == expected
