"""One small case per operation with a known answer: does a device compute what it must?

A case runs twice on the same numbers: with the reference in float32 on the CPU, which must give
the stored sum, and with the operations in question, which must agree with that. Knows nothing of
models, plans or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mtactors.kernels import AttentionBatch, Operations, SamplingBatch
from mtactors.kernels.reference import OPERATIONS as REFERENCE

_CPU = torch.device("cpu")
# What a result may be off by, as a part of the largest value: two units in the last place.
_ROUNDINGS = 2
_FLOAT32_BOUND = 2e-5
# The reference itself, summed up: other orders of addition are fine, another result is not.
_STORED_BOUND = 1e-3


@dataclass(frozen=True, slots=True)
class Finding:
    """How far one operation was off: `error` may be `bound` at most; nan is never right."""

    operation: str
    error: float
    bound: float
    problem: str = ""

    @property
    def right(self) -> bool:
        """Whether the operation computed what it must."""
        return not self.problem and self.error <= self.bound

    def describe(self) -> str:
        """Say it in one line."""
        if self.problem:
            return f"{self.operation}: {self.problem}"
        return f"{self.operation} is off by {self.error:.3g}, {self.bound:.3g} is allowed"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Makes the tensors of a case: the same numbers whatever the device and dtype.

    `rounded`: numbers are rounded to this dtype first, so that both runs see the same.
    """

    device: torch.device
    dtype: torch.dtype
    rounded: torch.dtype

    def floats(self, *shape: int, salt: int) -> Tensor:
        """Return numbers in (-1, 1) that follow from `salt`, in the model dtype."""
        return self.float32(*shape, salt=salt).to(self.rounded).to(self.dtype).to(self.device)

    def float32(self, *shape: int, salt: int) -> Tensor:
        """Return the same in float32, on the host."""
        count = torch.Size(shape).numel()
        numbers = (torch.arange(count) * 7919 + salt * 104729 + 12345) % 1009
        return ((numbers - 504) / 505.0).float().view(shape)

    def int32(self, *values: int) -> Tensor:
        """Return (n,) int32."""
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def real(self, *values: float) -> Tensor:
        """Return (n,) float32."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)


Case = Callable[[Operations, Inputs], list[Tensor]]


def check(ops: Operations, device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    """Yield what each operation was off by, on a device and in a dtype."""
    truth_inputs = Inputs(_CPU, torch.float32, dtype)
    inputs = Inputs(device, dtype, dtype)
    stored_inputs = Inputs(_CPU, torch.float32, torch.float32)
    for name, (case, stored) in CASES.items():
        problem = _compare_stored(case(REFERENCE, stored_inputs), stored)
        if problem:
            yield Finding(name, float("nan"), 0.0, problem)
            continue
        try:
            found = case(ops, inputs)
            yield _compare(name, found, case(REFERENCE, truth_inputs))
        except (RuntimeError, ValueError, TypeError) as error:  # the device refuses, or is gone
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield Finding(name, float("nan"), 0.0, f"failed: {first}")


def first_wrong(ops: Operations, device: torch.device, dtype: torch.dtype) -> Finding | None:
    """Return the first operation that computes wrongly, None if none does."""
    return next((finding for finding in check(ops, device, dtype) if not finding.right), None)


def _compare(name: str, found: list[Tensor], truth: list[Tensor]) -> Finding:
    """Return how far the worst of a case's results is off."""
    findings = [_off(name, *pair) for pair in zip(found, truth, strict=True)]
    wrong = [finding for finding in findings if not finding.right]
    return wrong[0] if wrong else max(findings, key=lambda finding: finding.error)


def _off(name: str, found: Tensor, truth: Tensor) -> Finding:
    """Compare numbers relative to the largest one; ids must be the same."""
    difference = (found.detach().cpu().double() - truth.double()).abs().max().item()
    if not truth.is_floating_point():
        return Finding(name, difference, 0.0)
    bound = max(_ROUNDINGS * torch.finfo(found.dtype).eps, _FLOAT32_BOUND)
    return Finding(name, difference / max(truth.double().abs().max().item(), 1e-30), bound)


