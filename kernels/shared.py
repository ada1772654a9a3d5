"""Ranks of one host that add and gather tensors through shared memory.

`SharedComm` has the methods of `layers.comm.Comm` and those that a worker's group adds. Knows no
process group: whoever starts the ranks tells all of them rank 0's path.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from mtactors.kernels import _native, native
from mtactors.kernels.addresses import CODES

if TYPE_CHECKING:
    from torch import Tensor

#: Room for one exchange per rank: 2048 tokens of 1024 float32 partial sums; more goes in pieces.
CAPACITY = 8 << 20


class SharedRegion:
    """Anonymous memory that rank 0 makes; gone when the last process that maps it is.

    `path` can be opened by processes of the same user while this object lives.
    """

    def __init__(self, world_size: int, capacity: int = CAPACITY) -> None:
        self._fd = os.memfd_create("mtactors-ranks")
        os.ftruncate(self._fd, _native.SharedGroup.file_bytes(world_size, capacity))
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Drop the name, once every rank has made its SharedComm."""
        os.close(self._fd)


class SharedComm:
    """One rank's end. Every rank makes the same calls in the same order.

    Args:
        path: of rank 0's `SharedRegion`.
        capacity: the region's.
        timeout: seconds to wait for another rank before RuntimeError.
    """

    def __init__(
        self,
        path: str,
        rank: int,
        world_size: int,
        capacity: int = CAPACITY,
        timeout: float = 3600.0,
    ) -> None:
        self.native = _native.SharedGroup(path, rank, world_size, capacity)
        # Any build adds with the same bits.
        self._backend = _native.Backend.isa(native.info().isa)
        self.rank = rank
        self.world_size = world_size
        self._timeout = timeout

    def reduce_sum(self, partial: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the sum over ranks of (T, N) float32, in rank order, rounded once to `dtype`."""
        if partial.dtype is not torch.float32 or not partial.is_contiguous():
            raise ValueError("partial sums must be contiguous float32")
        out = torch.empty(partial.shape, dtype=dtype)
        columns = partial.shape[-1]
        rows = partial.numel() // columns
        self.native.reduce_sum(
            self._backend,
            partial.data_ptr(),
            out.data_ptr(),
            rows,
            columns,
            CODES[dtype],
            self._timeout,
        )
        return out

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the ranks' parts side by side: (T, N) -> (T, world_size * N)."""
        return torch.cat(list(self._gather(part)), dim=-1)

    def broadcast_ids(self, ids: Tensor | None, count: int) -> Tensor:
        """Return rank 0's `ids`, (count,) int32; other ranks give None."""
        mine = torch.zeros(count, dtype=torch.int32) if ids is None else ids.int()
        return self._gather(mine)[0]

    def minimum(self, value: int) -> int:
        """Return the least `value` of any rank."""
        return int(self._gather(torch.tensor([value], dtype=torch.int64)).min())

    def _gather(self, part: Tensor) -> Tensor:
        """Return (world_size, *part.shape), the ranks' parts in rank order."""
        part = part.contiguous()
        parts = part.new_empty((self.world_size, *part.shape))
        size = part.numel() * part.element_size()
        self.native.gather(part.data_ptr(), size, parts.data_ptr(), self._timeout)
        return parts
