"""Embedding, norms, rope, cache writes, silu and block copies of the device kernels.

Against the reference in torch: equal bits where each element is computed alike, else within the
tolerance that is stated. Then the same bits in every order of threads, for every warp size, in
every batch, at every alignment, and no access outside of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from mtactors.errors import ConfigError
from mtactors.kernels.device import DeviceOperations
from mtactors.kernels.reference import OPERATIONS as TRUTH
from mtactors.kernels.reference import PlainLinear
from tests.kernels.musa.emulated import Emulator

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Two roundings to the dtype, each of which may fall on the other side of a tie when the float32
# before it differs by a step (another order of the norm's sum, another exp in silu).
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
Pairing = Literal["half", "interleaved"]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype is expected.dtype
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=2 * tolerance)


def unaligned(tensor: Tensor) -> Tensor:
    """Return a contiguous copy one element behind an address that is aligned."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    copy = room[1:].view(tensor.shape)
    copy.copy_(tensor)
    return copy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 64, 129, 4104])
def test_embedding_gathers_this_shards_rows(
    ops: DeviceOperations, dtype: torch.dtype, columns: int
) -> None:
    table = rand(11, columns, dtype=dtype)
    ids = torch.tensor([5, 4, 15, 16, 0, 9, 5, 2**31 - 1], dtype=torch.int32)
    for first_row in (0, 5):
        ours = ops.embedding(ids, ops.pack_linear(table), first_row)
        theirs = TRUTH.embedding(ids, TRUTH.pack_linear(table), first_row)
        assert torch.equal(ours, theirs)
    assert ops.embedding(ids[:0], ops.pack_linear(table)).shape == (0, columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 7, 127, 128, 129, 1023, 1024, 1025, 2056])
@pytest.mark.parametrize("cast_first", [True, False])
def test_norms(ops: DeviceOperations, dtype: torch.dtype, hidden: int, cast_first: bool) -> None:
    x, residual = rand(5, hidden, dtype=dtype), rand(5, hidden, seed=1, dtype=dtype)
    weight = rand(hidden, seed=2, dtype=dtype)
    plain = ops.rms_norm(x, weight, 1e-5, cast_first=cast_first)
    close(plain, TRUTH.rms_norm(x, weight, 1e-5, cast_first=cast_first))
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-5, cast_first=cast_first)
    assert torch.equal(total, x + residual)
    # Fused or not, alone or with others, aligned or not: one result.
    assert torch.equal(normed, ops.rms_norm(total, weight, 1e-5, cast_first=cast_first))
    assert torch.equal(plain[3:4], ops.rms_norm(x[3:4], weight, 1e-5, cast_first=cast_first))
    moved = ops.rms_norm(unaligned(x), unaligned(weight), 1e-5, cast_first=cast_first)
    assert torch.equal(plain, moved)
    assert ops.rms_norm(x[:0], weight, 1e-5).shape == (0, hidden)


def test_a_norm_survives_zeros_and_large_values(ops: DeviceOperations) -> None:
    x = torch.stack([torch.zeros(64), torch.full((64,), 3e4), torch.full((64,), 6e-8)]).half()
    weight = torch.ones(64).half()
    close(ops.rms_norm(x, weight, 1e-6), TRUTH.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_heads_that_are_slices_of_a_fused_product(
    ops: DeviceOperations, dtype: torch.dtype
) -> None:
    weight = rand(40, dtype=dtype)
    for first in (0, 40, 41):
        heads = rand(7, 6 * 40, dtype=dtype)[:, first : first + 120].view(7, 3, 40)
        assert torch.equal(
            ops.rms_norm(heads, weight, 1e-6), ops.rms_norm(heads.contiguous(), weight, 1e-6)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (64, 48), (64, 6), (36, 18)])
def test_rope_has_the_references_bits(
    ops: DeviceOperations, dtype: torch.dtype, pairing: Pairing, head_dim: int, rotary_dim: int
) -> None:
    rows = torch.tensor([3, 0, 49, 7, 7], dtype=torch.int32)
    table, scale = rand(50, rotary_dim), rand(5, seed=3)
    for factor in (None, scale):
        for offset in (0, 1):
            ours, theirs = (rand(5, 9 * head_dim, dtype=dtype) for _ in range(2))
            for fused, operations in ((ours, ops), (theirs, TRUTH)):
                q = fused[:, offset : offset + 6 * head_dim].view(5, 6, head_dim)
                k = fused[:, offset + 6 * head_dim : offset + 8 * head_dim].view(5, 2, head_dim)
                operations.rope(q, k, rows, table, pairing, factor)
            assert torch.equal(ours, theirs)


def test_rope_of_no_tokens_and_of_odd_dimensions(ops: DeviceOperations) -> None:
    q, k, rows = rand(2, 3, 8), rand(2, 1, 8), torch.zeros(2, dtype=torch.int32)
    ops.rope(q[:0], k[:0], rows[:0], rand(4, 8), "half")
    with pytest.raises(ConfigError, match="rope"):
        ops.rope(q, k, rows, rand(4, 7), "half")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [1, 24, 64, 96])