def _compare_stored(results: list[Tensor], stored: float) -> str:
    total = checksum(results)
    if abs(total - stored) <= _STORED_BOUND * max(1.0, abs(stored)):
        return ""
    return f"torch on this host gives {total:.6g} instead of {stored:.6g}"


def checksum(results: list[Tensor]) -> float:
    """Return a sum that depends on every value and its place."""
    total = 0.0
    for tensor in results:
        flat = tensor.double().flatten()
        total += float((flat * (1 + torch.arange(len(flat)) % 7)).sum())
    return total


def _linear(ops: Operations, make: Inputs) -> list[Tensor]:
    weight = ops.pack_linear(make.floats(48, 64, salt=1))
    x, bias = make.floats(5, 64, salt=2), make.floats(48, salt=3)
    # A device may round before it widens: what counts are the bits of the model's dtype.
    wide = ops.linear(x[:1], weight, out_dtype=torch.float32).to(make.dtype)
    return [ops.linear(x, weight, bias), wide]


def _embedding(ops: Operations, make: Inputs) -> list[Tensor]:
    weight = ops.pack_linear(make.floats(48, 64, salt=4))
    return [ops.embedding(make.int32(7, 11, 47, 0), weight, first_row=7)]


def _rms_norm(ops: Operations, make: Inputs) -> list[Tensor]:
    x, weight = make.floats(5, 64, salt=5), make.floats(64, salt=6)
    residual = make.floats(5, 64, salt=7)
    return [
        ops.rms_norm(x, weight, 1e-5),
        ops.rms_norm(x, weight, 1e-5, cast_first=False),
        *ops.add_rms_norm(x, residual, weight, 1e-5),
    ]


def _rope(ops: Operations, make: Inputs) -> list[Tensor]:
    angles = 3 * make.float32(9, 16, salt=8)
    table = torch.cat([angles.cos(), angles.sin()], dim=-1).to(make.device)
    results = []
    for pairing, scale in (("half", None), ("interleaved", make.real(1.0, 1.5, 0.5, 1.25))):
        q, k = make.floats(4, 4, 48, salt=9), make.floats(4, 2, 48, salt=10)
        ops.rope(q, k, make.int32(0, 3, 8, 5), table, pairing, scale)  # type: ignore[arg-type]
        results += [q, k]
    return results


def _silu_and_mul(ops: Operations, make: Inputs) -> list[Tensor]:
    return [ops.silu_and_mul(4 * make.floats(5, 64, salt=11))]


def _caches(ops: Operations, make: Inputs) -> tuple[Tensor, Tensor]:
    """Return K and V of two sequences in blocks 2, 0 and 1, 3, the rest of the blocks unused."""
    shape = (6, 64, 2, 32)
    k_cache = torch.zeros(shape, dtype=make.dtype, device=make.device)
    v_cache = torch.zeros(shape, dtype=make.dtype, device=make.device)
    slots = [2 * 64 + at for at in range(64)] + list(range(3)) + [-1]
    slots += [64 + at for at in range(64)] + [3 * 64 + at for at in range(6)]
    k, v = make.floats(len(slots), 2, 32, salt=12), make.floats(len(slots), 2, 32, salt=13)
    mapping = torch.tensor(slots, dtype=torch.int64, device=make.device)
    ops.kv_write(k, v, k_cache, v_cache, mapping)
    return k_cache, v_cache


def _kv_write(ops: Operations, make: Inputs) -> list[Tensor]:
    return list(_caches(ops, make))


def _copy_blocks(ops: Operations, make: Inputs) -> list[Tensor]:
    caches = list(_caches(ops, make))
    rows = [(2, 4, 64), (1, 5, 9)]
    ops.copy_blocks(caches, torch.tensor(rows, dtype=torch.int64, device=make.device))
    return caches


