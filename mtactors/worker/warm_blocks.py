"""Memory for the cache's next blocks, found before a step writes to them.

On a CPU a block costs memory from its first write on, and that write waits until the system has
found and cleared a page: up to some milliseconds for a huge one where the system is itself a guest.
A step of a prompt would wait for many. Knows nothing of rows or plans.
"""

from __future__ import annotations

import ctypes
import mmap
import time

from torch import Tensor

_MADV_POPULATE_WRITE = 23  # of Linux 5.14: fault pages in for writing, and change nothing
_SLICE_SECONDS = 0.001


class WarmBlocks:
    """Keeps some blocks beyond the highest one in use in memory.

    The front gives out the lowest blocks first, so these are the next ones. Systems that cannot
    populate pages on request find them at the first write, as they always did.

    Args:
        tensors: the cache's, contiguous, blocks outermost and equally many.
        ahead: blocks beyond the highest in use.
    """

    def __init__(self, tensors: list[Tensor], ahead: int) -> None:
        self._num_blocks = tensors[0].shape[0] if tensors[0].device.type == "cpu" else 0
        self._places = [
            (tensor.data_ptr(), tensor.stride(0) * tensor.itemsize) for tensor in tensors
        ]
        self._ahead = ahead
        self._warm = 0  # pieces: a block of one tensor after the other, then the next block
        self._wanted = 0
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self.use(-1)

    def use(self, block: int) -> None:
        """Note that a block is in use; -1 is none."""
        blocks = min(block + 1 + self._ahead, self._num_blocks)
        self._wanted = max(self._wanted, blocks * len(self._places))

    def prepare(self) -> bool:
        """Find memory for about a millisecond; tell whether there is more to do."""
        end = time.perf_counter() + _SLICE_SECONDS
        while self._warm < self._wanted:
            block, tensor = divmod(self._warm, len(self._places))
            address, size = self._places[tensor]
            first = address + block * size
            start = first & -mmap.PAGESIZE
            if self._madvise(start, first + size - start, _MADV_POPULATE_WRITE):
                self._num_blocks = self._wanted = 0  # nor will it for the others
            self._warm += 1
            if time.perf_counter() > end:
                break
        return self._warm < self._wanted
