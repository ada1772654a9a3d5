"""From a plan's chunks to the tensors of one forward pass.

Everything is computed over all rows at once; there is no loop over rows. Knows nothing of
sampling or of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtactors.kernels import AttentionBatch
from mtactors.worker.rows import Chunks, Int32s, Int64s, Rows


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of a step: T tokens of S rows, in the order of the plan's rows.

    `ids`, `positions`: (T,) int32. `last_tokens`: (S,) on the host, index of each row's last
    token. `alphas`: (T,) float64 on the host, rope alpha per token; None when all are 1.
    `following`: where the id after each token may be written, and the same as an array; only of
    steps that decode on a CPU.
    """

    ids: Tensor
    positions: Tensor
    attention: AttentionBatch
    last_tokens: Int64s
    alphas: npt.NDArray[np.float64] | None
    following: tuple[Tensor, Int32s] | None = None


class Batches:
    """Builds one batch after the other.

    On a CPU the steps that decode the same rows share their tensors: a batch is over when the next
    is built.
    """

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._decoding: _Decoding | None = None

    def build(self, chunks: Chunks) -> Batch:
        """Return the tensors that compute `chunks`; there is at least one."""
        if not (chunks.decodes and self._on_cpu):
            return build(chunks, self._rows, self._device)
        if self._decoding is None or self._decoding.slots is not chunks.slots:
            self._decoding = _Decoding(chunks.slots, self._rows)
        return self._decoding.at(chunks.starts)


class _Decoding:
    """The tensors of rows that decode together, and the memory that they look at."""

    def __init__(self, slots: Int64s, rows: Rows) -> None:
        count = len(slots)
        alphas = rows.rope_alpha[slots]
        self.slots = slots
        self._rows = rows
        self._blocks_given = -1
        self._ids = np.empty(count, np.int32)
        following = np.empty(count, np.int32)
        self._positions = np.empty((2, count), np.int32)  # and one more, the lengths
        self._tables = np.full((count, rows.block_tables.shape[1]), -1, np.int32)
        self._slot_mapping = np.empty(count, np.int64)
        self._batch = Batch(
            ids=torch.from_numpy(self._ids),
            positions=torch.from_numpy(self._positions[0]),
            attention=AttentionBatch(
                query_start=torch.arange(count + 1, dtype=torch.int32),
                seq_lens=torch.from_numpy(self._positions[1]),
                block_tables=torch.from_numpy(self._tables),
                slot_mapping=torch.from_numpy(self._slot_mapping),
            ),
            last_tokens=np.arange(count),
            alphas=None if (alphas == 1.0).all() else alphas,
            following=(torch.from_numpy(following), following),
        )

    def at(self, positions: Int64s) -> Batch:
        """Return the batch that computes a position of each row."""
        slots, rows = self.slots, self._rows
        if self._blocks_given != rows.blocks_given:
            widest = rows.most_blocks(slots)
            self._tables[:, :widest] = rows.block_tables[slots, :widest]
            self._blocks_given = rows.blocks_given
        blocks, offsets = np.divmod(positions, rows.block_size)
        np.multiply(rows.block_tables[slots, blocks], rows.block_size, out=self._slot_mapping)
        self._slot_mapping += offsets
        self._positions[0] = positions
        np.add(self._positions[0], 1, out=self._positions[1])
        self._ids[:] = rows.tokens[slots, positions]
        return self._batch


def build(chunks: Chunks, rows: Rows, device: torch.device) -> Batch:
    """Return the tensors that compute `chunks`; there is at least one."""
    slots, lengths = chunks.slots, chunks.lengths
    ends = np.cumsum(lengths)
    first_tokens = ends - lengths
    if len(slots) == ends[-1]:  # a token each
        token_slots, positions = slots, chunks.starts
    else:
        token_slots = np.repeat(slots, lengths)
        positions = np.arange(ends[-1]) + np.repeat(chunks.starts - first_tokens, lengths)
    blocks, offsets = np.divmod(positions, rows.block_size)
    slot_mapping = rows.block_tables[token_slots, blocks].astype(np.int64)
    slot_mapping *= rows.block_size
    slot_mapping += offsets
    seq_lens = chunks.starts + lengths
    widest = -(-int(seq_lens.max()) // rows.block_size)
    query_start = np.zeros(len(slots) + 1, np.int32)
    query_start[1:] = ends
    alphas = rows.rope_alpha[slots]
    return Batch(
        ids=_tensor(rows.tokens[token_slots, positions], device),
        positions=_tensor(positions.astype(np.int32), device),
        attention=AttentionBatch(
            query_start=_tensor(query_start, device),
            seq_lens=_tensor(seq_lens.astype(np.int32), device),
            block_tables=_tensor(rows.block_tables[slots, :widest], device),
            slot_mapping=_tensor(slot_mapping, device),
        ),
        last_tokens=ends - 1,
        alphas=None if (alphas == 1.0).all() else np.repeat(alphas, lengths),
    )


def _tensor(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
