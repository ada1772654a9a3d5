"""The whole forward pass as one native call gives the bits of the path through the layers, and
the numerics contract holds for it: a row's logits do not depend on what else is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtactors.checkpoint.loader import load_decoder
from mtactors.families import load_spec
from mtactors.kernels import AttentionBatch, native
from mtactors.models.decoder import Decoder
from tests.paged_decoder import PagedDecoder, Row
from tests.tiny_models import make_tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen": {},
    "chatglm": {},
    "baichuan-7b": {},
    "baichuan-13b": {},
    "baichuan2-13b": {},
    "yayi": {},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PROMPT = [3 + (7 * index * index) % 250 for index in range(75)]


def load(directory: Path, dtype: torch.dtype, isa: str) -> Decoder:
    ops = native.CpuOperations(isa)
    return load_decoder(directory, load_spec(directory), ops, dtype, max_positions=512)


def bound(decoder: Decoder) -> PagedDecoder:
    paged = PagedDecoder(decoder)
    decoder.bind(paged.caches)
    assert decoder._whole is not None
    return paged


def mixed_run(paged: PagedDecoder) -> Tensor:
    """A prefill in odd chunks beside decode rows; all logits."""
    first, second = Row(), Row()
    logits = paged.step([(first, PROMPT[:17])])
    logits += paged.step([(first, PROMPT[17:18]), (second, PROMPT[:40])])
    logits += paged.step([(first, PROMPT[18:19]), (second, PROMPT[40:75])])
    logits += paged.step([(second, PROMPT[:1]), (first, PROMPT[19:20])])
    return torch.cat(logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_gives_the_bits_of_the_layers(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    directory = make_tiny_model(tmp_path, family, **FAMILIES[family])
    decoder = load(directory, dtype, native.info().isa)
    by_layers = mixed_run(PagedDecoder(decoder))
    in_one_call = mixed_run(bound(decoder))
    assert torch.equal(by_layers, in_one_call)


@pytest.mark.parametrize("family", FAMILIES)
def test_next_ids_are_the_likeliest_of_a_pass(family: str, tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path, family, **FAMILIES[family])
    decoder = load(directory, torch.bfloat16, native.info().isa)
    paged = bound(decoder)
    assert decoder.in_one_go(paged.caches)
    assert not decoder.in_one_go(list(paged.caches))
    blocks = torch.tensor([[5], [9], [2]], dtype=torch.int32)
    batch = AttentionBatch(
        query_start=torch.arange(4, dtype=torch.int32),
        seq_lens=torch.ones(3, dtype=torch.int32),
        block_tables=blocks,
        slot_mapping=blocks.flatten().long() * paged.block_size,
    )
    ids = torch.tensor([3, 40, 77], dtype=torch.int32)
    positions = torch.zeros(3, dtype=torch.int32)
    out = torch.full((3,), -1, dtype=torch.int32)
    for _ in range(paged.block_size):  # the same tensors, other contents
        decoder.next_ids(ids, positions, batch, None, out)
        hidden = decoder.forward(ids, positions, batch, paged.caches)
        assert torch.equal(out, decoder.likeliest(hidden))
        ids.copy_(out)
        for numbers in (positions, batch.seq_lens, batch.slot_mapping):
            numbers += 1


def test_next_ids_need_room_of_the_right_size(tmp_path: Path) -> None:
    decoder = load(make_tiny_model(tmp_path, "llama"), torch.float32, native.info().isa)
    bound(decoder)
    ids, one = torch.zeros(2, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    batch = AttentionBatch(torch.arange(3).int(), ids + 1, ids.view(2, 1), torch.arange(2))
    for out in (one, ids.long()):
        with pytest.raises(ValueError, match=r"ids below|contiguous"):
            decoder.next_ids(ids, ids, batch, None, out)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("contract"), "llama", num_hidden_layers=3)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("isa", native.info().runnable)
class TestContract:
    """Bit-equal logits, on every instruction set that this machine runs."""

    def test_the_batch_does_not_matter(self, model: Path, dtype: torch.dtype, isa: str) -> None:
        decoder = load(model, dtype, isa)
        paged = bound(decoder)
        row = Row()
        paged.prefill(row, PROMPT, 75)
        alone = paged.step([(row, [9])])[0]
        for size in (2, 7, 32):
            paged = bound(decoder)
            rows = [Row() for _ in range(size)]
            for number, other in enumerate(rows):
                paged.prefill(
                    other, PROMPT if number == size // 2 else PROMPT[: number % 5 + 1], 75
                )
            together = paged.step([(other, [9]) for other in rows])
            assert torch.equal(together[size // 2], alone), size

    def test_chunks_do_not_matter(self, model: Path, dtype: torch.dtype, isa: str) -> None:
        decoder = load(model, dtype, isa)
        whole = bound(decoder).prefill(Row(), PROMPT, len(PROMPT))
        for chunk in (1, 17, 64):  # 1 is token-by-token decode
            assert torch.equal(bound(decoder).prefill(Row(), PROMPT, chunk), whole), chunk

    def test_threads_do_not_matter(self, model: Path, dtype: torch.dtype, isa: str) -> None:
        ops = native.CpuOperations(isa)
        decoder = load_decoder(model, load_spec(model), ops, dtype, max_positions=512)
        try:
            ops.set_threads(1)
            one = mixed_run(bound(decoder))
            ops.set_threads(2)
            two = mixed_run(bound(decoder))
        finally:
            ops.set_threads(1)
        assert torch.equal(one, two)
