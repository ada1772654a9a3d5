"""Packed products of the CPU kernels: exact within float32, and the same bits in every batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtactors.kernels import reference
from mtactors.kernels.addresses import packed_matrix
from mtactors.kernels.native import CpuOperations

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Odd sizes: no multiple of a panel (32), a tile of K (32) or a pair (2); and those of a model.
SHAPES = [(70, 33), (31, 64), (128, 130), (1, 2), (96, 576), (576, 1536)]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (128, k), a matrix (n, k) whose products have variance 1, and a bias."""
    matrix = rand(n, k, seed=1) / k**0.5
    return rand(128, k).to(dtype), matrix.to(dtype), rand(n, seed=2).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_sums_are_close_and_rounded_once(
    ops: CpuOperations, n: int, k: int, dtype: torch.dtype
) -> None:
    x, matrix, bias = problem(n, k, dtype)
    weight = ops.pack_linear(matrix)
    assert (weight.out_features, weight.in_features) == (n, k)
    sums = ops.linear(x, weight, bias, out_dtype=torch.float32)
    # float32 accumulation of up to 1536 products of variance 1/k: about 1e-6, bound 2e-5.
    exact = x.double() @ matrix.double().T + bias.double()
    torch.testing.assert_close(sums.double(), exact, atol=2e-5, rtol=0)
    assert torch.equal(ops.linear(x, weight, bias), sums.to(dtype))
    bare = ops.linear(x, weight, out_dtype=torch.float32)
    torch.testing.assert_close(bare + bias.float(), sums, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(70, 33), (96, 576), (64, 1536)])
def test_a_row_does_not_depend_on_the_batch_or_the_threads(
    ops: CpuOperations, n: int, k: int, dtype: torch.dtype
) -> None:
    x, matrix, bias = problem(n, k, dtype)
    weight = ops.pack_linear(matrix)
    whole = ops.linear(x, weight, bias, out_dtype=torch.float32)
    for threads in (1, 2):
        ops.set_threads(threads)
        for rows in (1, 2, 7, 13, 16, 17, 32, 33, 128):
            some = ops.linear(x[:rows], weight, bias, out_dtype=torch.float32)
            assert torch.equal(some, whole[:rows])
        last = ops.linear(x[127:], weight, bias, out_dtype=torch.float32)
        assert torch.equal(last, whole[127:])


def test_many_rows_are_cut_into_blocks_without_a_trace(ops: CpuOperations) -> None:
    ops.set_threads(2)
    matrix, x = rand(40, 64, seed=1).bfloat16(), rand(700, 64).bfloat16()
    weight = ops.pack_linear(matrix)
    whole = ops.linear(x, weight)
    pieces = [ops.linear(x[first : first + 111], weight) for first in range(0, 700, 111)]
    assert torch.equal(whole, torch.cat(pieces))


@pytest.mark.parametrize(("n", "k", "rows"), [(64, 96, 75), (192, 576, 45), (70, 33, 40)])
def test_tiles_that_are_finished_late_lose_no_row(
    ops: CpuOperations, n: int, k: int, rows: int
) -> None:
    matrix, x = rand(n, k, seed=1).bfloat16(), rand(rows, k).bfloat16()
    weight = ops.pack_linear(matrix)
    row_by_row = [ops.linear(x[row : row + 1], weight) for row in range(rows)]
    assert torch.equal(ops.linear(x, weight), torch.cat(row_by_row))


def test_bf16_rows_equal_torchs_matrix_vector_product(ops: CpuOperations) -> None:
    # Rounded to bf16 the order of a float32 sum shows in one element of thousands.
    x, matrix, bias = problem(96, 576, torch.bfloat16)
    row = ops.linear(x[:1], ops.pack_linear(matrix), bias)
    assert (row == F.linear(x[:1], matrix, bias)).float().mean() > 0.98


def test_x_may_be_a_slice_of_wider_rows(ops: CpuOperations) -> None:
    wide, matrix = rand(9, 200).bfloat16(), rand(64, 96, seed=1).bfloat16()
    weight = ops.pack_linear(matrix)
    x = wide[:, 40:136]
    assert torch.equal(ops.linear(x, weight), ops.linear(x.contiguous(), weight))
    assert torch.equal(ops.linear(x[4:5], weight), ops.linear(x, weight)[4:5])


def test_an_empty_batch_gives_an_empty_result(ops: CpuOperations) -> None:
    weight = ops.pack_linear(rand(8, 32))
    assert ops.linear(torch.empty(0, 32), weight).shape == (0, 8)
    assert ops.embedding(torch.empty(0, dtype=torch.int32), weight).shape == (0, 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_gathers_exact_rows_out_of_the_packed_matrix(
    ops: CpuOperations, dtype: torch.dtype
) -> None:
    table = rand(70, 33).to(dtype)
    ids = torch.tensor([0, 69, 31, 32, 70, 500, -1, 7], dtype=torch.int32)
    for first_row in (0, 5):
        rows = ops.embedding(ids, ops.pack_linear(table), first_row)
        truth = reference.OPERATIONS
        assert torch.equal(rows, truth.embedding(ids, truth.pack_linear(table), first_row))


# How a packed matrix is held: cpu/ops.h numbers them.
AS_GIVEN, AS_BF16, COMPACT = range(3)


def with_many_exponents(matrix: Tensor) -> Tensor:
    """Return it with more upper bytes than there are codes, all of them frequent in every panel."""
    exponents = torch.arange(matrix.numel()).view_as(matrix) % 48 - 24
    return matrix * torch.exp2(exponents.float())


TINY = [1e-30, -1e-38, 1e-40, -0.0, 1e-20, -1e-20, 0.0, -1e-30]
EXTREME = [3e38, -3e38, torch.inf, -torch.inf, 1e20, torch.nan]


def with_rare_weights(matrix: Tensor, rare: list[float]) -> Tensor:
    """Return it with weights that no code fits, the first and the last among them."""
    flat = matrix.flatten().clone()
    places = torch.linspace(0, len(flat) - 1, len(rare)).long()
    flat[places] = torch.tensor(rare).bfloat16().to(matrix.dtype)
    return flat.view_as(matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(96, 576), (70, 1000), (64, 1536)])
