from __future__ import annotations

import itertools

import numpy as np
import torch

from mtactors import kernels
from mtactors.kernels import SamplingBatch
from mtactors.wire.messages import NewRow, PromptLogprobs, SamplerSpec
from mtactors.worker.rows import Int64s, Rows
from mtactors.worker.sampler import Sampler
from tests.worker.plans import Plans, new_row, sampler

VOCAB, SAMPLEABLE = 50, 45


def seat(*specs: SamplerSpec, outputs: int = 0) -> tuple[Sampler, Rows, Int64s]:
    """Seat a row with prompt 3, 4, 5 and some output (10, 11, ...) for each spec."""
    rows = Rows(max_rows=8, max_len=64, block_size=16, num_blocks=8, max_tokens=64)
    ops = kernels.load("cpu", "reference")
    seated = Sampler(ops, torch.device("cpu"), 8, VOCAB, SAMPLEABLE)
    tokens = [3, 4, 5, *range(10, 10 + outputs)]
    planned: list[NewRow] = [
        new_row(slot, tokens, [slot], spec=spec, prompt_len=3) for slot, spec in enumerate(specs)
    ]
    chunks = rows.apply(Plans().next(*planned))
    for row in planned:
        seated.start(row.slot, row.choice, row.sampler)
    return seated, rows, chunks.slots


def batch_of(*specs: SamplerSpec, outputs: int = 0) -> SamplingBatch:
    seated, rows, slots = seat(*specs, outputs=outputs)
    return seated.batch(slots, rows)


def ragged(flat: torch.Tensor, offsets: torch.Tensor) -> list[list[int]]:
    ends = offsets.tolist()
    return [flat[a:b].tolist() for a, b in itertools.pairwise(ends)]


def test_plain_rows_carry_their_numbers_and_no_lists() -> None:
    batch = batch_of(
        sampler(temperature=0.5, top_k=7, top_p=0.75, min_p=0.125, seed=-(2**62), logprobs=3),
        sampler(),
        outputs=4,
    )
    assert batch.temperature.tolist() == [0.5, 0.0]
    assert batch.top_k.tolist() == [7, 0]
    assert batch.top_p.tolist() == [0.75, 1.0]
    assert batch.min_p.tolist() == [0.125, 0.0]
    assert batch.repetition_penalty.tolist() == [1.0, 1.0]
    assert batch.seeds.tolist() == [-(2**62), 0]
    assert batch.positions.tolist() == [4, 4]
    assert batch.num_logprobs.tolist() == [3, -1]
    assert batch.mask is None
    for flat, offsets in (
        (batch.prompt_tokens, batch.prompt_offsets),
        (batch.output_tokens, batch.output_offsets),
        (batch.bias_ids, batch.bias_offsets),
        (batch.banned_ids, batch.banned_offsets),
    ):
        assert ragged(flat, offsets) == [[], []]


def test_tensors_are_contiguous_and_of_the_tables_dtypes() -> None:
    batch = batch_of(sampler(), sampler(presence_penalty=1.0, allowed_ids=[1]))
    floats = (batch.temperature, batch.top_p, batch.min_p, batch.bias_values)
    integers = (batch.top_k, batch.choices, batch.positions, batch.output_offsets)
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    assert {tensor.dtype for tensor in integers} == {torch.int32}
    assert batch.seeds.dtype is torch.int64
    assert batch.mask is not None
    assert batch.mask.dtype is torch.int32
    assert all(tensor.is_contiguous() for tensor in (*floats, *integers, batch.mask))


def test_only_rows_with_penalties_carry_their_history() -> None:
    batch = batch_of(
        sampler(), sampler(frequency_penalty=0.5), sampler(repetition_penalty=1.5), outputs=2
    )
    assert ragged(batch.output_tokens, batch.output_offsets) == [[], [10, 11], [10, 11]]
    assert ragged(batch.prompt_tokens, batch.prompt_offsets) == [[], [], [3, 4, 5]]


def test_bias_of_several_rows() -> None:
    batch = batch_of(
        sampler(bias_ids=[9, 2], bias_values=[1.5, -3.0]),
        sampler(),
        sampler(bias_ids=[1], bias_values=[0.25]),
    )
    assert ragged(batch.bias_ids, batch.bias_offsets) == [[9, 2], [], [1]]
    assert batch.bias_values.tolist() == [1.5, -3.0, 0.25]


def test_stop_ids_are_banned_below_min_tokens_only() -> None:
    spec = sampler(min_tokens=2, stop_ids=[7, 1])
    below, reached = batch_of(spec, outputs=1), batch_of(spec, outputs=2)
    assert ragged(below.banned_ids, below.banned_offsets) == [[1, 7]]
    assert ragged(reached.banned_ids, reached.banned_offsets) == [[]]


def test_stop_ids_without_min_tokens_are_nobodys_affair() -> None:
    batch = batch_of(sampler(stop_ids=[7]))
    assert ragged(batch.banned_ids, batch.banned_offsets) == [[]]


def test_min_tokens_never_bans_all_that_is_allowed() -> None:
    batch = batch_of(sampler(min_tokens=2, stop_ids=[7, 8], allowed_ids=[7]))
    assert ragged(batch.banned_ids, batch.banned_offsets) == [[]]


def test_allowed_ids_become_bits_and_other_rows_allow_all() -> None:
    batch = batch_of(sampler(), sampler(allowed_ids=[0, 31, 33, SAMPLEABLE, 10**6]))
    assert batch.mask is not None
    assert batch.mask[0].tolist() == [-1, -1]
    assert batch.mask[1].tolist() == [1 - 2**31, 2]


