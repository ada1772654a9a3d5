"""The golden cases pass for right operations, and each one notices its own broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtactors import kernels
from mtactors.kernels import Operations, golden
from mtactors.kernels.reference import Reference

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Broken(Reference):
    """The reference, but for one operation whose results go through `spoil`."""

    def __init__(self, operation: str, spoil: Callable[..., Any]) -> None:
        right = getattr(self, operation)
        setattr(self, operation, lambda *args, **rest: spoil(right(*args, **rest), *args))


def last_column(result: Tensor, *_: object) -> Tensor:
    result[..., -1] += 0.25 * result.abs().max()
    return result


def nans(result: Tensor, *_: object) -> Tensor:
    return result * float("nan")


def swapped(result: None, q: Tensor, *_: object) -> None:
    q.copy_(q.flip(1))


def forgotten(result: None, k: Tensor, v: Tensor, k_cache: Tensor, *_: object) -> None:
    k_cache[3, 5] = 0


def copied_too_far(result: None, caches: list[Tensor], copies: Tensor) -> None:
    for source, target, tokens in copies.tolist():
        caches[0][target, : tokens + 1] = caches[0][source, : tokens + 1]


def next_id(result: Tensor, *_: object) -> Tensor:
    return result + (torch.arange(len(result)) == 4)


def other_rank(result: kernels.Logprobs, *_: object) -> kernels.Logprobs:
    result.rank[1] += 1
    return result


BREAKS: dict[str, Callable[..., Any]] = {
    "linear": last_column,
    "embedding": last_column,
    "rms_norm": last_column,
    "rope": swapped,
    "silu_and_mul": nans,
    "kv_write": forgotten,
    "copy_blocks": copied_too_far,
    "paged_attention": last_column,
    "sample": next_id,
    "logprobs": other_rank,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_right_operations_are_found_right(name: str, dtype: torch.dtype) -> None:
    ops = kernels.load("cpu", name)
    found = list(golden.check(ops, CPU, dtype))
    assert [finding.operation for finding in found] == list(golden.CASES)
    assert not [finding.describe() for finding in found if not finding.right]
    assert golden.first_wrong(ops, CPU, dtype) is None


def test_every_case_has_a_break() -> None:
    assert BREAKS.keys() == golden.CASES.keys()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", BREAKS)
def test_a_broken_operation_is_named(operation: str, dtype: torch.dtype) -> None:
    ops: Operations = Broken(operation, BREAKS[operation])
    wrong = golden.first_wrong(ops, CPU, dtype)
    assert wrong is not None
    # Attention and copies read what kv_write has written: the one that comes first is named.
    assert wrong.operation == operation
    assert "is off by" in wrong.describe()


def test_an_operation_that_raises_is_named_with_its_reason() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("invalid device function\nsecond line")

    wrong = golden.first_wrong(Broken("rope", fail), CPU, torch.float32)
    assert wrong is not None
    assert wrong.describe() == "rope: failed: invalid device function"


def test_a_torch_that_computes_wrongly_is_found_by_the_stored_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference is compared with itself here: only what is stored can tell."""
    monkeypatch.setattr(torch.Tensor, "rsqrt", torch.Tensor.sqrt)
    monkeypatch.setattr(torch, "rsqrt", torch.sqrt)
    wrong = golden.first_wrong(kernels.load("cpu", "reference"), CPU, torch.float32)
    assert wrong is not None
    assert wrong.operation == "rms_norm"
    assert "torch on this host gives" in wrong.describe()