def test_weights_are_held_in_fewer_bits_without_losing_one(
    ops: CpuOperations, n: int, k: int, dtype: torch.dtype
) -> None:
    numbers = rand(n, k, seed=1).bfloat16().to(dtype)
    rare = with_rare_weights(numbers, TINY + EXTREME)
    matrices = [numbers, rare, torch.zeros(n, k).to(dtype)]
    ids = torch.arange(n, dtype=torch.int32)
    for matrix in matrices:
        weight = packed_matrix(ops.pack_linear(matrix))
        if ops.isa != "portable":
            assert weight.held == COMPACT
            assert weight.nbytes < 0.83 * matrix.bfloat16().nbytes * (-(-n // 32) * 32 / n)
        assert torch.equal(bits(ops.embedding(ids, weight)), bits(matrix))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_need_all_their_bits_keep_them(ops: CpuOperations, dtype: torch.dtype) -> None:
    wild = with_many_exponents(rand(70, 576)).bfloat16().to(dtype)
    weight = packed_matrix(ops.pack_linear(wild))
    portable = ops.isa == "portable"
    assert weight.held == (AS_BF16 if dtype is torch.float32 and not portable else AS_GIVEN)
    ids = torch.arange(70, dtype=torch.int32)
    assert torch.equal(ops.embedding(ids, weight), wild)
    full = rand(70, 576).to(dtype)
    if dtype is torch.float32:
        assert packed_matrix(ops.pack_linear(full)).held == AS_GIVEN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [64, 576, 1000])
def test_products_do_not_depend_on_how_weights_are_held(
    ops: CpuOperations, k: int, dtype: torch.dtype
) -> None:
    # Each column of a product has its own chain of sums, so a panel of wild weights beside makes
    # the same weights be held otherwise and must not change theirs.
    matrix = with_rare_weights(rand(64, k, seed=1).bfloat16().to(dtype), TINY)
    beside = torch.cat((matrix, with_many_exponents(rand(32, k)).bfloat16().to(dtype)))
    weight = packed_matrix(ops.pack_linear(matrix))
    other = packed_matrix(ops.pack_linear(beside))
    assert (weight.held != other.held) == (ops.isa != "portable")
    x = rand(128, k).to(dtype)
    for rows in (1, 3, 8, 16, 17, 32, 45, 128):
        mine = ops.linear(x[:rows], weight, out_dtype=torch.float32)
        theirs = ops.linear(x[:rows], other, out_dtype=torch.float32)
        assert torch.equal(mine, theirs[:, :64])


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype is torch.float32 else torch.int16)


def test_wrong_arguments_are_refused(ops: CpuOperations) -> None:
    weight = ops.pack_linear(rand(8, 32))
    with pytest.raises(ValueError, match="does not fit"):
        ops.linear(rand(2, 31), weight)
    with pytest.raises(ValueError, match="does not fit"):
        ops.linear(rand(2, 32).bfloat16(), weight)
    with pytest.raises(ValueError, match="bias"):
        ops.linear(rand(2, 32), weight, rand(9))
    with pytest.raises(TypeError, match="PlainLinear"):
        ops.linear(rand(2, 32), reference.OPERATIONS.pack_linear(rand(8, 32)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(70, 33), (96, 576), (3000, 64)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_likeliest_are_those_of_the_written_product(
    ops: CpuOperations, n: int, k: int, dtype: torch.dtype, ties: bool
) -> None:
    x, matrix, _ = problem(n, k, dtype)
    if ties:
        # Few different rows, so that most of the greatest are there many times.
        matrix = matrix[torch.arange(n) % 7]
    weight = ops.pack_linear(matrix)
    product = ops.linear(x, weight, out_dtype=torch.float32)
    for threads in (1, 2):
        ops.set_threads(threads)
        for rows in (1, 2, 13, 17, 33, 128):
            for sampleable in {1, 31, 64, 65, n - 1, n}:
                ids = ops.likeliest(x[:rows], weight, sampleable)
                assert ids.dtype is torch.int32
                # numpy's argmax is the first of equals, torch's need not be.
                wanted = product[:rows, :sampleable].numpy().argmax(1)
                assert ids.tolist() == wanted.tolist()


def test_the_likeliest_of_impossible_columns_is_the_first(ops: CpuOperations) -> None:
    weight = ops.pack_linear(torch.full((70, 32), -torch.inf))
    x = torch.ones(3, 32)
    assert ops.likeliest(x, weight, 70).tolist() == [0, 0, 0]
    assert ops.likeliest(x[:0], weight, 70).tolist() == []
    for wrong in (0, 71):
        with pytest.raises(ValueError, match="sampleable"):
            ops.likeliest(x, weight, wrong)
    with pytest.raises(ValueError, match="does not fit"):
        ops.likeliest(x[:, 1:], weight, 70)
