"""The fake cards' memory: the host's, under tensors of another device, and a count of it.

A tensor comes to its device by DLPack, whose kind of device "extension" is torch's PrivateUse1.
Nothing here is called back when memory is given back: libc's free does that, since Python must not
run while an error is on its way.
"""

# What this uses of torch is not typed.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_CPU, _EXTENSION = 1, 12
_MOST_DIMS = 16
_ALIGNMENT = 256
_CODES = {
    torch.float16: (2, 16),
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.bfloat16: (4, 16),
    torch.int8: (0, 8),
    torch.int16: (0, 16),
    torch.int32: (0, 32),
    torch.int64: (0, 64),
    torch.uint8: (1, 8),
    torch.bool: (6, 8),
}

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = (ctypes.c_size_t,)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor, and the arrays that it points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int),
        ("index", ctypes.c_int),
        ("dims", ctypes.c_int),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * _MOST_DIMS),
        ("steps", ctypes.c_int64 * _MOST_DIMS),
    )


_live: list[tuple[StorageWeakRef, int]] = []
_peak = [0]


def on_host(tensor: Tensor) -> Tensor:
    """Return a card's tensor as one of the CPU; the card's must live as long."""
    storage = tensor.untyped_storage()
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    flat = torch.Size([storage.nbytes() // tensor.itemsize])
    # The whole storage: offsets count from its beginning, in operations as well.
    alias = _make(flat, (1,), tensor.dtype, storage.data_ptr(), _CPU, 0, 0)
    return alias.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def new_on_card(tensor: Tensor, index: int) -> Tensor:
    """Return a copy of a CPU's tensor in a card's own memory, strides and all.

    Raises:
        torch.OutOfMemoryError: the card has less.
    """
    size = _bytes(tensor)
    if allocated() + size > total():
        raise torch.OutOfMemoryError(f"MUSA out of memory. Tried to allocate {size} bytes")
    made = _make(tensor.shape, tensor.stride(), tensor.dtype, 0, _EXTENSION, index, size)
    if tensor.numel():
        on_host(made).copy_(tensor)
    _live.append((StorageWeakRef(made.untyped_storage()), size))
    _peak[0] = max(_peak[0], allocated())
    return made


def total() -> int:
    return int(os.environ.get("FAKE_MUSA_BYTES", str(1 << 30)))


def allocated() -> int:
    _live[:] = [(storage, size) for storage, size in _live if not storage.expired()]
    return sum(size for _, size in _live)


def peak() -> int:
    return _peak[0]


def reset_peak() -> None:
    _peak[0] = allocated()


def _bytes(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * step for size, step in steps)) * tensor.itemsize


def _make(
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    data: int,
    kind: int,
    index: int,
    size: int,
) -> Tensor:
    """Return a tensor over `data`, or over `size` new bytes behind its own description."""
    block = _libc.malloc(ctypes.sizeof(_Managed) + _ALIGNMENT + size)
    managed = _Managed.from_address(block)
    behind = block + ctypes.sizeof(_Managed)
    managed.data = data or behind + -behind % _ALIGNMENT
    managed.kind, managed.index, managed.dims = kind, index, len(shape)
    managed.code, managed.bits = _CODES[dtype]
    managed.lanes = 1
    managed.shape = block + _Managed.sizes.offset
    managed.strides = block + _Managed.steps.offset
    managed.offset, managed.context = 0, None
    managed.deleter = ctypes.cast(_libc.free, ctypes.c_void_p).value
    managed.sizes[: len(shape)] = list(shape)
    managed.steps[: len(shape)] = list(strides)
    made: Tensor = torch.utils.dlpack.from_dlpack(_new_capsule(block, b"dltensor", None))
    return made
