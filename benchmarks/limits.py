"""The machine's limits, measured, and what they allow a model: a roofline for each workload.

Two facts of the machine: how fast weights can be read, and how fast matrices can be multiplied.
Two of the model: bytes that every step reads, and operations that every token takes. Attention over
the cache is left out of the operations, so the limit is a little higher than can be reached.

The bytes are those of the checkpoint's weights in the dtype that is served, read at the bandwidth
of bytes that were really read: one limit for all engines. An engine that holds weights in fewer
bits may pass it. mtactors does, without losing any: weights that are bf16 numbers, as most
checkpoints' are, take 12 bits, so a step that is bound by memory may reach 4/3 of the limit in
bfloat16 and 8/3 in float32.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import Batch, Line


@dataclass(frozen=True)
class MachineLimits:
    """`bytes_per_second` for reading as many bytes as the weights have; `flops` per second."""

    bytes_per_second: float
    flops: float


@dataclass(frozen=True)
class ModelCost:
    """What a model takes.

    Args:
        body: multiply-adds for a token in all layers.
        head: multiply-adds for a token that is sampled, to get its logits.
        weight_bytes: read in each step that samples.
        kv_bytes: of the cache, for each token.
        vocabulary: ids below are tokens.
    """

    body: int
    head: int
    weight_bytes: int
    kv_bytes: int
    vocabulary: int


def read_cost(directory: Path, dtype: str) -> ModelCost:
    """Return the cost of a Hugging Face directory, served in a dtype."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    shapes = _shapes(directory)
    embedding = next(
        (
            shape
            for name, shape in shapes.items()
            if name.endswith(("embed_tokens.weight", "wte.weight"))
        ),
        (0, 0),
    )
    heads = [shape for name, shape in shapes.items() if name.endswith("lm_head.weight")]
    head = _size(heads[0] if heads else embedding)
    matrices = sum(_size(shape) for shape in shapes.values() if len(shape) == 2)
    body = matrices - _size(embedding) - (head if heads else 0)
    width = 4 if dtype == "float32" else 2
    size, count = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or size // count
    kv_heads = config.get("num_key_value_heads") or count
    return ModelCost(
        body=body,
        head=head,
        weight_bytes=(body + head) * width,
        kv_bytes=2 * config["num_hidden_layers"] * kv_heads * dim * width,
        vocabulary=config["vocab_size"],
    )


def limit(line: Line, batch: Batch, cost: ModelCost, machine: MachineLimits) -> float:
    """Return the tokens per second that the machine allows on a line of the table."""
    lengths = [len(prompt) for prompt in batch.prompts]
    prefill = max(
        2 * (sum(lengths) * cost.body + len(lengths) * cost.head) / machine.flops,
        cost.weight_bytes / machine.bytes_per_second,
    )
    if line.kind == "prefill":
        return sum(lengths) / prefill
    seconds = 0.0 if line.kind == "decode" else prefill
    tokens = 0 if line.kind == "decode" else len(lengths)
    # After the first token, all streams in lockstep, each until it has all its own.
    for step in range(1, max(batch.max_tokens)):
        active = [
            length + step
            for length, wanted in zip(lengths, batch.max_tokens, strict=True)
            if wanted > step
        ]
        moved = cost.weight_bytes + sum(active) * cost.kv_bytes
        worked = 2 * len(active) * (cost.body + cost.head)
        seconds += max(moved / machine.bytes_per_second, worked / machine.flops)
        tokens += len(active)
    return tokens / seconds


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _shapes(directory: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, dict[str, Any]] = json.loads(file.read(size))
        header.pop("__metadata__", None)
        shapes |= {name: entry["shape"] for name, entry in header.items()}
    return shapes
