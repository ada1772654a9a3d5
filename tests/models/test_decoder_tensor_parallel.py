"""Several ranks compute what one computes, whatever does not divide.

The ranks are threads; what crosses processes is tested with the worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtactors.checkpoint.loader import load_decoder
from mtactors.families import load_spec
from mtactors.families.rope import prompt_alpha
from mtactors.kernels.reference import OPERATIONS as OPS
from mtactors.layers.comm import Comm
from tests.paged_decoder import Generated, PagedDecoder, ThreadRanks
from tests.tiny_models import make_tiny_model

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "heads divide": ("llama", 2, {}),
    "kv heads are padded": ("llama", 3, {}),
    "kv heads are copied": ("llama", 4, {}),
    "9 and 3 heads": ("llama", 2, {"num_attention_heads": 9, "num_key_value_heads": 3}),
    "a copied group is padded": (
        "llama",
        4,
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16},
    ),
    "nothing divides": ("llama", 4, {"vocab_size": 331, "intermediate_size": 93}),
    "more ranks than shares": ("llama", 4, {"intermediate_size": 12}),
    "output bias": ("llama", 2, {"attention_bias": True}),
    "tied": ("qwen2-tied", 2, {}),
    "norms on q and k": ("qwen3", 2, {}),
    "fused qkv with bias": ("qwen", 2, {}),
    "fused gate and up": ("chatglm", 4, {}),
    "alibi, padded": ("baichuan-13b", 4, {}),
    "one kv head": ("yayi", 4, {}),
    "a window": ("mistral", 4, {}),
    "w_pack": ("baichuan-7b", 4, {}),
    "normhead": ("baichuan2-13b", 4, {}),
}


def generate(directory: Path, comm: Comm | None = None) -> Generated:
    spec = load_spec(directory)
    decoder = load_decoder(directory, spec, OPS, torch.float32, comm=comm)
    prompt = torch.randint(3, 320, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    return PagedDecoder(decoder).greedy(prompt, 6, 25, alpha=prompt_alpha(spec, 60))


@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_with_one(case: str, tmp_path: Path) -> None:
    family, world_size, overrides = CASES[case]
    directory = make_tiny_model(tmp_path, family, **overrides)
    alone = generate(directory)
    results = ThreadRanks(world_size).run(lambda comm: generate(directory, comm))
    for result in results:
        assert torch.equal(result.logits, results[0].logits)
        assert result.logits.is_contiguous()
        torch.testing.assert_close(result.logits, alone.logits, atol=1e-4, rtol=0)
        assert result.ids == alone.ids


@pytest.mark.parametrize("overrides", [{}, {"vocab_size": 331}])
def test_the_likeliest_ids_need_no_gathered_logits(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    directory = make_tiny_model(tmp_path, "llama", **overrides)
    spec = load_spec(directory)

    def both(comm: Comm) -> tuple[torch.Tensor, torch.Tensor]:
        decoder = load_decoder(directory, spec, OPS, torch.float32, comm=comm)
        hidden = torch.randn(90, spec.hidden_size, generator=torch.Generator().manual_seed(2))
        return decoder.likeliest(hidden), decoder.logits(hidden)

    for ids, logits in ThreadRanks(4).run(both):
        assert ids.tolist() == logits[:, : spec.sampleable_ids].argmax(-1).tolist()
        assert int(ids.max()) >= spec.vocab_rows // 2


def test_normhead_commutes_with_cutting_the_vocabulary(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path, "baichuan2-7b")
    alone = generate(directory)
    result = ThreadRanks(2).run(lambda comm: generate(directory, comm))[1]
    torch.testing.assert_close(result.logits, alone.logits, atol=1e-4, rtol=0)
