"""Tensors as the addresses that `_native` takes, checked so that nothing is read out of bounds.

Knows no operation's formula. `device` says where a tensor has to be; None where the caller knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mtactors.errors import ConfigError
from mtactors.kernels import LinearWeight, SamplingBatch, _native

if TYPE_CHECKING:
    from torch import Tensor


class _Codes(dict[torch.dtype, int]):
    def __missing__(self, dtype: torch.dtype) -> int:
        raise ValueError(f"{dtype} is none of {', '.join(map(str, self))}")


#: Element types as kernels/abi.h numbers them; ValueError for another.
CODES = _Codes({torch.float32: 0, torch.bfloat16: 1, torch.float16: 2})


def packed_matrix(weight: LinearWeight) -> _native.PackedMatrix:
    """Return a weight that `pack_linear` made."""
    if not isinstance(weight, _native.PackedMatrix):
        raise TypeError(f"weight was packed by another implementation: {type(weight).__name__}")
    return weight


def sampling_arrays(batch: SamplingBatch, device: torch.device) -> Sequence[int]:
    """Return the addresses in the order that `_native.Backend.sample` names."""
    floats = (
        batch.temperature,
        batch.top_p,
        batch.min_p,
        batch.repetition_penalty,
        batch.presence_penalty,
        batch.frequency_penalty,
    )
    ints = (batch.top_k, batch.choices, batch.positions)
    ragged = (
        batch.prompt_tokens,
        batch.prompt_offsets,
        batch.output_tokens,
        batch.output_offsets,
        batch.bias_ids,
        batch.bias_offsets,
        batch.banned_ids,
        batch.banned_offsets,
    )
    mask = batch.mask
    return [
        *(array(one, "a parameter", torch.float32, device) for one in floats),
        *(array(one, "a parameter", torch.int32, device) for one in ints),
        array(batch.seeds, "seeds", torch.int64, device),
        *(array(one, "a list", torch.int32, device) for one in ragged),
        array(batch.bias_values, "bias_values", torch.float32, device),
        0 if mask is None else array(mask, "mask", torch.int32, device),
    ]


def address(tensor: Tensor | None) -> int:
    """Return where a tensor's data are, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def stride(rows: Tensor) -> int:
    """Return the elements from one row to the next; torch leaves any number where there is one."""
    return rows.stride(0) if rows.shape[0] > 1 else rows.shape[-1]


def last_contiguous(tensor: Tensor, name: str, dims: int) -> None:
    """Refuse other numbers of dimensions and a last one with gaps."""
    if tensor.dim() != dims or (tensor.stride(-1) != 1 and tensor.shape[-1] > 1):
        raise ValueError(f"{name} must have {dims} dimensions and a contiguous last one")


def array(tensor: Tensor, name: str, dtype: torch.dtype, device: torch.device | None = None) -> int:
    """Return the address of a contiguous tensor of the given type."""
    if tensor.dtype is not dtype or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous and {dtype}, not {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, not on {device}")
    return tensor.data_ptr()


def vector(
    tensor: Tensor, dtype: torch.dtype, size: int, device: torch.device | None = None
) -> int:
    """Return the address of a contiguous tensor of the given type and length."""
    if tensor.dtype is not dtype or tensor.shape != (size,) or not tensor.is_contiguous():
        raise ValueError(f"a norm or bias must be ({size},) {dtype}, not {tuple(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"a norm or bias is on {tensor.device}, not on {device}")
    return tensor.data_ptr()


def check_caches(
    k_cache: Tensor, v_cache: Tensor, dtype: torch.dtype, device: torch.device | None = None
) -> None:
    """Refuse caches that the kernels would read wrongly."""
    for cache in (k_cache, v_cache):
        if cache.dtype is not dtype or cache.dim() != 4 or not cache.is_contiguous():
            raise ValueError(f"a KV cache must be contiguous, 4-dimensional and {dtype}")
        if device is not None and cache.device != device:
            raise ValueError(f"a KV cache is on {cache.device}, not on {device}")
    if k_cache.shape != v_cache.shape:
        raise ValueError(f"K and V caches are {tuple(k_cache.shape)} and {tuple(v_cache.shape)}")
    if k_cache.shape[1] % 16:
        raise ConfigError("block_size", f"{k_cache.shape[1]} is not a multiple of 16")