def test_bad_words_are_banned_at_their_last_id() -> None:
    words = sampler(bad_ids=[7, 10, 11, 8, 11, 9, 12, 6], bad_lengths=[1, 3, 2, 2])
    for outputs, banned in ((0, [7]), (1, [7]), (2, [7, 8, 9]), (3, [6, 7])):
        batch = batch_of(words, sampler(), outputs=outputs)
        assert ragged(batch.banned_ids, batch.banned_offsets) == [banned, []], outputs
    both = sampler(bad_ids=[7], bad_lengths=[1], min_tokens=2, stop_ids=[2, 7])
    batch = batch_of(both, outputs=1)
    assert ragged(batch.banned_ids, batch.banned_offsets) == [[2, 7]]


def test_bad_words_never_ban_all_that_is_allowed() -> None:
    batch = batch_of(sampler(bad_ids=[7], bad_lengths=[1], allowed_ids=[7]))
    assert ragged(batch.banned_ids, batch.banned_offsets) == [[]]
    batch = batch_of(sampler(bad_ids=[7], bad_lengths=[1], allowed_ids=[7, 9]))
    assert ragged(batch.banned_ids, batch.banned_offsets) == [[7]]


def test_a_reused_slot_keeps_nothing_of_the_row_before() -> None:
    seated, rows, slots = seat(sampler(allowed_ids=[1], bias_ids=[2], bias_values=[1.0]))
    seated.start(0, 5, sampler())
    batch = seated.batch(slots, rows)
    assert batch.mask is None
    assert batch.bias_ids.numel() == 0
    assert batch.choices.tolist() == [5]


def test_sampling_obeys_what_the_specs_say() -> None:
    seated, rows, slots = seat(
        sampler(),
        sampler(allowed_ids=[12, 13]),
        sampler(bias_ids=[20], bias_values=[100.0]),
        sampler(min_tokens=1, stop_ids=[44]),
        sampler(presence_penalty=2.0),
        outputs=0,
    )
    logits = torch.zeros(5, VOCAB)
    logits[:, 44], logits[:, 43] = 3.0, 2.0
    logits[:, SAMPLEABLE:] = 9.0
    logits[1, 13] = 1.0
    ids = seated.sample(logits, slots, rows)
    assert ids.tolist() == [44, 13, 20, 43, 44]


def test_logprobs_are_told_for_the_rows_that_want_them() -> None:
    seated, _, slots = seat(sampler(logprobs=2), sampler(), sampler(logprobs=0))
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, VOCAB, generator=generator)
    ids = torch.tensor([5, 6, 7], dtype=torch.int32)
    first, last = seated.logprobs(logits, ids, np.array([4, 5, 6]), slots)
    truth = logits[:, :SAMPLEABLE].log_softmax(-1)
    order = truth[0].argsort(descending=True).tolist()
    assert (first.row, last.row) == (4, 6)
    assert first.top_ids == order[:2]
    assert first.rank == order.index(5) + 1
    assert abs(first.logprob - float(truth[0, 5])) < 1e-5
    assert last.top_ids == []
    assert last.top_logprobs == []
    assert abs(last.logprob - float(truth[2, 7])) < 1e-5


def test_no_logprobs_wanted_costs_nothing() -> None:
    seated, _, slots = seat(sampler(), sampler())
    ids = torch.zeros(2, dtype=torch.int32)
    assert seated.logprobs(torch.zeros(2, VOCAB), ids, np.arange(2), slots) == []


def test_prompt_logprobs_are_appended_piece_by_piece() -> None:
    seated, _, _ = seat(sampler())
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(2))
    targets = np.array([1, 2, 3, 4, 44], np.int32)
    whole, pieces = (PromptLogprobs(0, 1, [], [], [], []) for _ in range(2))
    seated.add_prompt_logprobs(whole, logits, targets, 3)
    seated.add_prompt_logprobs(pieces, logits[:2], targets[:2], 3)
    seated.add_prompt_logprobs(pieces, logits[2:], targets[2:], 3)
    assert pieces == whole
    assert (len(whole.logprobs), len(whole.ranks), len(whole.top_ids)) == (5, 5, 15)
    truth = logits[:, :SAMPLEABLE].log_softmax(-1)
    assert abs(whole.logprobs[4] - float(truth[4, 44])) < 1e-5


def test_only_rows_that_want_the_likeliest_id_and_no_more_are_greedy() -> None:
    seated, _, slots = seat(
        sampler(),
        sampler(top_k=5, seed=7),
        sampler(temperature=0.1),
        sampler(logprobs=0),
        sampler(frequency_penalty=0.5),
        sampler(bias_ids=[3], bias_values=[1.0]),
        sampler(min_tokens=2, stop_ids=[1]),
    )
    assert [seated.greedy(slots[row : row + 1]) for row in range(7)] == [True, True, *[False] * 5]
    assert seated.greedy(slots[:2])
    assert not seated.greedy(slots[:3])
    first = slots[:1]
    assert seated.greedy(first)
    assert seated.greedy(first)
    seated.start(0, 0, sampler(temperature=0.5))
    assert not seated.greedy(first)
    # A rank that follows no grammars itself says the same as the one that does.
    seated.start(0, 0, sampler(), grammar="{}")
    assert not seated.greedy(slots[:1])
    seated.start(0, 0, sampler())
    assert seated.greedy(slots[:1])
