"""What the machine's bandwidth is measured with: weights of which every byte is read."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers.machine import wide_weights
from mtactors.kernels import native
from mtactors.kernels.addresses import packed_matrix
from mtactors.kernels.native import CpuOperations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("isa", native.info().runnable)
def test_wide_weights_are_held_in_all_their_bytes(isa: str, dtype: torch.dtype) -> None:
    weights = wide_weights(96, 1024, dtype)
    assert weights.shape == (96, 1024) and weights.dtype is dtype
    # Nothing that takes a multiplier longer.
    assert weights.isfinite().all() and weights.abs().min() >= torch.finfo(dtype).tiny
    packed = packed_matrix(CpuOperations(isa).pack_linear(weights))
    # A line before the panels says how they are held.
    assert packed.nbytes == weights.numel() * dtype.itemsize + 64
