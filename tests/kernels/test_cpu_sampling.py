"""Sampling and logprobs of the CPU kernels: the reference's choice for every row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtactors.kernels.native import CpuOperations
from mtactors.kernels.reference import OPERATIONS as TRUTH
from tests.kernels.test_reference_sampling import Row, batch_of

VOCAB, SAMPLEABLE = 203, 199
IDS = st.integers(0, VOCAB - 1)
TOKENS = st.lists(IDS, max_size=12)
ROWS = st.builds(
    Row,
    temperature=st.sampled_from([0.0, 1e-4, 0.3, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 40, SAMPLEABLE, 1000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9, 1.0]),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    presence=st.sampled_from([0.0, 0.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.4]),
    seed=st.integers(-(2**63), 2**63 - 1),
    choice=st.integers(0, 7),
    position=st.integers(0, 100_000),
    prompt=TOKENS,
    output=TOKENS,
    bias=st.dictionaries(IDS, st.sampled_from([-100.0, -1.0, 2.5]), max_size=4),
    banned=st.lists(IDS, max_size=4),
    allowed=st.none() | st.lists(st.integers(0, SAMPLEABLE - 1), min_size=5, unique=True),
)  # fmt: skip


def logits_of(rows: int, vocab: int, seed: int, spread: float, ties: bool) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=random) * spread
    return logits.round() if ties else logits


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROWS, min_size=1, max_size=6),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    ties=st.booleans(),
)
def test_chooses_what_the_reference_chooses(
    ops: CpuOperations, rows: list[Row], seed: int, spread: float, ties: bool
) -> None:
    logits = logits_of(len(rows), VOCAB, seed, spread, ties)
    before = logits.clone()
    batch = batch_of(rows, VOCAB, SAMPLEABLE)
    ours = ops.sample(logits, batch)
    assert torch.equal(logits, before)
    assert ours.tolist() == TRUTH.sample(logits, batch).tolist()


@pytest.mark.parametrize("row", [
    Row(temperature=1.0), Row(temperature=1.0, top_k=50), Row(temperature=1.0, top_p=0.9),
    Row(temperature=0.7, top_k=1000, top_p=0.95, min_p=0.01), Row(temperature=1.5, min_p=0.1),
    Row(temperature=2.0, top_p=0.9999), Row(),
])  # fmt: skip
def test_a_large_vocabulary_in_a_batch_and_alone(ops: CpuOperations, row: Row) -> None:
    count, vocab = 10, 50_001
    logits = logits_of(count, vocab, 7, 3.0, ties=False)
    rows = [replace(row, seed=seed, position=seed % 3) for seed in range(count)]
    batch = batch_of(rows, vocab, vocab)
    one_thread = ops.sample(logits, batch)
    ops.set_threads(2)
    assert torch.equal(ops.sample(logits, batch), one_thread)
    assert torch.equal(one_thread, TRUTH.sample(logits, batch))
    for index in (0, 9):
        alone = ops.sample(logits[index : index + 1], batch_of([rows[index]], vocab, vocab))
        assert int(alone) == int(one_thread[index])


def row_of(shape: str, vocab: int) -> Tensor:
    noise = logits_of(1, vocab, 5, 1.0, ties=False)[0]
    ids = torch.arange(vocab)
    if shape == "one above all":
        return torch.where(ids == vocab // 3, 20.0, noise)
    if shape == "a long tail":
        return noise * 0.3 - 1.1 * (ids + 2.0).log()
    if shape == "all equal":
        return torch.zeros(vocab)
    if shape == "few different":
        return (noise * 2).round()
    # As likely as a sample of every 32nd sixteen ids would have it, or much less.
    return torch.where(ids % 512 < 16, {"a lucky sample": 2.0, "an unlucky sample": -3.0}[shape], 0)


@pytest.mark.parametrize("shape", [
    "one above all", "a long tail", "all equal", "few different", "a lucky sample",
    "an unlucky sample",
])  # fmt: skip
@pytest.mark.parametrize("vocab", [65, 5_003, 20_480])
def test_the_nucleus_of_any_distribution(ops: CpuOperations, shape: str, vocab: int) -> None:
    limits = [(0, 0.9), (0, 0.5), (0, 0.0), (0, 0.9999), (0, 0.999999), (700, 0.9), (3, 0.7)]
    rows = [
        Row(temperature=temperature, top_k=k, top_p=p, seed=k, position=position, banned=[0, 7])
        for k, p in limits
        for position, temperature in enumerate([0.2, 1.0, 1.0, 5.0])
    ]
    logits = row_of(shape, vocab).expand(len(rows), vocab).contiguous()
    batch = batch_of(rows, vocab, vocab)
    assert ops.sample(logits, batch).tolist() == TRUTH.sample(logits, batch).tolist()


@pytest.mark.parametrize("words", [0, -1, 0x00F0_0000])
def test_a_mask_of_whole_words(ops: CpuOperations, words: int) -> None:
    vocab = 1_003
    rows = [Row(temperature=2.0, top_p=0.95, seed=seed) for seed in range(8)]
    logits = logits_of(len(rows), vocab, 2, 2.0, ties=False)
    mask = torch.full((len(rows), 32), words, dtype=torch.int32)
    mask[:, 30] = 0x0F0F_0000
    batch = replace(batch_of(rows, vocab, vocab), mask=mask)
    ids = ops.sample(logits, batch)
    assert ids.tolist() == TRUTH.sample(logits, batch).tolist()
    allowed = mask[torch.arange(len(rows)), ids // 32] >> (ids % 32) & 1
    assert allowed.all()


@pytest.mark.parametrize("ties", [False, True])
def test_logprobs_ranks_and_the_best(ops: CpuOperations, ties: bool) -> None:
    logits = logits_of(9, 3001, 3, 4.0, ties)
    ids = torch.randint(0, 2990, (9,), generator=torch.Generator().manual_seed(1)).int()
    for top_n in (0, 1, 20):
        ours = ops.logprobs(logits, ids, top_n, 2990)
        theirs = TRUTH.logprobs(logits, ids, top_n, 2990)
        assert torch.equal(ours.rank, theirs.rank)
        assert torch.equal(ours.top_ids, theirs.top_ids)
        # The reference sums 2990 exponentials in float32.
        torch.testing.assert_close(ours.logprob, theirs.logprob, atol=2e-5, rtol=0)
        torch.testing.assert_close(ours.top_logprobs, theirs.top_logprobs, atol=2e-5, rtol=0)


def test_logprobs_are_as_exact_as_float32(ops: CpuOperations) -> None:
    logits = logits_of(3, 50_001, 11, 3.0, ties=False)
    ids = logits.argmax(-1).int()
    exact = logits.double().log_softmax(-1).amax(-1).float()
    torch.testing.assert_close(ops.logprobs(logits, ids, 0, 50_001).logprob, exact)


def test_more_logprobs_than_there_are_ids(ops: CpuOperations) -> None:
    logits = logits_of(2, 7, 0, 1.0, ties=False)
    result = ops.logprobs(logits, torch.tensor([0, 1], dtype=torch.int32), 20, 5)
    assert result.top_ids.shape == (2, 5)
    assert sorted(result.top_ids[0].tolist()) == [0, 1, 2, 3, 4]
