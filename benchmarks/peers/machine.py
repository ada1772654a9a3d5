"""Not an engine but the machine: memory bandwidth and matrix products.

Speaks the adapters' protocol, so that it is measured in turn with the engines, at the same threads
and in the same state of the machine. Whatever reads or multiplies fastest counts, torch or our own
kernels: neither library is the best on every machine. What counts as read is what was read: our own
kernels hold most weights in fewer bits than their type has, so they are given others here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import cast

import torch

from benchmarks.peers.protocol import Options, Recording, Workload
from mtactors.kernels import load
from mtactors.kernels.addresses import packed_matrix
from mtactors.kernels.native import CpuOperations

#: Rows, columns and depth of products in which libraries come close to the machine's peak. Small
#: ones, which stay in the cores' own caches and seldom lose a core to somebody else, do best.
_SHAPES = ((512, 1024, 1024), (1024, 1024, 1024), (2048, 1024, 512), (1024, 2048, 2048))
_DEPTH = 1024  # of the matrix that is read for the bandwidth
_SECONDS = 0.2  # for each kind of work
_LEAST = 3  # times


class Machine:
    """Measures with `generate`: the workload does not matter."""

    def start(self, options: Options) -> dict[str, object]:
        """Allocate what is read and multiplied; `options.kv_bytes` is how much is read."""
        torch.set_num_threads(options.threads)
        own = cast(CpuOperations, load("cpu"))
        own.set_threads(options.threads)
        dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.dtype]
        # As much as the weights: where they fit into a cache, that cache is the limit.
        size = max(1, options.kv_bytes // (4 * _DEPTH)) * 4 * _DEPTH
        data = torch.ones(size // 4, dtype=torch.float32)
        other = torch.ones_like(data)
        row = torch.ones(1, _DEPTH, dtype=dtype)
        weight = wide_weights(size // dtype.itemsize // _DEPTH, _DEPTH, dtype)
        packed = packed_matrix(own.pack_linear(weight))
        self._reads: list[tuple[int, Callable[[], object]]] = [
            (size, partial(torch.sum, data)),
            (2 * size, partial(torch.dot, data, other)),
            (3 * size, partial(torch.add, data, other, out=other)),
            (packed.nbytes, partial(own.linear, row, packed)),
        ]
        self._products: list[tuple[int, Callable[[], object]]] = []
        for rows, columns, depth in _SHAPES:
            left = torch.randn(rows, depth).to(dtype)
            right = torch.randn(columns, depth).to(dtype)
            work = 2 * rows * columns * depth
            self._products += [
                (work, partial(torch.nn.functional.linear, left, right)),
                (work, partial(own.linear, left, own.pack_linear(right))),
            ]
        return {"version": torch.__version__, "kernels": own.name, "bytes_read": size}

    def generate(self, workload: Workload) -> Recording:
        """Return bytes per second and operations per second in place of times."""
        bandwidth = max(size / _best(read) for size, read in self._reads)
        flops = max(work / _best(product) for work, product in self._products)
        return Recording([[(bandwidth, 0), (flops, 0)]])

    def stop(self) -> None:
        """There is nothing to stop."""


def wide_weights(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, columns) weights that no build holds in fewer bits than their type has.

    All rows are the same memory. The weights have too many exponents for short codes, none of them
    out of a float16's range, and in float32 more digits than a bf16 number.
    """
    index = torch.arange(columns)
    sizes = torch.ldexp(torch.full((columns,), 4 / 3), index // 2 % 28 - 14)
    return torch.where(index % 2 == 0, sizes, -sizes).to(dtype).expand(rows, columns)


def _best(work: Callable[[], object]) -> float:
    """Return the shortest time that some work takes."""
    work()
    best, times, spent = float("inf"), 0, 0.0
    while times < _LEAST or spent < _SECONDS:
        begun = time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        best, times, spent = min(best, seconds), times + 1, spent + seconds
    return best


ADAPTER = Machine