def test_kv_write_skips_negative_slots(
    ops: DeviceOperations, dtype: torch.dtype, head_dim: int
) -> None:
    fused = rand(5, 6 * head_dim, dtype=dtype)
    k = fused[:, : 2 * head_dim].view(5, 2, head_dim)
    v = fused[:, 3 * head_dim : 5 * head_dim].view(5, 2, head_dim)
    slots = torch.tensor([17, -1, 0, 63, -5])
    caches = [torch.zeros(4, 16, 2, head_dim, dtype=dtype) for _ in range(4)]
    ops.kv_write(k, v, caches[0], caches[1], slots)
    TRUTH.kv_write(k, v, caches[2], caches[3], slots)
    assert torch.equal(caches[0], caches[2])
    assert torch.equal(caches[1], caches[3])
    ops.kv_write(k[:0], v[:0], caches[0], caches[1], slots[:0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 100, 1027, 4096])
def test_silu_and_mul(ops: DeviceOperations, dtype: torch.dtype, width: int) -> None:
    x = 4 * rand(3, 2 * width, dtype=dtype)
    out = ops.silu_and_mul(x)
    # The result is as large as 4 * 4 * 4: relative, not absolute.
    expected = TRUTH.silu_and_mul(x)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=2 * TOLERANCE[dtype])
    assert torch.equal(ops.silu_and_mul(x[2:3]), out[2:3])
    assert torch.equal(ops.silu_and_mul(unaligned(x)), out)
    assert ops.silu_and_mul(x[:0]).shape == (0, width)


def test_silu_of_extreme_gates(ops: DeviceOperations) -> None:
    gate = torch.tensor([-1e30, -200.0, -100.0, -0.0, 0.0, 100.0, 1e30, torch.nan])
    out = ops.silu_and_mul(torch.cat([gate, torch.ones(8)]).unsqueeze(0))[0]
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 100.0, 1e30, torch.nan])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "head_dim"), [(1, 8), (70, 3), (5, 256)])
def test_copy_blocks_copies_leading_tokens_in_every_cache(
    ops: DeviceOperations, dtype: torch.dtype, count: int, head_dim: int
) -> None:
    ours = [rand(6, 16, 3, head_dim, seed=seed, dtype=dtype) for seed in range(count)]
    theirs = [cache.clone() for cache in ours]
    copies = torch.tensor([[0, 3, 16], [5, 1, 7], [2, 4, 0]])
    ops.copy_blocks(ours, copies)
    TRUTH.copy_blocks(theirs, copies)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    ops.copy_blocks(ours, torch.empty(0, 3, dtype=torch.int64))


def everything(ops: DeviceOperations, put: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Run each operation on odd shapes in memory from `put`; return all that they wrote."""
    results = []
    slots = put(torch.tensor([17, -1, 40, 63, 0]))
    rows = put(torch.tensor([3, 0, 49, 7, 7], dtype=torch.int32))
    ids = put(torch.tensor([2, 0, 4], dtype=torch.int32))
    copies = put(torch.tensor([[0, 3, 15], [1, 2, 16]]))
    for dtype in DTYPES:
        for width in (7, 72, 1025):
            x, residual = put(rand(3, width, dtype=dtype)), put(rand(3, width, seed=1, dtype=dtype))
            weight = put(rand(width, seed=2, dtype=dtype))
            results += [ops.rms_norm(x, weight, 1e-5), *ops.add_rms_norm(x, residual, weight, 1e-5)]
            results.append(ops.silu_and_mul(put(rand(3, 2 * width, dtype=dtype))))
            table = PlainLinear(put(rand(5, width, dtype=dtype)))
            results.append(ops.embedding(ids, table, 1))
        for pairing, head_dim, rotary in (("half", 20, 14), ("interleaved", 16, 16)):
            q = put(rand(5, 3, head_dim, dtype=dtype))
            k = put(rand(5, 1, head_dim, seed=1, dtype=dtype))
            turns, scale = put(rand(50, rotary)), put(rand(5, seed=3))
            ops.rope(q, k, rows, turns, "half" if pairing == "half" else "interleaved", scale)
            keys, values = (put(rand(4, 16, 1, head_dim, seed=s, dtype=dtype)) for s in (4, 5))
            ops.kv_write(k, k, keys, values, slots)
            ops.copy_blocks([keys, values], copies)
            results += [q, k, keys, values]
    return results


@pytest.mark.parametrize("warp", [32, 128])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_order_and_warp_gives_the_same_bits(
    ops: DeviceOperations, emulator: Emulator, seed: int, warp: int
) -> None:
    expected = everything(ops, lambda tensor: tensor)
    with emulator.running(seed, warp):
        actual = everything(ops, lambda tensor: tensor)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_nothing_is_touched_outside_of_tensors(ops: DeviceOperations, emulator: Emulator) -> None:
    expected = everything(ops, lambda tensor: tensor)
    before = emulator.launches
    with emulator.results_guarded(), emulator.running(guard=True):
        actual = everything(ops, emulator.guarded)
    assert emulator.launches > before
    # Results were NaN before, so each element was written.
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
