"""Memory for the cache's next blocks, found before a step writes to them.

On a CPU a block costs memory from its first write on, and that write waits until the system has
found and cleared a page: up to some milliseconds for a huge one where the system is itself a guest.
A step of a prompt would wait for many. Knows nothing of rows or plans.
"""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

_MADV_POPULATE_WRITE = 23  # of Linux 5.14: fault pages in for writing, and change nothing
_PIECE = 2 << 20  # bytes: a huge page, where the system gives them


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
        self._ends = [address for address, _ in self._places]  # of what is in memory
        self._highest = 0
        self._complete = False  # all that is wanted so far is in memory
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self.use(-1)

    def use(self, block: int) -> None:
        """Note that a block is in use; -1 is none."""
        highest = min(block + 1 + self._ahead, self._num_blocks)
        if highest > self._highest:
            self._highest, self._complete = highest, False

    def prepare(self) -> bool:
        """Find memory for a piece of one tensor; tell whether there is more to do."""
        if self._complete:
            return False
        for index, (address, size) in enumerate(self._places):
            start = self._ends[index]
            if start >= address + self._highest * size:
                continue
            end = min((start & -_PIECE) + _PIECE, address + self._num_blocks * size)
            start &= -mmap.PAGESIZE
            if self._madvise(start, end - start, _MADV_POPULATE_WRITE):
                self._num_blocks = self._highest = 0  # nor will it for the others
            self._ends[index] = end
            return True
        self._complete = True
        return False
