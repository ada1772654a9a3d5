"""The operations in C++ (kernels/cpu) and which of their builds runs here.

Knows no models; `kernels.decoder` puts the operations of a whole forward pass behind one call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mtactors.errors import ConfigError
from mtactors.kernels import LinearWeight, _native
from mtactors.kernels.addresses import CODES, address, array, last_contiguous, packed_matrix, stride
from mtactors.kernels.checked import CheckedOperations

if TYPE_CHECKING:
    from torch import Tensor

    from mtactors.kernels.decoder import NativeDecoder, Shape, Weights
    from mtactors.kernels.shared import SharedComm

_ISA_VARIABLE = "MTACTORS_CPU_ISA"
_CPU = torch.device("cpu")
_DIGEST = -1  # in the place of top_n: see digest_row in cpu/logprobs.cpp


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """Which build of the kernels is used.

    `why`: one line. `runnable`: what MTACTORS_CPU_ISA may be set to here, slowest first.
    """

    isa: str
    why: str
    runnable: tuple[str, ...]
    threads: int


class CpuOperations(CheckedOperations):
    """The operations of `mtactors.kernels.Operations`, which documents them."""

    def __init__(self, isa: str) -> None:
        super().__init__(_native.Backend.isa(isa))
        self.isa = isa
        self.name = f"cpu-{isa}"

    def _place(self, tensor: Tensor) -> tuple[torch.device, int]:
        if not tensor.is_cpu:
            raise ValueError(f"a tensor is on {tensor.device}, these kernels run on cpu")
        return _CPU, 0

    def _rows(self, weight: LinearWeight, device: torch.device) -> tuple[int, int, int, int]:
        packed = packed_matrix(weight)
        return packed.address, packed.out_features, packed.in_features, packed.dtype

    def _workspace(self, device: torch.device, stream: int, num_bytes: int) -> tuple[int, int]:
        return 0, 0

    def set_threads(self, count: int, *, pin: bool = False) -> None:
        """Use `count` threads for every operation; `pin` binds each to a CPU of its own."""
        _native.set_threads(count, pin)

    def pack_linear(self, weight: Tensor) -> LinearWeight:
        """Copy a matrix into the layout of the kernels, with all threads."""
        last_contiguous(weight, "weight", 2)
        rows, columns = weight.shape
        return _native.PackedMatrix(
            self.backend, weight.data_ptr(), stride(weight), rows, columns, CODES[weight.dtype]
        )

    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Multiply with a packed matrix."""
        packed = _fitting(x, weight)
        tokens = len(x)
        if bias is not None and (bias.dtype is not x.dtype or len(bias) != packed.out_features):
            raise ValueError(f"bias {tuple(bias.shape)} {bias.dtype} does not fit")
        out = torch.empty(tokens, packed.out_features, dtype=out_dtype or x.dtype)
        self.backend.linear(
            x.data_ptr(),
            stride(x),
            packed,
            address(bias),
            out.data_ptr(),
            packed.out_features,
            tokens,
            CODES[out.dtype],
        )
        return out

    def likeliest(self, x: Tensor, weight: LinearWeight, sampleable: int) -> Tensor:
        """Return the greatest column below `sampleable` of each row of the product: (R,) int32.

        Of equals the lowest. It is what `linear` in float32 and a greedy `sample` give, without the
        product being written and read again.
        """
        packed = _fitting(x, weight)
        if not 0 < sampleable <= packed.out_features:
            raise ValueError(f"{sampleable} sampleable of {packed!r}")
        ids = torch.empty(len(x), dtype=torch.int32)
        self.backend.likeliest(x.data_ptr(), stride(x), packed, ids.data_ptr(), len(x), sampleable)
        return ids

    def digest(self, logits: Tensor, ids: Tensor, sampleable: int) -> Tensor:
        """Return raw logit, maximum and logsumexp of each row: (R, 3) float32.

        Args:
            logits: (R, V) float32; ids from `sampleable` on do not count. `ids`: (R,) int32.
        """
        last_contiguous(logits, "logits", 2)
        rows = len(logits)
        if logits.dtype is not torch.float32 or logits.shape[1] < sampleable or len(ids) != rows:
            raise ValueError(f"logits {tuple(logits.shape)} {logits.dtype} do not fit")
        chosen, rest = torch.empty(rows), torch.empty(rows, 2)
        self.backend.logprobs(
            logits.data_ptr(),
            stride(logits),
            array(ids, "ids", torch.int32, _CPU),
            chosen.data_ptr(),
            0,
            0,
            rest.data_ptr(),
            rows,
            _DIGEST,
            sampleable,
            0,
        )
        return torch.cat((chosen.unsqueeze(1), rest), 1)

    def decoder(
        self,
        weights: Weights,
        shape: Shape,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        comm: SharedComm | None = None,
    ) -> NativeDecoder:
        """Return the whole forward pass as one call; `NativeDecoder` has the arguments."""
        from mtactors.kernels.decoder import NativeDecoder

        return NativeDecoder(self.backend, weights, shape, kv_caches, comm)


def _fitting(x: Tensor, weight: LinearWeight) -> _native.PackedMatrix:
    packed = packed_matrix(weight)
    last_contiguous(x, "x", 2)
    if x.shape[1] != packed.in_features or CODES[x.dtype] != packed.dtype:
        raise ValueError(f"x {tuple(x.shape)} {x.dtype} does not fit a weight of {packed!r}")
    return packed


def load() -> CpuOperations:
    """Return the operations of the fastest build that this CPU runs, or of MTACTORS_CPU_ISA's.

    Raises:
        ConfigError: MTACTORS_CPU_ISA names a build that is not there or does not run here.
    """
    return CpuOperations(info().isa)


def info() -> BuildInfo:
    """Return which build `load` uses and why."""
    runnable = tuple(name for name, _, runs in _native.isa_builds() if runs)
    wanted = os.environ.get(_ISA_VARIABLE, "")
    if not wanted:
        why = "the fastest build that this CPU runs"
        return BuildInfo(runnable[-1], why, runnable, _native.threads())
    if wanted not in runnable:
        reason = f"not a build that runs on this CPU; there are: {', '.join(runnable)}"
        raise ConfigError(_ISA_VARIABLE, f"{wanted!r} is {reason}")
    return BuildInfo(wanted, f"{_ISA_VARIABLE} names it", runnable, _native.threads())