def _attention(ops: Operations, make: Inputs) -> list[Tensor]:
    """A chunk of 7 over a block's edge and a decode row, plain, and with window and slopes."""
    k_cache, v_cache = _caches(ops, make)
    tables = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32, device=make.device)
    unused = torch.full((8,), -1, dtype=torch.int64, device=make.device)
    batch = AttentionBatch(make.int32(0, 7, 8), make.int32(67, 70), tables, unused)
    q = 3 * make.floats(8, 4, 32, salt=14)
    slopes = make.real(0.5, 0.25, 0.125, 0.0625)
    scale = 32**-0.5
    return [
        ops.paged_attention(q, k_cache, v_cache, batch, scale),
        ops.paged_attention(q, k_cache, v_cache, batch, scale, window=9, alibi_slopes=slopes),
    ]


def _sample(ops: Operations, make: Inputs) -> list[Tensor]:
    """Six rows: greedy, penalties and bans, seeded, top-k, top-p, and min-p with a mask."""
    logits = (8 * make.float32(6, 77, salt=15)).to(make.device)
    mask = torch.full((6, 3), -1, dtype=torch.int32)
    mask[5] = 0x2AAAAAAA
    batch = SamplingBatch(
        temperature=make.real(0.0, 0.0, 1.0, 1.5, 0.8, 1.2),
        top_k=make.int32(0, 0, 0, 5, 0, 0),
        top_p=make.real(1, 1, 1, 1, 0.7, 1),
        min_p=make.real(0, 0, 0, 0, 0, 0.05),
        repetition_penalty=make.real(1, 1.3, 1, 1, 1, 1),
        presence_penalty=make.real(0, 0.5, 0, 0, 0, 0),
        frequency_penalty=make.real(0, 0.25, 0, 0, 0, 0),
        seeds=torch.arange(40, 46, device=make.device),
        choices=make.int32(0, 0, 1, 0, 2, 0),
        positions=make.int32(0, 3, 5, 7, 11, 13),
        num_logprobs=make.int32(-1, -1, -1, -1, -1, -1),
        prompt_tokens=make.int32(4, 9, 33),
        prompt_offsets=make.int32(0, 0, 3, 3, 3, 3, 3),
        output_tokens=make.int32(33, 33, 60),
        output_offsets=make.int32(0, 0, 3, 3, 3, 3, 3),
        bias_ids=make.int32(70, 3),
        bias_values=make.real(2.5, -4.0),
        bias_offsets=make.int32(0, 0, 0, 2, 2, 2, 2),
        banned_ids=make.int32(int(logits[1].argmax()), 76),
        banned_offsets=make.int32(0, 0, 2, 2, 2, 2, 2),
        mask=mask.to(make.device),
        sampleable=75,
    )
    return [ops.sample(logits, batch)]


def _logprobs(ops: Operations, make: Inputs) -> list[Tensor]:
    logits = (8 * make.float32(3, 77, salt=16)).to(make.device)
    found = ops.logprobs(logits, make.int32(0, 40, 74), 4, 75)
    return [found.logprob, found.rank, found.top_ids, found.top_logprobs]


# name -> the case and the sum of what the reference gives in float32.
CASES: dict[str, tuple[Case, float]] = {
    "linear": (_linear, 1722.683),
    "embedding": (_embedding, 18.6871),
    "rms_norm": (_rms_norm, -9.4239),
    "rope": (_rope, 14.2527),
    "silu_and_mul": (_silu_and_mul, -360.5387),
    "kv_write": (_kv_write, -22.8535),
    "copy_blocks": (_copy_blocks, -3.9703),
    "paged_attention": (_attention, -4.0033),
    "sample": (_sample, 921.0),
    "logprobs": (_logprobs, 1437.3823),
}
