"""Pages that are there before anybody writes to them."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch
from torch import Tensor

from mtactors.worker import kv_cache
from mtactors.worker.device import Cpu
from mtactors.worker.kv_cache import KvShape
from mtactors.worker.warm_blocks import WarmBlocks

SHAPE = KvShape(layers=2, kv_heads=2, head_dim=64, dtype=torch.float32)
BLOCK_SIZE = 64  # 32 KiB of a tensor
BLOCKS = 1024


def _resident(tensor: Tensor) -> list[bool]:
    """Tell of each page of a tensor whether it is in memory."""
    size = tensor.numel() * tensor.itemsize
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert mincore(tensor.data_ptr(), size, pages) == 0
    return [bool(page & 1) for page in pages]


def _resident_blocks(tensor: Tensor) -> int:
    """Count the blocks at the beginning of a tensor that are in memory as a whole."""
    pages = _resident(tensor)
    each = len(pages) // tensor.shape[0]
    blocks = [all(pages[block * each : (block + 1) * each]) for block in range(tensor.shape[0])]
    return blocks.index(False) if False in blocks else len(blocks)


@pytest.fixture
def tensors() -> list[Tensor]:
    return kv_cache.allocate(BLOCKS, BLOCK_SIZE, SHAPE, Cpu()).tensors


@pytest.fixture
def can_populate() -> None:
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page = torch.zeros(4 * mmap.PAGESIZE, dtype=torch.uint8)
    if not sys.platform.startswith("linux") or madvise(
        page.data_ptr() & -mmap.PAGESIZE, mmap.PAGESIZE, 23
    ):
        pytest.skip("this system cannot populate pages on request (Linux 5.14 can)")


@pytest.mark.usefixtures("can_populate")
def test_blocks_ahead_of_those_in_use_are_in_memory(tensors: list[Tensor]) -> None:
    warm = WarmBlocks(tensors, ahead=3)
    while warm.prepare():
        pass
    assert all(_resident_blocks(tensor) >= 3 for tensor in tensors)
    assert not any(_resident(tensors[0])[-100:])  # not all of it
    warm.use(500)
    while warm.prepare():
        pass
    assert all(_resident_blocks(tensor) >= 504 for tensor in tensors)
    warm.use(7)
    assert not warm.prepare()


@pytest.mark.usefixtures("can_populate")
def test_the_last_block_is_the_end(tensors: list[Tensor]) -> None:
    warm = WarmBlocks(tensors, ahead=3)
    warm.use(BLOCKS - 1)
    while warm.prepare():
        pass
    assert all(_resident_blocks(tensor) == BLOCKS for tensor in tensors)
    assert not warm.prepare()


def test_what_was_written_stays(tensors: list[Tensor]) -> None:
    for number, tensor in enumerate(tensors):
        tensor[:5] = number + 1.0
    warm = WarmBlocks(tensors, ahead=10)
    while warm.prepare():
        pass
    for number, tensor in enumerate(tensors):
        assert bool((tensor[:5] == number + 1.0).all())
        assert not bool(tensor[5:20].any())


def test_tensors_of_a_device_are_left_alone() -> None:
    assert not WarmBlocks([torch.empty(8, 4, device="meta")], ahead=4).prepare()
