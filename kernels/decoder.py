"""A decoder's whole forward pass as one native call.

`CpuOperations.decoder` makes one. It computes what `models.decoder.Decoder.forward` does with the
operations, rounds where they round and gives the same bits, without Python between two kernels.
Knows no requests; keeps alive what it borrows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Protocol

import torch

from mtactors.kernels import AttentionBatch, LinearWeight, _native
from mtactors.kernels.addresses import CODES, address, array, check_caches, packed_matrix, vector

if TYPE_CHECKING:
    from torch import Tensor

    from mtactors.kernels import Pairing
    from mtactors.kernels.shared import SharedComm


class Layer(Protocol):
    """One layer's weights, as `models.weights.LayerWeights` has them."""

    @property
    def input_norm(self) -> Tensor: ...  # noqa: D102
    @property
    def qkv(self) -> LinearWeight: ...  # noqa: D102
    @property
    def o(self) -> LinearWeight: ...  # noqa: D102
    @property
    def post_norm(self) -> Tensor: ...  # noqa: D102
    @property
    def gate_up(self) -> LinearWeight: ...  # noqa: D102
    @property
    def down(self) -> LinearWeight: ...  # noqa: D102
    @property
    def qkv_bias(self) -> Tensor | None: ...  # noqa: D102
    @property
    def o_bias(self) -> Tensor | None: ...  # noqa: D102
    @property
    def q_norm(self) -> Tensor | None: ...  # noqa: D102
    @property
    def k_norm(self) -> Tensor | None: ...  # noqa: D102


