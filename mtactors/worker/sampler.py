"""Turns the sampler specs of rows into a `SamplingBatch`, and logits into token ids.

Each slot's numbers lie in arrays, so rows without lists (bias, stop ids, penalties) cost a few
gathers a step. The arithmetic is in `Operations.sample` and `Operations.logprobs`. Knows nothing
of requests, blocks or the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtactors.errors import WireError
from mtactors.kernels import Operations, SamplingBatch
from mtactors.wire.messages import PromptLogprobs, SamplerSpec, TokenLogprobs
from mtactors.worker.grammar import Grammars
from mtactors.worker.rows import Int32s, Int64s, Rows, id_bits

_EMPTY = np.empty(0, np.int32)
_MOST = (1 << 31) - 1

# Columns of the float and int tables, in the order of their arrays below.
_FLOATS = 6  # temperature, top_p, min_p, repetition, presence, frequency
_INTS = 3  # top_k, choice, logprobs


@runtime_checkable
class _Digesting(Protocol):
    """Operations with a faster way to the numbers of a digest."""

    def digest(self, logits: Tensor, ids: Tensor, sampleable: int) -> Tensor:
        """Return raw logit, maximum and logsumexp of each row: (R, 3) float32 on the host."""


@dataclass(frozen=True, slots=True)
class _Lists:
    """What only some rows have. `min_tokens` bans `stop_ids` while fewer output tokens exist.

    `grammar`: the row follows one, which `Grammars` holds. `bad_words`: the last id of each is
    banned after the ids before it.
    """

    min_tokens: int
    stop_ids: Int32s
    bias_ids: Int32s
    bias_values: npt.NDArray[np.float32]
    mask: Int32s | None
    repeats: bool  # repetition penalty: prompt and output count
    counts: bool  # any penalty: the output counts
    grammar: bool
    bad_words: tuple[Int32s, ...] = ()


class Sampler:
    """Holds the sampler specs of all slots and samples for those that a step names.

    Args:
        vocab_rows: width of the logits.
        sampleable: ids from here on are never sampled.
        grammars: of the slots' rows; without them no row may have one.
    """

    def __init__(
        self,
        ops: Operations,
        device: torch.device,
        max_rows: int,
        vocab_rows: int,
        sampleable: int,
        grammars: Grammars | None = None,
    ) -> None:
        self._ops = ops
        self._grammars = grammars
        self._device = device
        self._mask_words = -(-vocab_rows // 32)
        self._sampleable = sampleable
        self._floats = np.zeros((_FLOATS, max_rows), np.float32)
        self._ints = np.zeros((_INTS, max_rows), np.int32)
        self._seeds = np.zeros(max_rows, np.int64)
        self._has_lists = np.zeros(max_rows, np.bool_)
        self._guided = np.zeros(max_rows, np.bool_)
        self._lists: dict[int, _Lists] = {}
        self._asked = np.empty(0, np.int64)  # by `greedy`, and what it said
        self._greedy = True

    def warm(self) -> None:
        """Begin to read what the first grammar would have to wait for. May be repeated."""
        if self._grammars is not None:
            self._grammars.warm()

    def start(
        self, slot: int, choice: int, spec: SamplerSpec, grammar: str = "", name: str = ""
    ) -> None:
        """Take over the spec, and the grammar if there is one, of a row that starts in a slot.

        Args:
            name: the request's id, for the log.

        Raises:
            WireError: the spec has numbers that do not fit together, or no table.
        """
        _check(spec, choice, self._sampleable)
        self._asked = np.empty(0, np.int64)
        if self._grammars is not None:
            self._grammars.start(slot, name, grammar)
        self._floats[:, slot] = (
            spec.temperature,
            spec.top_p,
            spec.min_p,
            spec.repetition_penalty,
            spec.presence_penalty,
            spec.frequency_penalty,
        )
        self._ints[:, slot] = (spec.top_k, choice, spec.logprobs)
        self._seeds[slot] = spec.seed
        lists = self._read_lists(spec, bool(grammar) and self._grammars is not None)
        self._has_lists[slot] = lists is not None
        self._guided[slot] = bool(grammar)
        if lists is None:
            self._lists.pop(slot, None)
        else:
            self._lists[slot] = lists

    def greedy(self, slots: Int64s) -> bool:
        """Return whether nothing but the likeliest id is asked for; every rank says the same.

        Args:
            slots: nobody writes to it: the answer for the same array is known until a row starts.
        """
        if slots is not self._asked:
            self._asked = slots
            self._greedy = not (
                self._has_lists[slots].any()
                or self._guided[slots].any()
                or (self._floats[0, slots] > 0).any()
                or (self._ints[2, slots] >= 0).any()
            )
        return self._greedy

    def sample(self, logits: Tensor, slots: Int64s, rows: Rows) -> Tensor:
        """Return the next id of each slot, (R,) int32.

        Args:
            logits: (R, vocab_rows) float32, row r belongs to slots[r].
        """
        return self._ops.sample(logits, self.batch(slots, rows))

    def batch(self, slots: Int64s, rows: Rows) -> SamplingBatch:
        """Return how each of `slots` is sampled at its present output position."""
        positions = (rows.num_tokens[slots] - rows.prompt_len[slots]).astype(np.int32)
        # take, not [:, slots]: that may return the transposed layout, and columns apart.
        floats = self._tensor(self._floats.take(slots, axis=1)).unbind(0)
        top_k, choices, num_logprobs = self._tensor(self._ints.take(slots, axis=1)).unbind(0)
        prompts, outputs, biases, banned, values, mask = self._gather_lists(slots, positions, rows)
        return SamplingBatch(
            temperature=floats[0],
            top_k=top_k,
            top_p=floats[1],
            min_p=floats[2],
            repetition_penalty=floats[3],
            presence_penalty=floats[4],
            frequency_penalty=floats[5],
            seeds=self._tensor(self._seeds[slots]),
            choices=choices,
            positions=self._tensor(positions),
            num_logprobs=num_logprobs,
            prompt_tokens=prompts[0],
            prompt_offsets=prompts[1],
            output_tokens=outputs[0],
            output_offsets=outputs[1],
            bias_ids=biases[0],
            bias_values=values,
            bias_offsets=biases[1],
            banned_ids=banned[0],
            banned_offsets=banned[1],
            mask=mask,
            sampleable=self._sampleable,
        )

    def logprobs(
        self, logits: Tensor, ids: Tensor, chunk_rows: Int64s, slots: Int64s
    ) -> list[TokenLogprobs]:
        """Return the logprobs of sampled tokens for the rows that want them.

        Args:
            logits: (R, vocab_rows) float32. `ids`: (R,) int32, sampled from them.
            chunk_rows: (R,) index of each in the plan's rows.
        """
        wanted = self._ints[2, slots]
        chosen = np.flatnonzero(wanted >= 0)
        if not chosen.size:
            return []
        index = torch.from_numpy(chosen).to(self._device)
        most = int(wanted.max())
        found = self._ops.logprobs(logits[index], ids[index], most, self._sampleable)
        values, ranks = found.logprob.tolist(), found.rank.tolist()
        top_ids, top_values = found.top_ids.tolist(), found.top_logprobs.tolist()
        return [
            TokenLogprobs(
                row=int(chunk_rows[at]),
                logprob=values[j],
                rank=ranks[j],
                top_ids=top_ids[j][: wanted[at]],
                top_logprobs=top_values[j][: wanted[at]],
            )
            for j, at in enumerate(chosen)
        ]

    def digests(self, logits: Tensor, ids: Tensor) -> bytes:
        """Return the digests of sampled tokens, as `StepResult` has them.

        Args:
            logits: (R, vocab_rows) float32. `ids`: (R,) int32, sampled from them.
        """
        if isinstance(self._ops, _Digesting):
            values = self._ops.digest(logits, ids, self._sampleable).numpy()
        else:
            chosen = logits.gather(1, ids.long().unsqueeze(1)).squeeze(1)
            logprob = self._ops.logprobs(logits, ids, 0, self._sampleable).logprob
            largest = logits[:, : self._sampleable].amax(-1)
            values = torch.stack((chosen, largest, chosen - logprob), 1).cpu().numpy()
        return values.astype("<f4", copy=False).tobytes()

    def add_prompt_logprobs(
        self, result: PromptLogprobs, logits: Tensor, targets: Int32s, top_n: int
    ) -> None:
        """Append to `result` the logprobs of given tokens.

        Args:
            logits: (R, vocab_rows) float32, row r predicts targets[r].
        """
        ids = torch.from_numpy(targets).to(self._device)
        found = self._ops.logprobs(logits, ids, top_n, self._sampleable)
        result.logprobs.extend(found.logprob.tolist())
        result.ranks.extend(found.rank.tolist())
        result.top_ids.extend(found.top_ids.flatten().tolist())
        result.top_logprobs.extend(found.top_logprobs.flatten().tolist())

    def _read_lists(self, spec: SamplerSpec, grammar: bool) -> _Lists | None:
        repeats = spec.repetition_penalty != 1.0
        counts = repeats or spec.presence_penalty != 0.0 or spec.frequency_penalty != 0.0
        stops = set(spec.stop_ids) if spec.min_tokens else set()
        if spec.allowed_ids and stops.issuperset(spec.allowed_ids):
            stops = set()  # nothing would be left to sample
        bad_words = _split(spec.bad_ids, spec.bad_lengths)
        if not (stops or spec.bias_ids or spec.allowed_ids or counts or grammar or bad_words):
            return None
        return _Lists(
            min_tokens=spec.min_tokens,
            stop_ids=np.array(sorted(stops), np.int32),
            bias_ids=np.array(spec.bias_ids, np.int32),
            bias_values=np.array(spec.bias_values, np.float32),
            mask=self._mask(spec.allowed_ids) if spec.allowed_ids else None,
            repeats=repeats,
            counts=counts,
            grammar=grammar,
            bad_words=bad_words,
        )

    def _mask(self, allowed: list[int]) -> Int32s:
        """Return the bit set of `allowed` as int32 words, lowest id in the lowest bit."""
        return id_bits(
            [token for token in allowed if 0 <= token < self._sampleable], self._mask_words
        )

    def _gather_lists(
        self, slots: Int64s, positions: Int32s, rows: Rows
    ) -> tuple[_Ragged, _Ragged, _Ragged, _Ragged, Tensor, Tensor | None]:
        """Return prompts, outputs, bias ids, banned ids (ragged), bias values and mask."""
        count = len(slots)
        prompts: dict[int, Int32s] = {}
        outputs: dict[int, Int32s] = {}
        biases: dict[int, Int32s] = {}
        banned: dict[int, Int32s] = {}
        values = [np.empty(0, np.float32)]
        mask: Int32s | None = None
        guided: list[tuple[int, int]] = []
        for row in np.flatnonzero(self._has_lists[slots]).tolist():
            slot = int(slots[row])
            lists = self._lists[slot]
            if lists.repeats:
                prompts[row] = rows.prompt(slot)
            if lists.counts:
                outputs[row] = rows.output(slot)
            if lists.bias_ids.size:
                biases[row] = lists.bias_ids
                values.append(lists.bias_values)
            if positions[row] < lists.min_tokens:
                banned[row] = lists.stop_ids
            if lists.bad_words:
                _ban_words(banned, row, lists.bad_words, rows.output(slot))
            if mask is None and (lists.grammar or lists.mask is not None):
                mask = np.full((count, self._mask_words), -1, np.int32)
            if mask is not None and lists.mask is not None:
                mask[row] = lists.mask
                if row in banned:
                    self._lift(mask, row, banned)
            if lists.grammar:
                guided.append((row, slot))
        if mask is not None and guided:
            self._follow_grammars(mask, guided, banned, rows)
        return (
            self._ragged(prompts, count),
            self._ragged(outputs, count),
            self._ragged(biases, count),
            self._ragged(banned, count),
            self._tensor(np.concatenate(values)),
            None if mask is None else self._tensor(mask),
        )

    def _follow_grammars(
        self, mask: Int32s, guided: list[tuple[int, int]], banned: dict[int, Int32s], rows: Rows
    ) -> None:
        """Write the rows' masks, and lift bans that would leave nothing to sample."""
        assert self._grammars is not None
        self._grammars.fill(mask, guided, rows)
        for row, _ in guided:
            if row in banned:
                self._lift(mask, row, banned)

    def _lift(self, mask: Int32s, row: int, banned: dict[int, Int32s]) -> None:
        """Drop a row's bans if they would leave nothing to sample."""
        if not (mask[row] & ~id_bits(banned[row], self._mask_words)).any():
            del banned[row]

    def _ragged(self, lists: dict[int, Int32s], count: int) -> _Ragged:
        """Return (flat, offsets (count+1,)) int32 of the rows' lists; rows not named are empty."""
        offsets = np.zeros(count + 1, np.int32)
        if not lists:
            return self._tensor(_EMPTY), self._tensor(offsets)
        for row, entries in lists.items():
            offsets[row + 1] = len(entries)
        return (
            self._tensor(np.concatenate(list(lists.values()))),
            self._tensor(np.cumsum(offsets, dtype=np.int32)),
        )

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _check(spec: SamplerSpec, choice: int, sampleable: int) -> None:
    """Refuse what the front would never send.

    Raises:
        WireError: in words.
    """
    if not (min(spec.top_k, choice) >= 0 and max(spec.top_k, choice) <= _MOST):
        raise WireError(f"top_k {spec.top_k} or choice {choice} is out of range")
    if not -1 <= spec.logprobs <= sampleable:
        raise WireError(f"logprobs of {spec.logprobs} ids are asked for")
    if len(spec.bias_ids) != len(spec.bias_values):
        raise WireError("biases and their ids are not as many")
    if min(spec.bad_lengths, default=1) < 1 or sum(spec.bad_lengths) != len(spec.bad_ids):
        raise WireError("the lengths of bad words do not fit their ids")


def _split(ids: list[int], lengths: list[int]) -> tuple[Int32s, ...]:
    """Return the words that lie one after the other in `ids`."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return tuple(
        np.array(ids[end - length : end], np.int32)
        for end, length in zip(ends.tolist(), lengths, strict=True)
    )


def _ban_words(
    banned: dict[int, Int32s], row: int, words: tuple[Int32s, ...], output: Int32s
) -> None:
    """Ban the last id of each word of which all before it has just come."""
    found = [
        int(word[-1])
        for word in words
        if len(word) == 1
        or (len(output) >= len(word) - 1 and np.array_equal(output[1 - len(word) :], word[:-1]))
    ]
    if found:
        before = banned.get(row, _EMPTY)
        banned[row] = np.union1d(before, np.array(found, np.int32)).astype(np.int32)


_Ragged = tuple[Tensor, Tensor]
