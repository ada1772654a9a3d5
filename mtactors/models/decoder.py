"""The one decoder of all families, put together from a spec and one rank's weights.

Pre-norm, RMSNorm, causal attention, SwiGLU. Knows neither checkpoints nor requests; every number
is computed by the operation table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtactors.kernels import AttentionBatch, LinearWeight, Operations
from mtactors.kernels.shared import SharedComm
from mtactors.layers.attention import Attention, KvPair
from mtactors.layers.comm import Comm
from mtactors.layers.embedding import Embedding, Head
from mtactors.layers.linear import ColumnParallel, RowParallel
from mtactors.layers.mlp import Mlp
from mtactors.layers.norm import RmsNorm
from mtactors.layers.rotary import Rotary, Rotation, alibi_slopes
from mtactors.layers.sharding import Shard
from mtactors.models.weights import DecoderWeights, LayerWeights


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: RmsNorm
    attention: Attention
    post_norm: RmsNorm
    mlp: Mlp


class _WholePass(Protocol):
    def forward(
        self,
        ids: Tensor,
        rotation: Rotation | None,
        batch: AttentionBatch,
        hidden_rows: Tensor | None = None,
    ) -> Tensor:
        """Compute what `Decoder.forward` does, to the bit."""

    def next_ids(
        self,
        ids: Tensor,
        rotation: Rotation | None,
        batch: AttentionBatch,
        head: LinearWeight,
        sampleable: int,
        out: Tensor,
    ) -> None:
        """Compute what `Decoder.next_ids` does."""


@runtime_checkable
class _Fusing(Protocol):
    """Operations that can also run a whole forward pass as one call."""

    def decoder(
        self,
        weights: DecoderWeights,
        shape: object,
        kv_caches: Sequence[KvPair],
        comm: SharedComm | None = None,
    ) -> _WholePass: ...


class Decoder:
    """A decoder, or one rank's share of it.

    Args:
        shard: which share.
        weights: packed by `ops`, in the dtype of their norms.
        ops: computes everything.
        comm: the other ranks.
        max_positions: positions that may come; tables are made for them.
    """

    def __init__(
        self,
        shard: Shard,
        weights: DecoderWeights,
        ops: Operations,
        comm: Comm,
        max_positions: int,
    ) -> None:
        self.spec = shard.spec
        self.shard = shard
        self.weights = weights
        self.dtype = weights.norm.dtype
        self.device = weights.norm.device
        self._ops = ops
        self._comm = comm
        self._rotary = Rotary(self.spec, max_positions, self.device)
        self._slopes = self._local_slopes()
        self._embed = Embedding(ops, comm, weights.embed, self.dtype, shard.first_row)
        self._layers = [self._layer(*pair) for pair in enumerate(weights.layers)]
        self._norm = self._rms_norm(weights.norm)
        self._head = Head(ops, comm, weights.head, self.spec.vocab_rows)
        self._sampleable = self.spec.sampleable_ids
        self._whole: _WholePass | None = None
        self._bound: Sequence[KvPair] = ()

    @property
    def kv_heads(self) -> int:
        """KV heads of this rank, padding included."""
        return len(self.shard.kv_sources)

    def bind(self, kv_caches: Sequence[KvPair]) -> None:
        """Name the caches that `forward` will be given, where that makes it faster.

        Operations that can run the whole pass as one native call do so from now on. The path
        through the layers stays the reference: both give the same bits.
        """
        comm = self._comm if isinstance(self._comm, SharedComm) else None
        if not isinstance(self._ops, _Fusing) or (comm is None and self._comm.world_size > 1):
            return
        from mtactors.kernels.decoder import Shape

        shape = Shape(
            heads=len(self.shard.q_sources),
            kv_heads=self.kv_heads,
            head_dim=self.spec.head_dim,
            norm_eps=self.spec.norm_eps,
            windows=self.spec.windows,
            cast_first=self.spec.norm_cast_first,
            first_row=self.shard.first_row,
            alibi_slopes=self._slopes,
        )
        self._whole = self._ops.decoder(self.weights, shape, kv_caches, comm)
        self._bound = kv_caches

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        kv_caches: Sequence[KvPair],
        alphas: npt.NDArray[np.float64] | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Compute the final, normed hidden states and write this step's keys and values.

        Args:
            ids: (T,) int32.
            positions: (T,) int32.
            batch: which tokens see which blocks.
            kv_caches: K and V per layer, (blocks, block_size, kv_heads, head_dim).
            alphas: (T,) on the host, rope alpha of each token's request; None when all are 1.
            wanted: (R,) int64, tokens whose hidden states are returned; None is all.

        Returns:
            (T, H) or (R, H), model dtype, the same on every rank.
        """
        rotation = self._rotary.rotation(positions, alphas)
        if self._whole is not None and kv_caches is self._bound:
            return self._whole.forward(ids, rotation, batch, wanted)
        residual = self._embed(ids)
        x = self._layers[0].input_norm(residual)
        following = [*(layer.input_norm for layer in self._layers[1:]), self._norm]
        for layer, next_norm, cache in zip(self._layers, following, kv_caches, strict=True):
            x, residual = layer.post_norm.add(layer.attention(x, rotation, batch, cache), residual)
            x, residual = next_norm.add(layer.mlp(x), residual)
        return x if wanted is None else x[wanted]

    def in_one_go(self, kv_caches: Sequence[KvPair]) -> bool:
        """Return whether `next_ids` can be called: one rank, these caches bound."""
        bound = self._whole is not None and kv_caches is self._bound
        return bound and self._comm.world_size == 1 and self._head.chooses

    def next_ids(
        self,
        ids: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        alphas: npt.NDArray[np.float64] | None,
        out: Tensor,
    ) -> None:
        """Write the likeliest id after each token to `out`: `likeliest` of `forward`.

        The quickest step there is where all tensors are those of the step before, in place: they
        are not looked at again. Keys and values go to the caches that are bound.

        Args:
            ids: (T,) int32, T > 0. `positions`, `batch`, `alphas`: as in `forward`.
            out: (T,) int32.
        """
        assert self._whole is not None, "in_one_go() says whether it can be called"
        rotation = self._rotary.rotation(positions, alphas)
        self._whole.next_ids(ids, rotation, batch, self.weights.head, self._sampleable, out)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of rows of `forward`'s result: (R, H) -> (R, vocab_rows) float32."""
        return self._head(hidden)

    @property
    def chooses(self) -> bool:
        """Whether `likeliest` costs less than `logits` and a greedy sampler."""
        return self._head.chooses

    def likeliest(self, hidden: Tensor) -> Tensor:
        """Return the likeliest sampleable id of rows of `forward`'s result: (R,) int32."""
        return self._head.likeliest(hidden, self._sampleable)

    def _layer(self, index: int, weights: LayerWeights) -> _Layer:
        ops, comm = self._ops, self._comm
        attention = Attention(
            ops,
            ColumnParallel(ops, weights.qkv, weights.qkv_bias),
            RowParallel(ops, comm, weights.o, weights.o_bias),
            heads=len(self.shard.q_sources),
            kv_heads=self.kv_heads,
            head_dim=self.spec.head_dim,
            window=self.spec.windows[index],
            q_norm=None if weights.q_norm is None else self._rms_norm(weights.q_norm),
            k_norm=None if weights.k_norm is None else self._rms_norm(weights.k_norm),
            slopes=self._slopes,
        )
        mlp = Mlp(ops, ColumnParallel(ops, weights.gate_up), RowParallel(ops, comm, weights.down))
        return _Layer(
            self._rms_norm(weights.input_norm), attention, self._rms_norm(weights.post_norm), mlp
        )

    def _rms_norm(self, weight: Tensor) -> RmsNorm:
        return RmsNorm(self._ops, weight, self.spec.norm_eps, self.spec.norm_cast_first)

    def _local_slopes(self) -> Tensor | None:
        """Return the slopes of this rank's heads, taken from those of the whole model."""
        if not self.spec.alibi:
            return None
        slopes = alibi_slopes(self.spec.num_heads)
        local = [slopes[head] if head >= 0 else 0.0 for head in self.shard.q_sources]
        return torch.tensor(local, dtype=torch.float32, device=self.device)