class Weights(Protocol):
    """A rank's weights, as `models.weights.DecoderWeights` has them."""

    @property
    def embed(self) -> LinearWeight: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[Layer]: ...  # noqa: D102
    @property
    def norm(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Shape:
    """What the weights do not say. Heads are this rank's, padding included.

    `windows`: keys that a query of each layer sees, 0 is all. `alibi_slopes`: (heads,) float32.
    `first_row`: of this rank's share of the embedding.
    """

    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    windows: Sequence[int]
    cast_first: bool = True
    first_row: int = 0
    alibi_slopes: Tensor | None = None


class Rotation(Protocol):
    """What a step tells `Operations.rope`, as `layers.rotary.Rotation` has it."""

    @property
    def rows(self) -> Tensor: ...  # noqa: D102
    @property
    def cos_sin(self) -> Tensor: ...  # noqa: D102
    @property
    def pairing(self) -> Pairing: ...  # noqa: D102
    @property
    def q_scale(self) -> Tensor | None: ...  # noqa: D102


class NativeDecoder:
    """A decoder over given weights and caches.

    Args:
        backend: that packed the weights.
        weights: packed by the operations that make this.
        shape: what the weights do not say.
        kv_caches: K and V per layer, (blocks, block_size, kv_heads, head_dim).
        comm: the other ranks; None for one.
    """

    def __init__(
        self,
        backend: _native.Backend,
        weights: Weights,
        shape: Shape,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        comm: SharedComm | None = None,
    ) -> None:
        self._borrowed = (weights, shape, kv_caches, comm)
        self._backend = backend
        embed = packed_matrix(weights.embed)
        self._dtype = weights.norm.dtype
        self._hidden = embed.in_features
        if embed.dtype != CODES[self._dtype]:
            raise ValueError(f"norms are {self._dtype}, the matrices are not")
        slopes = shape.alibi_slopes
        self._native = _native.Decoder(
            backend,
            embed,
            vector(weights.norm, self._dtype, self._hidden),
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            kv_caches[0][0].shape[1],
            shape.first_row,
            shape.norm_eps,
            shape.cast_first,
            shape.head_dim**-0.5,
            0 if slopes is None else array(slopes, "alibi_slopes", torch.float32),
            None if comm is None else comm.native,
        )
        # Of the call before: the same tensors again are where they were.
        self._given: tuple[object, ...] = (None,)
        self._forward: Callable[[int], None]
        self._given_to_choose: tuple[object, ...] = (None,)
        self._choose: Callable[[], None]
        for layer, caches, window in zip(weights.layers, kv_caches, shape.windows, strict=True):
            self._add(layer, caches, shape, window)

    def forward(
        self,
        ids: Tensor,
        rotation: Rotation | None,
        batch: AttentionBatch,
        hidden_rows: Tensor | None = None,
    ) -> Tensor:
        """Write this step's keys and values; return the final, normed hidden states.

        Args:
            ids: (T,) int32.
            rotation: of this step, None without rope.
            batch: which tokens see which blocks.
            hidden_rows: (R,) int64, the tokens whose hidden states are wanted; None is all. The
                last layer computes no more than these.

        Tensors may change between two calls, but not their shapes.

        Returns:
            (R, H) or (T, H), model dtype.
        """
        wanted = (ids if hidden_rows is None else hidden_rows).shape[0]
        out = torch.empty(wanted, self._hidden, dtype=self._dtype)
        if ids.shape[0]:
            self._prepare(ids, rotation, batch, hidden_rows)
            self._forward(out.data_ptr())
        return out

    def next_ids(
        self,
        ids: Tensor,
        rotation: Rotation | None,
        batch: AttentionBatch,
        head: LinearWeight,
        sampleable: int,
        out: Tensor,
    ) -> None:
        """Write the likeliest id after each token: what `forward` and the operation give.

        Nothing is asked of tensors that were in the call before: their shapes stay as they are.

        Args:
            ids: (T,) int32, T > 0. `rotation`, `batch`: as in `forward`.
            head: packed; ids below `sampleable` count, as in `CpuOperations.likeliest`.
            out: (T,) int32.
        """
        self._prepare(ids, rotation, batch, None)
        given = (ids, head, out)
        if not all(map(is_, given, self._given_to_choose)):
            packed, tokens = packed_matrix(head), ids.shape[0]
            fits = packed.in_features == self._hidden and packed.dtype == CODES[self._dtype]
            if not fits or out.shape != (tokens,) or not 0 < sampleable <= packed.out_features:
                raise ValueError(f"{tuple(out.shape)} ids below {sampleable} of {packed!r}")
            self._states = torch.empty(tokens, self._hidden, dtype=self._dtype)
            self._states_address = self._states.data_ptr()
            self._choose = partial(
                self._backend.likeliest,
                self._states_address,
                self._hidden,
                packed,
                array(out, "out", torch.int32),
                tokens,
                sampleable,
            )
            self._given_to_choose = given
        self._forward(self._states_address)
        self._choose()

    def _prepare(
        self,
        ids: Tensor,
        rotation: Rotation | None,
        batch: AttentionBatch,
        hidden_rows: Tensor | None,
    ) -> None:
        """Make `_forward` what computes a step; it takes the address that is written to."""
        given: tuple[object, ...] = (ids, batch, hidden_rows)
        if rotation is not None:
            given += (rotation.rows, rotation.cos_sin, rotation.q_scale)
        if not all(map(is_, given, self._given)):
            self._forward = _call(self._native, ids, rotation, batch, hidden_rows)
            self._given = given

    def _add(self, layer: Layer, caches: tuple[Tensor, Tensor], shape: Shape, window: int) -> None:
        matrices = [packed_matrix(m) for m in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        inner = shape.heads * shape.head_dim
        width = inner + 2 * shape.kv_heads * shape.head_dim
        feed = layer.down.in_features
        expected = [(width, self._hidden), (self._hidden, inner)]
        expected += [(2 * feed, self._hidden), (self._hidden, feed)]
        if [(m.out_features, m.in_features) for m in matrices] != expected:
            raise ValueError(f"the matrices of a layer are not {expected}")
        check_caches(*caches, self._dtype)
        if caches[0].shape[2:] != (shape.kv_heads, shape.head_dim):
            raise ValueError(f"a cache is {tuple(caches[0].shape)}")
        sizes = (
            (layer.q_norm, shape.head_dim),
            (layer.k_norm, shape.head_dim),
            (layer.qkv_bias, width),
            (layer.o_bias, self._hidden),
        )
        for tensor, size in sizes:
            if tensor is not None:
                vector(tensor, self._dtype, size)
        vectors = [
            vector(layer.input_norm, self._dtype, self._hidden),
            vector(layer.post_norm, self._dtype, self._hidden),
            *(address(tensor) for tensor, _ in sizes),
            caches[0].data_ptr(),
            caches[1].data_ptr(),
        ]
        self._native.add_layer(matrices, vectors, window)


def _call(
    native: _native.Decoder,
    ids: Tensor,
    rotation: Rotation | None,
    batch: AttentionBatch,
    hidden_rows: Tensor | None,
) -> Callable[[int], None]:
    """Return a call of the native forward pass; it takes the address that is written to."""
    tokens = ids.shape[0]
    wanted = -1 if hidden_rows is None else hidden_rows.shape[0]
    if wanted > tokens:
        raise ValueError("more hidden rows than tokens")
    scale = None if rotation is None else rotation.q_scale
    return partial(
        native.forward,
        array(ids, "ids", torch.int32),
        tokens,
        0 if rotation is None else array(rotation.rows, "rows", torch.int32),
        0 if rotation is None else array(rotation.cos_sin, "cos_sin", torch.float32),
        0 if scale is None else array(scale, "q_scale", torch.float32),
        0 if rotation is None else rotation.cos_sin.shape[1],
        rotation is not None and rotation.pairing == "interleaved",
        array(batch.query_start, "query_start", torch.int32),
        array(batch.seq_lens, "seq_lens", torch.int32),
        array(batch.block_tables, "block_tables", torch.int32),
        batch.block_tables.shape[1],
        len(batch.seq_lens),
        array(batch.slot_mapping, "slot_mapping", torch.int64),
        0 if hidden_rows is None else array(hidden_rows, "hidden_rows", torch.int64),
        wanted,
    )
