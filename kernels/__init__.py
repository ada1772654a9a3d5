"""The table of operations: one typed function per operation, and `load` to pick who does them.

`Operations` states the formula, shapes, dtypes and rounding of each operation; every
implementation (`reference` in plain torch, `native` in C++, `device` for MUSA) has an object with
these functions. `x`, `q`, ... have the model dtype (float32, bfloat16 or float16) unless said
otherwise, `->` results too; arithmetic is float32 and rounded once per operation, fused or not.
Knows nothing of models, plans or processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtactors.kernels.native import BuildInfo

Pairing = Literal["half", "interleaved"]


class LinearWeight(Protocol):
    """A weight matrix in the layout that its implementation wants; made by `pack_linear`."""

    @property
    def out_features(self) -> int:
        """N, rows of the original `[N, K]` matrix."""

    @property
    def in_features(self) -> int:
        """K, columns of the original `[N, K]` matrix."""


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Which rows of a step attend to which cache blocks. S sequences, T query tokens.

    `query_start`: (S+1,) int32, tokens query_start[s]..query_start[s+1]-1 belong to s.
    `seq_lens`: (S,) int32, keys of s with this step's own included; the last query of s is at
    position seq_lens[s]-1. `block_tables`: (S, max_blocks) int32, unused entries -1.
    `slot_mapping`: (T,) int64, block*block_size+offset where each token's K and V go; -1 skips.
    """

    query_start: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How each of R rows is sampled. All tensors on the logits' device, contiguous.

    (R,) float32: temperature (0 greedy), top_p (1 off), min_p (0 off), repetition_penalty (1
    off), presence_penalty, frequency_penalty (0 off). (R,) int32: top_k (0 off), choices,
    positions (absolute output position), num_logprobs (-1 none). (R,) int64: seeds.
    Ragged int32 lists as (flat, offsets (R+1,)): prompt_tokens and output_tokens (empty for rows
    without penalties), bias_ids with bias_values float32, banned_ids (stop ids while min_tokens).
    `mask`: (R, ceil(V/32)) int32, bit v%32 of word v//32 set = allowed; None allows all.
    `sampleable`: ids >= it are never sampled and not part of any softmax.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    presence_penalty: Tensor
    frequency_penalty: Tensor
    seeds: Tensor
    choices: Tensor
    positions: Tensor
    num_logprobs: Tensor
    prompt_tokens: Tensor
    prompt_offsets: Tensor
    output_tokens: Tensor
    output_offsets: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    bias_offsets: Tensor
    banned_ids: Tensor
    banned_offsets: Tensor
    mask: Tensor | None
    sampleable: int


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Raw logprobs of one token a row and of the n likeliest.

    `logprob` (R,) float32, `rank` (R,) int32 from 1 (1 + number of ids with a greater logit),
    `top_ids` (R, n) int32 and `top_logprobs` (R, n) float32 in falling order, ties: lower id.
    """

    logprob: Tensor
    rank: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


class Operations(Protocol):
    """The operations that a device must offer."""

    @property
    def name(self) -> str:
        """What is running, e.g. "reference" or "cpu-avx512bf16"."""

    def pack_linear(self, weight: Tensor) -> LinearWeight:
        """Pack a weight matrix once at load.

        Args:
            weight: (N, K), model dtype, contiguous; the caller drops it afterwards.
        """

    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return x @ weight.T + bias: (T, K) -> (T, N).

        One accumulation order over K for every T. `out_dtype` float32 returns the unrounded
        sums (logits, tensor parallel partial sums); default is x's dtype. On a GPU the product is
        the vendor's: its order is its own, and it is rounded to x's dtype before it is widened.
        """

    def embedding(self, ids: Tensor, weight: LinearWeight, first_row: int = 0) -> Tensor:
        """Gather rows ids - first_row: (T,) int32 -> (T, K); ids outside the shard give zeros."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, *, cast_first: bool = True) -> Tensor:
        """Return x * rsqrt(mean(x^2) + eps) * weight over the last dimension, (..., H).

        `cast_first` rounds to the dtype before the product with the weight (Llama), else the
        product is float32 and rounded once (ChatGLM). x may be strided over rows.
        """

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, cast_first: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (rms_norm(s), s) with s = x + residual rounded to the dtype; both (T, H)."""

    def rope(
        self,
        q: Tensor,
        k: Tensor,
        rows: Tensor,
        cos_sin: Tensor,
        pairing: Pairing,
        q_scale: Tensor | None = None,
    ) -> None:
        """Rotate q (T, A, D) and k (T, K, D) in place; both may be strided over tokens.

        `rows`: (T,) int32 rows of `cos_sin`: (P, rotary_dim) float32, cosines then sines.
        Dimensions from rotary_dim on pass through. `q_scale`: (T,) float32 multiplies q (logn)
        after the rotation is rounded, and rounds again.
        """

    def kv_write(
        self,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Store k, v (T, K, D) into caches (blocks, block_size, K, D); slot -1 is skipped."""

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
        """Causal attention over cached keys, prefill chunks and decode rows in one call.

        q: (T, A, D), may be strided over tokens; query head h reads kv head h // (A/K).
        Score = scale * q.k + slope_h * (key position - query position), keys from
        max(0, p - window + 1) (window 0: from 0) to the query's own position p.
        `alibi_slopes`: (A,) float32. K and V come only from the cache. -> (T, A*D).
        """

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up, (T, 2F) -> (T, F); gate is the first half.

        silu(gate) is rounded to the dtype before the product, as in transformers.
        """

    def copy_blocks(self, caches: list[Tensor], copies: Tensor) -> None:
        """Copy leading tokens of blocks within each cache.

        `copies`: (C, 3) int64 rows (source block, target block, tokens), disjoint.
        """

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """Choose a token per row: logits (R, V) float32 -> ids (R,) int32. Logits are kept.

        In this order: mask, banned ids (-inf), bias, repetition penalty (prompt and output
        tokens: logit > 0 divided, else multiplied), frequency and presence penalty (output),
        then greedy argmax (lowest id wins ties), or: divide by temperature, top-k (keep logits
        >= the k-th largest), top-p (fewest likeliest tokens whose probabilities reach p, within
        the kept ones; of equal logits the lower id is the likelier), min-p (keep probabilities
        >= min_p times the largest), and the inverse of the cumulative distribution in id order:
        the first id whose cumulative weight exceeds u times the total. Exact, not approximate:
        weights exp((logit - largest) / temperature), their sums in float64.
        u = ((x0 >> 8) + 0.5) * 2^-24 (float64) with x0 the first word of Philox4x32-10, key
        (seed's low 32 bits, its high 32 bits), counter (position, choice, 0, 0).
        """

    def logprobs(self, logits: Tensor, ids: Tensor, top_n: int, sampleable: int) -> Logprobs:
        """Log-softmax of raw logits (R, V) float32 at `ids` (R,) int32 and the `top_n` best."""


def load(device: str, name: str = "auto") -> Operations:
    """Return the operations for a device.

    Args:
        device: "cpu", "musa" or "cuda".
        name: "auto" for the best there is, "cpu" for the kernels in C++ (MTACTORS_CPU_ISA forces
            one of their builds), "musa" for the MUSA kernels, "emulated-musa" for the same
            sources built for the CPU (to test them, slow), the path of a library of device
            kernels, or "reference" for plain torch. ",-sample" and the like behind a name of
            device kernels leave single operations to plain torch.

    Raises:
        ConfigError: no implementation of that name, no such build for this CPU, or a library
            that cannot be used.
    """
    from mtactors.errors import ConfigError

    base, *rest = name.split(",")
    if base in ("musa", "emulated-musa") or (base == "auto" and device == "musa") or "/" in base:
        from mtactors.kernels import device as devices

        return devices.load(device, base, devices.read_off(rest))
    if rest:
        raise ConfigError("kernels", f"{name!r}: only MUSA's kernels leave operations to torch")
    if base == "cpu" or (base == "auto" and device == "cpu"):
        if device != "cpu":
            raise ConfigError("kernels", f"'cpu' does not run on the device {device!r}")
        from mtactors.kernels import native

        return native.load()
    if base in ("auto", "reference"):
        from mtactors.kernels import reference

        return reference.OPERATIONS
    known = "auto, cpu, musa, emulated-musa, reference, a library's path"
    raise ConfigError("kernels", f"no implementation {base!r}; there are: {known}")


def info() -> BuildInfo:
    """Return which build of the CPU kernels `load` chooses here, and why."""
    from mtactors.kernels import native

    return native.info()
