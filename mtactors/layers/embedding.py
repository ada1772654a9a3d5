"""Embedding and LM head, both cut over ranks by rows of the vocabulary.

Knows no tokenizer: rows that must not be sampled are the sampler's affair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mtactors.kernels import LinearWeight, Operations
from mtactors.kernels.likeliest import likeliest_of_all, likeliest_of_part
from mtactors.layers.comm import Comm


@runtime_checkable
class _Choosing(Protocol):
    """Operations that find the likeliest id without writing the logits down."""

    def likeliest(self, x: Tensor, weight: LinearWeight, sampleable: int) -> Tensor:
        """Return the greatest column below `sampleable` of each row, of equals the lowest."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Token ids to vectors; this rank has the rows from `first_row` on."""

    ops: Operations
    comm: Comm
    weight: LinearWeight
    dtype: torch.dtype
    first_row: int = 0

    def __call__(self, ids: Tensor) -> Tensor:
        """Return (T, H) in the model dtype, the same on every rank, for (T,) int32 ids."""
        rows = self.ops.embedding(ids, self.weight, self.first_row)
        if self.comm.world_size == 1:
            return rows
        # One rank has the row and the others zeros: the sum is exact.
        return self.comm.reduce_sum(rows.float(), self.dtype)


@dataclass(frozen=True, slots=True)
class Head:
    """Hidden states to logits over `vocab_rows` ids."""

    ops: Operations
    comm: Comm
    weight: LinearWeight
    vocab_rows: int
    # Asked once: what a protocol says of an object takes long to find out.
    _choosing: _Choosing | None = field(init=False)

    def __post_init__(self) -> None:
        alone = self.comm.world_size == 1 and isinstance(self.ops, _Choosing)
        object.__setattr__(self, "_choosing", self.ops if alone else None)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return (R, vocab_rows) float32, contiguous, the same on every rank."""
        part = self.ops.linear(hidden, self.weight, out_dtype=torch.float32)
        if self.comm.world_size == 1:
            return part
        # Rows that fill up the last shares are no ids.
        return self.comm.all_gather(part)[:, : self.vocab_rows].contiguous()

    @property
    def chooses(self) -> bool:
        """Whether `likeliest` costs less than the logits and a greedy sampler."""
        return self._choosing is not None or self.comm.world_size > 1

    def likeliest(self, hidden: Tensor, sampleable: int) -> Tensor:
        """Return the likeliest id below `sampleable` of each row, of equals the lowest.

        (R,) int32, the same on every rank; the logits themselves stay where they are.
        """
        if self._choosing is not None:
            return self._choosing.likeliest(hidden, self.weight, sampleable)
        part = self.ops.linear(hidden, self.weight, out_dtype=torch.float32)
        each = part.shape[1]
        own = likeliest_of_part(self.ops, part, sampleable - self.comm.rank * each)
        return likeliest_of_all(self.comm.all_gather(own), each)
