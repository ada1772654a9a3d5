"""The native forward pass: the bits of the operations one by one, in every form of a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor

from mtactors.kernels import AttentionBatch
from mtactors.kernels.decoder import NativeDecoder, Shape
from mtactors.kernels.native import CpuOperations
from mtactors.layers.rotary import Rotation
from mtactors.models.weights import DecoderWeights, LayerWeights

HIDDEN, VOCAB, LAYERS, BLOCK = 96, 130, 2, 16


@dataclass(frozen=True)
class Form:
    """One kind of decoder; `feed` 48 is no multiple of a panel, so silu is not fused."""

    heads: int = 6
    kv_heads: int = 2
    dim: int = 32
    feed: int = 128
    pairing: Literal["half", "interleaved"] | None = "half"
    rotary_dim: int = 32
    bias: bool = False
    head_norms: bool = False
    cast_first: bool = True
    window: int = 0
    logn: bool = False


FORMS = {
    "llama": Form(),
    "qwen": Form(bias=True, logn=True, heads=3, kv_heads=3),
    "glm": Form(pairing="interleaved", rotary_dim=16, bias=True, cast_first=False, feed=48),
    "alibi": Form(pairing=None, heads=5, kv_heads=1, window=20),
    "head norms": Form(head_norms=True, dim=16, rotary_dim=16, window=9),
}
Cache = list[tuple[Tensor, Tensor]]


class Model:
    """Weights and caches of a form, and the forward pass written operation by operation."""

    def __init__(self, form: Form, dtype: torch.dtype, ops: CpuOperations) -> None:
        self.form, self.dtype, self.ops = form, dtype, ops
        self._random = torch.Generator().manual_seed(3)
        self.table = self._rand(64, form.rotary_dim).float()
        embed = ops.pack_linear(self._rand(VOCAB, HIDDEN))
        layers = tuple(self._layer() for _ in range(LAYERS))
        self.weights = DecoderWeights(embed, layers, self._rand(HIDDEN), embed)
        slopes = torch.linspace(0.1, 0.4, form.heads) if form.pairing is None else None
        self.shape = Shape(
            heads=form.heads,
            kv_heads=form.kv_heads,
            head_dim=form.dim,
            norm_eps=1e-5,
            windows=[form.window, 0],
            cast_first=form.cast_first,
            alibi_slopes=slopes,
        )

    def _rand(self, *shape: int) -> Tensor:
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        return (torch.randn(*shape, generator=self._random) * scale).to(self.dtype)

    def _layer(self) -> LayerWeights:
        form, ops = self.form, self.ops
        width = (form.heads + 2 * form.kv_heads) * form.dim
        return LayerWeights(
            input_norm=self._rand(HIDDEN),
            qkv=ops.pack_linear(self._rand(width, HIDDEN)),
            o=ops.pack_linear(self._rand(HIDDEN, form.heads * form.dim)),
            post_norm=self._rand(HIDDEN),
            gate_up=ops.pack_linear(self._rand(2 * form.feed, HIDDEN)),
            down=ops.pack_linear(self._rand(HIDDEN, form.feed)),
            qkv_bias=self._rand(width) if form.bias else None,
            o_bias=self._rand(HIDDEN) if form.bias else None,
            q_norm=self._rand(form.dim) if form.head_norms else None,
            k_norm=self._rand(form.dim) if form.head_norms else None,
        )

    def caches(self) -> Cache:
        shape = (8, BLOCK, self.form.kv_heads, self.form.dim)
        pairs = [(torch.full(shape, 7.0), torch.full(shape, 7.0)) for _ in range(LAYERS)]
        return [(k.to(self.dtype), v.to(self.dtype)) for k, v in pairs]

    def native(self, caches: Cache) -> NativeDecoder:
        return self.ops.decoder(self.weights, self.shape, caches)

    def rotation(self, positions: Tensor) -> Rotation | None:
        if self.form.pairing is None:
            return None
        scale = 1 + positions.float() / 7 if self.form.logn else None
        return Rotation(positions, self.table, self.form.pairing, scale)

    def step_by_step(
        self, ids: Tensor, rotation: Rotation | None, batch: AttentionBatch, caches: Cache
    ) -> Tensor:
        ops, form = self.ops, self.form
        layers = self.weights.layers
        norm = partial(ops.rms_norm, eps=1e-5, cast_first=form.cast_first)
        add_norm = partial(ops.add_rms_norm, eps=1e-5, cast_first=form.cast_first)
        residual = ops.embedding(ids, self.weights.embed)
        x = norm(residual, weight=layers[0].input_norm)
        following = [*(layer.input_norm for layer in layers[1:]), self.weights.norm]
        for index, layer in enumerate(layers):
            fused = ops.linear(x, layer.qkv, layer.qkv_bias)
            q, k, v = fused.view(len(ids), -1, form.dim).split(
                [form.heads, form.kv_heads, form.kv_heads], 1
            )  # type: ignore[no-untyped-call]
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = norm(q, weight=layer.q_norm), norm(k, weight=layer.k_norm)
            if rotation is not None:
                ops.rope(q, k, rotation.rows, rotation.cos_sin, rotation.pairing, rotation.q_scale)
            cache = caches[index]
            ops.kv_write(k, v, cache[0], cache[1], batch.slot_mapping)
            mixed = ops.paged_attention(
                q,
                cache[0],
                cache[1],
                batch,
                form.dim**-0.5,
                window=self.shape.windows[index],
                alibi_slopes=self.shape.alibi_slopes,
            )
            out = ops.linear(mixed, layer.o, layer.o_bias)
            x, residual = add_norm(out, residual, weight=layer.post_norm)
            out = ops.linear(ops.silu_and_mul(ops.linear(x, layer.gate_up)), layer.down)
            x, residual = add_norm(out, residual, weight=following[index])
        return x


def step_of(starts: list[int], counts: list[int]) -> tuple[Tensor, Tensor, AttentionBatch]:
    """Return ids, positions and a batch: sequence s has two blocks, 2s and 2s + 1."""
    lengths = [start + count for start, count in zip(starts, counts, strict=True)]
    places = [(s, p) for s, start in enumerate(starts) for p in range(start, lengths[s])]
    batch = AttentionBatch(
        query_start=torch.tensor([0, *counts]).cumsum(0).int(),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=torch.arange(2 * len(starts), dtype=torch.int32).view(-1, 2),
        slot_mapping=torch.tensor([2 * s * BLOCK + p for s, p in places]),
    )
    ids = torch.tensor([(31 * s + 7 * p) % VOCAB for s, p in places], dtype=torch.int32)
    return ids, torch.tensor([p for _, p in places], dtype=torch.int32), batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", list(FORMS))
def test_same_bits_as_operation_by_operation(
    ops: CpuOperations, form: str, dtype: torch.dtype
) -> None:
    model = Model(FORMS[form], dtype, ops)
    ours, theirs = model.caches(), model.caches()
    native = model.native(ours)
    ops.set_threads(2)
    for starts, counts in (([0, 0], [20, 5]), ([20, 5], [1, 1]), ([21, 6, 0], [1, 3, 17])):
        ids, positions, batch = step_of(starts, counts)
        rotation = model.rotation(positions)
        hidden = native.forward(ids, rotation, batch)
        expected = model.step_by_step(ids, rotation, batch, theirs)
        assert torch.isfinite(expected).all()
        assert torch.equal(hidden, expected)
        assert all(
            torch.equal(a, b)
            for mine, other in zip(ours, theirs, strict=True)
            for a, b in zip(mine, other, strict=True)
        )
        last = batch.query_start[1:].long() - 1
        assert torch.equal(native.forward(ids, rotation, batch, last), expected[last])
        none = native.forward(ids, rotation, batch, last[:0])
        assert none.shape == (0, HIDDEN)


def test_prefill_at_once_in_chunks_and_token_by_token(ops: CpuOperations) -> None:
    model = Model(FORMS["llama"], torch.bfloat16, ops)
    results = []
    for chunk in (30, 17, 1):
        native, parts = model.native(model.caches()), []
        for start in range(0, 30, chunk):
            ids, positions, batch = step_of([start], [min(chunk, 30 - start)])
            parts.append(native.forward(ids, model.rotation(positions), batch))
        results.append(torch.cat(parts))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_tensors_of_the_call_before_are_read_again(ops: CpuOperations) -> None:
    model = Model(FORMS["llama"], torch.bfloat16, ops)
    ours, fresh = model.native(model.caches()), model.native(model.caches())
    ids, positions, batch = step_of([0, 0], [1, 1])
    rotation = model.rotation(positions)
    assert rotation is not None
    assert rotation.rows is positions
    for step in range(4):
        other, places, others = step_of([step, step], [1, 1])
        expected = fresh.forward(other, model.rotation(places), others)
        assert torch.equal(ours.forward(ids, rotation, batch), expected)
        later, _, changed = step_of([step + 1, step + 1], [1, 1])
        ids.copy_(later)
        positions += 1
        batch.seq_lens.copy_(changed.seq_lens)
        batch.slot_mapping.copy_(changed.slot_mapping)


def test_matrices_that_do_not_fit_are_refused(ops: CpuOperations) -> None:
    model = Model(FORMS["llama"], torch.float32, ops)
    with pytest.raises(ValueError, match="matrices"):
        ops.decoder(model.weights, Shape(5, 2, 32, 1e-5, [0, 0]), model.caches())
