"""The rows that hold a slot: what a worker remembers between two plans, as arrays over slots.

A plan names a row by its slot and says only what changed; everything else is here. Arrays, so
that a step of 128 decode rows costs a handful of numpy calls. Knows nothing of tensors, devices
or how a token is chosen.

Of a row's tokens, half-open intervals of positions:
    [0, num_computed)           are in the KV cache
    [num_computed, num_tokens)  are known and not computed; one position for a row that decodes
    [prompt_len, num_tokens)    are output
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtactors.errors import WireError
from mtactors.wire.messages import KnownRow, NewRow, StepPlan

_MOST_ALPHA = float(1 << 20)

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def id_bits(ids: Sequence[int] | Int32s, words: int) -> Int32s:
    """Return the bit set of ids as (words,) int32, lowest id in the lowest bit."""
    bits = np.zeros(words * 32, np.uint8)
    bits[np.asarray(ids, np.int64)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


@dataclass(frozen=True, slots=True)
class Chunks:
    """What a plan computes: one entry per row of the plan, new rows first, then known ones.

    Row r computes positions starts[r] .. starts[r]+lengths[r]-1 of the row in slot slots[r].
    `decodes`: every row computes one token, its last, and samples from it. Plans that name the same
    rows for the same work share `slots`, `lengths` and `samples`: what was found out about them
    stays true. Nobody writes to them; `starts` may move on when the chunks are computed.
    """

    slots: Int64s
    starts: Int64s
    lengths: Int64s
    samples: Bools
    decodes: bool


@dataclass(slots=True)
class _Named:
    """What a plan says of its rows, and the chunks that it means.

    `fits`: how often these chunks, one position further each time, are known to fit.
    """

    slots: list[int]
    lengths: list[int]
    samples: list[bool]
    chunks: Chunks
    fits: int = 0


class Rows:
    """The slot table.

    Args:
        max_rows: slots.
        max_len: tokens of a row, prompt and output together.
        num_blocks: blocks of the KV cache, to check what a plan names.
        max_tokens: tokens that one step may compute.
        vocabulary: token ids are below it.
    """

    def __init__(
        self,
        max_rows: int,
        max_len: int,
        block_size: int,
        num_blocks: int,
        max_tokens: int,
        vocabulary: int = 1 << 31,
    ) -> None:
        self.vocabulary = vocabulary
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_tokens = max_tokens
        width = -(-max_len // block_size)
        self.occupied = np.zeros(max_rows, np.bool_)
        # np.zeros does not touch the pages: a slot's tokens cost memory when they are there. One
        # column more, since a row that ended at max_len may be computed once too often.
        self.tokens = np.zeros((max_rows, max_len + 1), np.int32)
        # Side by side, since a step asks for all of them. Room: positions that the blocks hold.
        self._counts = np.zeros((3, max_rows), np.int64)
        self.num_computed, self.num_tokens, self._room = self._counts
        self.prompt_len = np.zeros(max_rows, np.int64)
        self.block_tables = np.full((max_rows, width), -1, np.int32)
        self.blocks_given = 0  # how often the block tables have changed
        self.highest_block = -1
        self.rope_alpha = np.ones(max_rows, np.float64)
        self.prompt_logprobs = np.full(max_rows, -1, np.int64)
        self._named: _Named | None = None  # of the last plan, as long as no row comes or goes

    def apply(self, plan: StepPlan) -> Chunks:
        """End, start and extend rows as the plan says, and return what it computes.

        Raises:
            WireError: the plan does not fit the rows that are here.
        """
        if plan.ended or plan.new:
            self._named = None
        for slot in plan.ended:
            self._require(0 <= slot < len(self.occupied), f"ends slot {slot}, which is not one")
            self.occupied[slot] = False
        for new in plan.new:
            self._start(new)
        named = self._name([*plan.new, *plan.known])
        for row in plan.known:
            if row.new_blocks:
                self._append_blocks(row.slot, row.new_blocks)
        if not named.fits:
            self._check_chunks(named)
        return named.chunks

    def advance(self, chunks: Chunks, ids: Int32s) -> None:
        """Record that the chunks are computed and `ids` were sampled for those that sample."""
        named = self._named
        if named and named.fits and named.chunks is chunks:
            slots, starts = chunks.slots, chunks.starts
            starts += 1
            self.tokens[slots, starts] = ids
            self.num_computed[slots] = starts
            self.num_tokens[slots] = starts + 1
            named.fits -= 1
            return
        self._named = None
        self.num_computed[chunks.slots] += chunks.lengths
        slots = chunks.slots[chunks.samples]
        self.tokens[slots, self.num_tokens[slots]] = ids
        self.num_tokens[slots] += 1

    def check_copies(self, copies: list[tuple[int, int, int]]) -> None:
        """Refuse copies (source, target, tokens) outside the cache.

        Raises:
            WireError: a block or a number of tokens that does not exist.
        """
        for source, target, tokens in copies:
            fits = min(source, target) >= 0 and max(source, target) < self.num_blocks
            self._require(
                fits and 0 < tokens <= self.block_size,
                f"copies {tokens} tokens from block {source} to block {target}",
            )

    def most_blocks(self, slots: Int64s) -> int:
        """Return how many blocks the row with most of them holds."""
        return int(self._room[slots].max()) // self.block_size

    def prompt(self, slot: int) -> Int32s:
        """Return the prompt's ids of the row in a slot."""
        prompt: Int32s = self.tokens[slot, : self.prompt_len[slot]]
        return prompt

    def output(self, slot: int) -> Int32s:
        """Return the output ids so far of the row in a slot."""
        output: Int32s = self.tokens[slot, self.prompt_len[slot] : self.num_tokens[slot]]
        return output

    def _start(self, row: NewRow) -> None:
        slot, count = row.slot, len(row.tokens)
        self._require(0 <= slot < len(self.occupied), f"starts in slot {slot}, which is not one")
        self._require(not self.occupied[slot], f"starts a row in slot {slot}, which is taken")
        self._require(
            0 < count < self.tokens.shape[1] and 0 < row.prompt_len <= count,
            f"starts a row of {count} tokens with a prompt of {row.prompt_len} in slot {slot}",
        )
        alpha = row.rope_alpha  # each has a table of its own
        self._require(1.0 <= alpha <= _MOST_ALPHA, f"stretches rope by {alpha} in slot {slot}")
        self._require(
            -1 <= row.prompt_logprobs <= self.vocabulary,
            f"asks for logprobs of {row.prompt_logprobs} ids in slot {slot}",
        )
        tokens = self.tokens[slot, :count]
        tokens[:] = row.tokens
        self._require(
            int(tokens.min()) >= 0 and int(tokens.max()) < self.vocabulary,
            f"starts a row with ids that are not below {self.vocabulary} in slot {slot}",
        )
        self.occupied[slot] = True
        self.num_tokens[slot] = count
        self.prompt_len[slot] = row.prompt_len
        self.num_computed[slot] = row.num_computed
        self.rope_alpha[slot] = row.rope_alpha
        self.prompt_logprobs[slot] = row.prompt_logprobs
        self.block_tables[slot] = -1
        self._room[slot] = 0
        self._append_blocks(slot, row.block_table)

    def _append_blocks(self, slot: int, blocks: list[int]) -> None:
        held = int(self._room[slot]) // self.block_size
        self._require(
            held + len(blocks) <= self.block_tables.shape[1]
            and all(0 <= block < self.num_blocks for block in blocks),
            f"gives slot {slot}, which holds {held}, the blocks {blocks}",
        )
        self.block_tables[slot, held : held + len(blocks)] = blocks
        self._room[slot] = (held + len(blocks)) * self.block_size
        self.blocks_given += 1
        self.highest_block = max(self.highest_block, *blocks)

    def _name(self, rows: list[NewRow | KnownRow]) -> _Named:
        """Return what a plan says of its rows; the last plan's where it is the same."""
        slots = [row.slot for row in rows]
        lengths = [row.chunk_len for row in rows]
        samples = [row.sample for row in rows]
        last = self._named
        if last and (last.slots, last.lengths, last.samples) == (slots, lengths, samples):
            return last
        total = sum(lengths)
        self._require(total <= self.max_tokens, f"computes {total} tokens, over {self.max_tokens}")
        chunks = Chunks(
            slots=np.array(slots, np.int64),
            starts=np.empty(0, np.int64),
            lengths=np.array(lengths, np.int64),
            samples=np.array(samples, np.bool_),
            decodes=lengths == [1] * len(rows) and all(samples),
        )
        self._check_slots(chunks.slots)
        self._named = _Named(slots, lengths, samples, chunks)
        return self._named

    def _check_slots(self, slots: Int64s) -> None:
        if not slots.size:
            return
        inside = bool(((slots >= 0) & (slots < len(self.occupied))).all())
        self._require(inside and bool(self.occupied[slots].all()), "names a slot that no row holds")
        self._require(int(np.bincount(slots).max()) == 1, "names a slot twice")

    def _check_chunks(self, named: _Named) -> None:
        """Say where the chunks start, and for how many steps this is settled.

        Refuses what would read or write outside a row: numpy and kernels would not notice.
        """
        old = named.chunks
        starts, tokens, room = self._counts.take(old.slots, axis=1)
        chunks = Chunks(old.slots, starts, old.lengths, old.samples, old.decodes)
        named.chunks = chunks
        if chunks.decodes and chunks.slots.size and (starts + 1 == tokens).all():
            # A row has a token: nothing overflows.
            named.fits = max(0, int((room - tokens).min()) + 1)
            if named.fits:
                return
        ends = starts + chunks.lengths
        fits = (
            (starts >= 0)
            & (starts < tokens)  # so that no sum overflows
            & (chunks.lengths > 0)
            & (chunks.lengths <= tokens)
            & (ends <= np.minimum(tokens, room))
            & ((ends == tokens) | ~chunks.samples)
        )
        if not fits.all():
            row = int(np.flatnonzero(~fits)[0])
            raise WireError(
                f"the plan computes positions {starts[row]} to {ends[row] - 1} of slot "
                f"{chunks.slots[row]}, which has {tokens[row]} tokens and room for {room[row]}"
            )

    def _require(self, fine: bool, message: str) -> None:
        if not fine:
            raise WireError(f"the plan {message}")
