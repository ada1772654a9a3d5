"""Sampling and logprobs of the device kernels: the reference's choice for every row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtactors.errors import ConfigError
from mtactors.kernels import SamplingBatch
from mtactors.kernels.device import DeviceOperations
from mtactors.kernels.reference import OPERATIONS as TRUTH
from mtactors.kernels.reference_sampling import uniform
from tests.kernels.musa.emulated import Emulator
from tests.kernels.test_cpu_sampling import ROWS, SAMPLEABLE, VOCAB, logits_of
from tests.kernels.test_reference_sampling import Row, batch_of

INFINITY = math.inf
# One of each kind of row, with and without each limit.
KINDS = [
    Row(),
    Row(temperature=1.0),
    Row(temperature=1.0, top_k=50),
    Row(temperature=1.0, top_p=0.9),
    Row(temperature=0.7, top_k=1000, top_p=0.95, min_p=0.01),
    Row(temperature=1.5, min_p=0.1),
    Row(temperature=2.0, top_p=0.9999),
    Row(temperature=1e6, top_p=0.5),
    Row(temperature=0.8, repetition=1.2, frequency=0.1, prompt=[3, 3, 5], output=[5, 5, 6]),
    Row(temperature=1.0, top_p=0.8, bias={0: 4.0, 2: -9.0}, banned=[1], allowed=[0, 1, 2, 5, 6]),
]


def kinds(count: int) -> list[Row]:
    """Return `count` rows of all kinds with different random numbers."""
    return [
        replace(KINDS[index % len(KINDS)], seed=index * 7919 - 3, position=index, choice=index % 3)
        for index in range(count)
    ]


def guarded(emulator: Emulator, batch: SamplingBatch) -> SamplingBatch:
    """Return the batch in memory that ends where its tensors do."""
    tensors: dict[str, Any] = {
        name: emulator.guarded(value)
        for name in batch.__dataclass_fields__
        if isinstance(value := getattr(batch, name), Tensor)
    }
    return replace(batch, **tensors)


def number(seed: int) -> float:
    """Return u of a seed at position 0, choice 0."""
    zero = torch.zeros(1, dtype=torch.int32)
    return float(uniform(torch.tensor([seed]), zero, zero))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROWS, min_size=1, max_size=8),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    ties=st.booleans(),
)
def test_chooses_what_the_reference_chooses(
    ops: DeviceOperations, rows: list[Row], seed: int, spread: float, ties: bool
) -> None:
    logits = logits_of(len(rows), VOCAB, seed, spread, ties)
    before = logits.clone()
    batch = batch_of(rows, VOCAB, SAMPLEABLE)
    ours = ops.sample(logits, batch)
    assert torch.equal(logits, before)
    assert ours.tolist() == TRUTH.sample(logits, batch).tolist()


# 4096 ids make a chunk, 16 a thread's part of one.
@pytest.mark.parametrize("vocab", [1, 7, 15, 17, 257, 1000, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("ties", [False, True])
def test_odd_vocabularies(ops: DeviceOperations, vocab: int, ties: bool) -> None:
    count = min(vocab, 8)
    logits = logits_of(count, vocab, vocab, 3.0, ties)
    rows = [row for row in kinds(len(KINDS)) if not row.banned or vocab > 6][-count:]
    batch = batch_of(rows, vocab, vocab)
    assert ops.sample(logits, batch).tolist() == TRUTH.sample(logits, batch).tolist()


@pytest.mark.parametrize("row", KINDS)
def test_a_large_vocabulary_in_a_batch_and_alone(ops: DeviceOperations, row: Row) -> None:
    count, vocab = 3, 50_001
    logits = logits_of(count, vocab, 7, 3.0, ties=False)
    rows = [replace(row, seed=seed, position=seed % 3) for seed in range(count)]
    batch = batch_of(rows, vocab, vocab)
    ours = ops.sample(logits, batch)
    assert ours.tolist() == TRUTH.sample(logits, batch).tolist()
    assert int(ops.sample(logits[2:], batch_of(rows[2:], vocab, vocab))) == int(ours[2])


def test_more_rows_than_share_the_scratch(ops: DeviceOperations) -> None:
    logits = logits_of(75, 331, 4, 2.0, ties=False)
    rows = kinds(75)
    batch = batch_of(rows, 331, 331)
    assert ops.sample(logits, batch).tolist() == TRUTH.sample(logits, batch).tolist()


@pytest.mark.parametrize("warp", [32, 128])
def test_neither_order_nor_warps_matter_and_nothing_lies_outside(
    ops: DeviceOperations, emulator: Emulator, warp: int
) -> None:
    vocab = 4099
    count = len(KINDS)
    logits = emulator.guarded(logits_of(count, vocab, 1, 2.0, ties=True))
    batch = guarded(emulator, batch_of(kinds(count), vocab, vocab - 2))
    expected = TRUTH.sample(logits, batch)
    for seed in (0, 1, 77):
        with emulator.running(seed, warp, guard=True):
            assert torch.equal(ops.sample(logits, batch), expected)
            found = ops.logprobs(logits, emulator.guarded(expected), 20, vocab - 2)
        assert torch.equal(found.top_ids, TRUTH.logprobs(logits, expected, 20, vocab - 2).top_ids)


def test_long_lists_and_ids_named_twice(ops: DeviceOperations) -> None:
    vocab = 999
    random = torch.Generator().manual_seed(5)
    prompt = torch.randint(0, vocab, (3000,), generator=random).tolist()
    output = torch.randint(0, 40, (1000,), generator=random).tolist()
    rows = [
        Row(temperature=1.0, repetition=1.1, frequency=0.01, presence=0.3, seed=seed,
            prompt=prompt, output=output, banned=list(range(300, 700)))
        for seed in range(4)
    ]  # fmt: skip
    logits = logits_of(4, vocab, 6, 2.0, ties=False)
    batch = batch_of(rows, vocab, vocab)
    assert ops.sample(logits, batch).tolist() == TRUTH.sample(logits, batch).tolist()
    # Three biases of one id, added in the order of the list: 1e8 - 1e8 + 3 is 3, not 0.
    twice = replace(
        batch_of([Row()], vocab, vocab),
        bias_ids=torch.tensor([8, 5, 8, 8], dtype=torch.int32),
        bias_values=torch.tensor([1e8, 2.0, -1e8, 3.0]),
        bias_offsets=torch.tensor([0, 4], dtype=torch.int32),
    )
    assert ops.sample(torch.zeros(1, vocab), twice).tolist() == [8]
    assert TRUTH.sample(torch.zeros(1, vocab), twice).tolist() == [8]


def test_the_cut_of_top_p_among_equal_logits_keeps_low_ids(ops: DeviceOperations) -> None:
    # 5 is likeliest, then 4000 equal ones: a hundredth of them and 5 remain.
    logits = torch.full((64, 6000), -50.0)
    logits[:, 1000:5000] = 1.0
    logits[:, 5] = 1.5
    total = math.exp(0.5) + 4000
    top_p = (math.exp(0.5) + 40) / total - 1e-6
    rows = [Row(temperature=1.0, top_p=top_p, seed=seed) for seed in range(64)]
    ids = ops.sample(logits, batch_of(rows, 6000, 6000))
    assert ids.tolist() == TRUTH.sample(logits, batch_of(rows, 6000, 6000)).tolist()
    assert set(ids.tolist()) <= {5, *range(1000, 1040)}
    assert ids.max() > 1030


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30])
def test_logits_and_temperatures_of_any_size(ops: DeviceOperations, scale: float) -> None:
    logits = logits_of(8, 500, 2, scale, ties=False)
    temperature = float(torch.tensor(scale))
    rows = [
        Row(temperature=temperature, seed=seed, top_p=0.9 if seed % 2 else 1.0) for seed in range(8)
    ]
    batch = batch_of(rows, 500, 500)
    ours = ops.sample(logits, batch)
    assert ours.tolist() == TRUTH.sample(logits, batch).tolist()
    assert len(set(ours.tolist())) > 4


def test_draws_are_right_to_the_last_bits_of_a_weight(ops: DeviceOperations) -> None:
    # Two tokens: the second, with weight exp(x / temperature), is drawn from 1 / u - 1 on. Pairs
    # of floats are looked for that come as near to that as 2^-40 on either side.
    seed = next(seed for seed in range(99) if 0.6 < number(seed) < 0.9)
    edge = math.log(1 / number(seed) - 1)
    random = torch.Generator().manual_seed(0)
    temperatures = torch.rand(2_000_000, generator=random) + 0.5
    logits = (temperatures.double() * edge).float()
    apart = logits.double() / temperatures.double() - edge
    near = ((apart.abs() > 2**-41) & (apart.abs() < 2**-38)).nonzero().flatten()
    assert len(near) > 20
    rows = [Row(temperature=float(temperatures[index]), seed=seed) for index in near]
    pairs = torch.stack([torch.zeros(len(near)), logits[near]], dim=1)
    ids = ops.sample(pairs, batch_of(rows, 2, 2))
    assert ids.tolist() == (apart[near] > 0).int().tolist()


def test_rows_that_leave_nothing_to_draw(ops: DeviceOperations) -> None:
    logits = torch.full((4, 40), -INFINITY)
    logits[1, 7] = 0.0
    logits[2] = math.nan
    logits[3] = 1.0
    logits[3, ::2] = math.nan
    rows = [Row(temperature=1.0), Row(temperature=1.0, top_p=0.5), Row(temperature=1.0), Row()]
    assert ops.sample(logits, batch_of(rows, 40, 40)).tolist() == [0, 7, 0, 1]


def test_a_vocabulary_beyond_what_is_exact_is_refused(ops: DeviceOperations) -> None:
    vocab = 2**20 + 1
    with pytest.raises(ConfigError, match="no kernel for such shapes"):
        ops.sample(torch.zeros(1, vocab), batch_of([Row()], vocab, vocab))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("vocab", "sampleable", "top_n"),
    [(1, 1, 1), (7, 5, 20), (300, 300, 300), (3001, 2990, 0), (3001, 2990, 1), (3001, 2990, 20),
     (3001, 2990, 300), (3001, 2990, 2500), (50_001, 50_001, 20)],
)  # fmt: skip
def test_logprobs_ranks_and_the_best(
    ops: DeviceOperations, vocab: int, sampleable: int, top_n: int, ties: bool
) -> None:
    for spread in (0.1, 4.0):
        logits = logits_of(3, vocab, 3, spread, ties)
        ids = torch.randint(0, sampleable, (3,), generator=torch.Generator().manual_seed(1)).int()
        ours = ops.logprobs(logits, ids, top_n, sampleable)
        theirs = TRUTH.logprobs(logits, ids, top_n, sampleable)
        assert torch.equal(ours.rank, theirs.rank)
        assert torch.equal(ours.top_ids, theirs.top_ids)
        # Logits differ by less than 40: half a unit in the last place is 2e-6, twice.
        total = logits[:, :sampleable].double().logsumexp(-1, keepdim=True)
        for values, at in (
            (ours.logprob[:, None], ids[:, None]),
            (ours.top_logprobs, ours.top_ids),
        ):
            exact = logits.double().gather(1, at.long()) - total
            torch.testing.assert_close(values.double(), exact, atol=4e-6, rtol=0)


def test_logprobs_of_what_is_almost_certain(ops: DeviceOperations) -> None:
    logits = torch.zeros(1, 100)
    logits[0, 3] = 20.0
    found = ops.logprobs(logits, torch.tensor([3], dtype=torch.int32), 1, 100)
    exact = -math.log1p(99 * math.exp(-20.0))
    assert found.logprob.item() == pytest.approx(exact, rel=1e-4)
