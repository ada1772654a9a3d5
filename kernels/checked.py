"""What the CPU's operations and a device's have in common: checks, results, addresses.

Refuses what would be read or written out of bounds, makes the results on the device of the
arguments, and calls a `_native.Backend`. Knows neither how weights are packed nor which queue
kernels run in: `native.CpuOperations` and `device.DeviceOperations` do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch

from mtactors.kernels import AttentionBatch, LinearWeight, Logprobs, SamplingBatch, _native
from mtactors.kernels.addresses import (
    CODES,
    array,
    check_caches,
    last_contiguous,
    sampling_arrays,
    stride,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mtactors.kernels import Pairing

#: Element types by their numbers in kernels/abi.h.
DTYPES = {code: dtype for dtype, code in CODES.items()}


def shapes(tensors: Sequence[Tensor]) -> str:
    """Return shapes and dtypes for a message."""
    return ", ".join(
        f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors
    )


class CheckedOperations(ABC):
    """Operations of `mtactors.kernels.Operations`, which documents them, by a backend."""

    def __init__(self, backend: _native.Backend) -> None:
        self.backend = backend

    @abstractmethod
    def _place(self, tensor: Tensor) -> tuple[torch.device, int]:
        """Return where a tensor is and the queue to use there.

        Raises:
            ValueError: these kernels do not run there.
        """

    @abstractmethod
    def _rows(self, weight: LinearWeight, device: torch.device) -> tuple[int, int, int, int]:
        """Return address, rows, columns and dtype number of a packed weight."""

    @abstractmethod
    def _workspace(self, device: torch.device, stream: int, num_bytes: int) -> tuple[int, int]:
        """Return address and bytes of scratch, of `num_bytes` or more."""

    def _failed(self, operation: str, code: int, *tensors: Tensor) -> NoReturn:
        """Raise for a code other than 0."""
        text = self.backend.error(code)
        raise RuntimeError(f"{operation} of {shapes(tensors)} failed: {text} (code {code})")

    def embedding(self, ids: Tensor, weight: LinearWeight, first_row: int = 0) -> Tensor:
        """Gather rows of the packed matrix."""
        device, stream = self._place(ids)
        matrix, rows, columns, dtype = self._rows(weight, device)
        tokens = array(ids, "ids", torch.int32)
        out = torch.empty(len(ids), columns, dtype=DTYPES[dtype], device=device)
        code = self.backend.embedding(
            tokens,
            matrix,
            out.data_ptr(),
            len(ids),
            rows,
            columns,
            first_row,
            dtype,
            stream,
        )
        if code:
            self._failed("embedding", code, ids, out)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, *, cast_first: bool = True) -> Tensor:
        """Normalise over the last dimension."""
        device, stream = self._place(x)
        last_contiguous(x, "x", x.dim())
        if x.dim() > 3:
            x = x.reshape(-1, *x.shape[-2:])
        hidden = x.shape[-1]
        outer, outer_stride = (x.shape[0], x.stride(0)) if x.dim() > 1 else (1, 0)
        inner, inner_stride = (x.shape[1], x.stride(1)) if x.dim() > 2 else (1, 0)
        out = torch.empty(x.shape, dtype=x.dtype, device=device)
        code = self.backend.rms_norm(
            x.data_ptr(),
            outer_stride,
            inner_stride,
            0,
            0,
            vector(weight, x.dtype, hidden, device),
            out.data_ptr(),
            outer,
            inner,
            hidden,
            CODES[x.dtype],
            eps,
            cast_first,
            stream,
        )
        if code:
            self._failed("rms_norm", code, x)
        return out

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, cast_first: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Add the residual, then normalise."""
        device, stream = self._place(x)
        rows, hidden = x.shape
        if not x.is_contiguous() or x.shape != residual.shape:
            raise ValueError("x and residual must be contiguous and of one shape")
        total, out = torch.empty_like(x), torch.empty_like(x)
        code = self.backend.rms_norm(
            x.data_ptr(),
            hidden,
            0,
            array(residual, "residual", x.dtype, device),
            total.data_ptr(),
            vector(weight, x.dtype, hidden, device),
            out.data_ptr(),
            rows,
            1,
            hidden,
            CODES[x.dtype],
            eps,
            cast_first,
            stream,
        )
        if code:
            self._failed("add_rms_norm", code, x)
        return out, total

    def rope(
        self,
        q: Tensor,
        k: Tensor,
        rows: Tensor,
        cos_sin: Tensor,
        pairing: Pairing,
        q_scale: Tensor | None = None,
    ) -> None:
        """Rotate q and k in place."""
        device, stream = self._place(q)
        tokens, heads, head_dim = q.shape
        last_contiguous(q, "q", 3)
        last_contiguous(k, "k", 3)
        if len(k) != tokens or k.dtype is not q.dtype or k.device != device:
            raise ValueError(f"k {tuple(k.shape)} {k.dtype} does not go with q {tuple(q.shape)}")
        if len(rows) != tokens or (q_scale is not None and len(q_scale) != tokens):
            raise ValueError(f"rows or q_scale are not those of {tokens} tokens")
        code = self.backend.rope(
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            k.data_ptr(),
            k.stride(0),
            k.stride(1),
            array(rows, "rows", torch.int32, device),
            array(cos_sin, "cos_sin", torch.float32, device),
            0 if q_scale is None else array(q_scale, "q_scale", torch.float32, device),
            tokens,
            heads,
            k.shape[1],
            head_dim,
            cos_sin.shape[1],
            pairing == "interleaved",
            CODES[q.dtype],
            stream,
        )
        if code:
            self._failed("rope", code, q, k, cos_sin)

    def kv_write(
        self,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Copy rows into the caches."""
        device, stream = self._place(k)
        tokens, heads, head_dim = k.shape
        last_contiguous(k, "k", 3)
        last_contiguous(v, "v", 3)
        check_caches(k_cache, v_cache, k.dtype, device)
        if v.shape != k.shape or v.dtype is not k.dtype or v.device != device:
            raise ValueError(f"v {tuple(v.shape)} {v.dtype} does not go with k {tuple(k.shape)}")
        if k_cache.shape[2:] != k.shape[1:] or len(slot_mapping) != tokens:
            raise ValueError(f"k {tuple(k.shape)} does not fit caches or slots")
        code = self.backend.kv_write(
            k.data_ptr(),
            k.stride(0),
            k.stride(1),
            v.data_ptr(),
            v.stride(0),
            v.stride(1),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            array(slot_mapping, "slot_mapping", torch.int64, device),
            tokens,
            heads,
            head_dim,
            CODES[k.dtype],
            stream,
        )
        if code:
            self._failed("kv_write", code, k, k_cache)

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: AttentionBatch,
        scale: float,
        *,
        window: int = 0,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        """Attend with one call for all sequences; block sizes are multiples of 16."""
        device, stream = self._place(q)
        tokens, heads, head_dim = q.shape
        last_contiguous(q, "q", 3)
        check_caches(k_cache, v_cache, q.dtype, device)
        slopes = alibi_slopes
        out = torch.empty(tokens, heads * head_dim, dtype=q.dtype, device=device)
        arguments = (
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            array(batch.query_start, "query_start", torch.int32, device),
            array(batch.seq_lens, "seq_lens", torch.int32, device),
            array(batch.block_tables, "block_tables", torch.int32, device),
            batch.block_tables.shape[1],
            0 if slopes is None else array(slopes, "alibi_slopes", torch.float32, device),
            out.data_ptr(),
            len(batch.seq_lens),
            tokens,
            heads,
            k_cache.shape[2],
            head_dim,
            k_cache.shape[1],
            window,
            CODES[q.dtype],
            scale,
        )
        scratch, held = self._workspace(device, stream, 0)
        code, needed = self.backend.attention(*arguments, scratch, held, stream)
        if needed > held:
            scratch, held = self._workspace(device, stream, needed)
            code, _ = self.backend.attention(*arguments, scratch, held, stream)
        if code:
            self._failed("paged_attention", code, q, k_cache)
        return out

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """Multiply silu of the first half by the second half."""
        device, stream = self._place(gate_up)
        last_contiguous(gate_up, "gate_up", 2)
        tokens, both = gate_up.shape
        out = torch.empty(tokens, both // 2, dtype=gate_up.dtype, device=device)
        code = self.backend.silu_and_mul(
            gate_up.data_ptr(),
            stride(gate_up),
            out.data_ptr(),
            tokens,
            both // 2,
            CODES[gate_up.dtype],
            stream,
        )
        if code:
            self._failed("silu_and_mul", code, gate_up)
        return out

    def copy_blocks(self, caches: list[Tensor], copies: Tensor) -> None:
        """Copy block by block, caches in parallel."""
        if not caches or not len(copies):
            return
        first = caches[0]
        device, stream = self._place(first)
        for cache in caches:
            if not cache.is_contiguous() or cache.shape != first.shape or cache.device != device:
                raise ValueError("caches must be contiguous, of one shape and on one device")
        token_bytes = first[0, 0].numel() * first.element_size()
        code = self.backend.copy_blocks(
            [cache.data_ptr() for cache in caches],
            array(copies, "copies", torch.int64, device),
            len(copies),
            token_bytes * first.shape[1],
            token_bytes,
            stream,
        )
        if code:
            self._failed("copy_blocks", code, first, copies)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """Choose a token per row."""
        device, stream = self._place(logits)
        last_contiguous(logits, "logits", 2)
        if logits.dtype is not torch.float32 or logits.shape[1] < batch.sampleable:
            raise ValueError(f"logits {tuple(logits.shape)} {logits.dtype} do not fit")
        ids = torch.empty(len(logits), dtype=torch.int32, device=device)
        arguments = (
            logits.data_ptr(),
            stride(logits),
            sampling_arrays(batch, device),
            0 if batch.mask is None else batch.mask.shape[1],
            ids.data_ptr(),
            len(logits),
            logits.shape[1],
            batch.sampleable,
        )
        scratch, held = self._workspace(device, stream, 0)
        code, needed = self.backend.sample(*arguments, scratch, held, stream)
        if needed > held:
            scratch, held = self._workspace(device, stream, needed)
            code, _ = self.backend.sample(*arguments, scratch, held, stream)
        if code:
            self._failed("sample", code, logits)
        return ids

    def logprobs(self, logits: Tensor, ids: Tensor, top_n: int, sampleable: int) -> Logprobs:
        """Return raw logprobs."""
        device, stream = self._place(logits)
        last_contiguous(logits, "logits", 2)
        if logits.dtype is not torch.float32 or logits.shape[1] < sampleable:
            raise ValueError(f"logits {tuple(logits.shape)} {logits.dtype} do not fit")
        rows, count = len(logits), min(top_n, sampleable)
        if len(ids) != rows:
            raise ValueError(f"{len(ids)} ids for {rows} rows")
        logprob = torch.empty(rows, device=device)
        rank = torch.empty(rows, dtype=torch.int32, device=device)
        top_ids = torch.empty(rows, count, dtype=torch.int32, device=device)
        top_logprobs = torch.empty(rows, count, device=device)
        code = self.backend.logprobs(
            logits.data_ptr(),
            stride(logits),
            array(ids, "ids", torch.int32, device),
            logprob.data_ptr(),
            rank.data_ptr(),
            top_ids.data_ptr(),
            top_logprobs.data_ptr(),
            rows,
            count,
            sampleable,
            stream,
        )
        if code:
            self._failed("logprobs", code, logits)
        return Logprobs(logprob, rank, top_ids, top_logprobs)
