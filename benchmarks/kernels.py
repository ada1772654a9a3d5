"""How near is each CPU kernel to what the machine allows, and to torch?

Two regimes: few rows, where a kernel waits for memory, and many, where the multipliers are the
limit. Sizes are SmolLM2-135M's; weights and caches are rotated so that they are as cold as in a
model of that size. What is computed row by row finds its rows in the processor's caches, as in a
model, and may pass the limit, which is that of memory. A product's limit is that of the bytes in
which the kernel holds its weights, fewer than their type has and than torch reads. Measures the
machine first: bytes read and operations done per second. Run:

    .venv/bin/python benchmarks/kernels.py --threads 2 [--isa avx2] [--rows 1 8 32 128 512]

Prints a table; the last line is one JSON object with the raw times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

if not __package__:  # as a program it has its own folder on the path, not the one above
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.peers.machine import wide_weights
from benchmarks.report import describe_machine
from mtactors.kernels import AttentionBatch, SamplingBatch, native
from mtactors.kernels.addresses import packed_matrix
from mtactors.kernels.native import CpuOperations

HIDDEN, FEED, HEADS, KV_HEADS, DIM, VOCAB, LAYERS, BLOCK = 576, 1536, 9, 3, 64, 49152, 30, 64
PRODUCTS = {
    "qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
    "o": (HIDDEN, HEADS * DIM),
    "gate_up": (2 * FEED, HIDDEN),
    "down": (HIDDEN, FEED),
    "lm_head": (VOCAB, HIDDEN),
}
# The output layer computes no more rows than sample, and in float32.
HEAD_ROWS = 128
# A cold set of weights or caches: as much as the model's, of which a large cache still holds some.
COLD_BYTES = 256 << 20
# For so long is one thing measured, within 25 times the repeats. The best call counts: torch's
# threads now and then share one core for a while, spinning.
SECONDS = 0.1


@dataclass(frozen=True)
class Limits:
    """What the machine can do with these threads: bytes and floating point operations a second."""

    read: float
    flops: float


@dataclass(frozen=True)
class Work:
    """One thing to measure.

    Args:
        calls: the same work on as many cold copies, called in turn.
        torch_calls: what torch does for it; empty where torch has no such thing.
        num_bytes: that must be moved.
        flops: that must be done by the matrix multipliers.
    """

    name: str
    rows: int
    calls: Sequence[Callable[[], object]]
    torch_calls: Sequence[Callable[[], object]]
    num_bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Timing:
    """Seconds of every repetition, and the roofline's."""

    name: str
    rows: int
    seconds: list[float]
    torch_seconds: list[float]
    limit: float


def clock(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the seconds of each of `repeats` calls or more, after one of each as a warm-up."""
    if not calls:
        return []
    for call in calls:
        call()
    turns = itertools.cycle(calls)
    seconds: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(seconds) < repeats or (len(seconds) < 25 * repeats and time.perf_counter() < end):
        call = next(turns)
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_limits(ops: CpuOperations, dtype: torch.dtype, repeats: int) -> Limits:
    """Measure with the better of torch and our own kernels, each in its best case.

    Bytes count as often as they are read. The weights that our kernels read for it are of a kind
    that is held in all its bits: of others they read less and caches hold more.
    """
    # Pieces of 64 MB in turn: short enough to fall between two bursts of other work.
    rows = (64 << 20) // (4096 * dtype.itemsize)
    piece = wide_weights(rows, 4096, dtype)
    pieces = [piece.contiguous() for _ in range(6)]
    packed = [packed_matrix(ops.pack_linear(piece)) for _ in pieces]
    x = torch.zeros(1, 4096, dtype=dtype)
    reading: list[tuple[int, Sequence[Callable[[], object]]]] = [
        (packed[0].nbytes, [partial(ops.linear, x, weight) for weight in packed]),
        (pieces[0].nbytes, [piece.view(torch.int32).sum for piece in pieces]),
    ]
    read = max(size / min(clock(calls, 2 * repeats)) for size, calls in reading)
    many, weight = torch.randn(1024, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    square = ops.pack_linear(weight)
    multiplying: list[Sequence[Callable[[], object]]] = [
        [lambda: ops.linear(many, square)],
        [lambda: F.linear(many, weight)],
    ]
    fastest = min(min(clock(calls, repeats)) for calls in multiplying)
    return Limits(read, 2 * 1024 * 2048 * 2048 / fastest)


def torch_linear(x: Tensor, matrix: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Return what `ops.linear` does."""
    return F.linear(x, matrix).to(out_dtype)


def products(ops: CpuOperations, rows: int, dtype: torch.dtype) -> Iterator[Work]:
    """Yield the matrix products of a layer and of the head."""
    for name, (n, k) in PRODUCTS.items():
        head = name == "lm_head"
        if head and rows > HEAD_ROWS:
            continue
        out_dtype = torch.float32 if head else dtype
        size = n * k * dtype.itemsize
        matrix = torch.randn(n, k).to(dtype)
        matrices = [matrix.clone() for _ in range(max(1, COLD_BYTES // size))]
        packed = [packed_matrix(ops.pack_linear(matrix)) for matrix in matrices]
        x = torch.randn(rows, k).to(dtype)
        yield Work(
            name,
            rows,
            [partial(ops.linear, x, weight, out_dtype=out_dtype) for weight in packed],
            [partial(torch_linear, x, matrix, out_dtype) for matrix in matrices],
            packed[0].nbytes + rows * (n * out_dtype.itemsize + k * dtype.itemsize),
            2.0 * rows * n * k,
        )


def row_operations(ops: CpuOperations, rows: int, dtype: torch.dtype) -> Iterator[Work]:
    """Yield what is computed row by row."""
    x, residual = (torch.randn(rows, HIDDEN).to(dtype) for _ in range(2))
    weight, gate_up = torch.ones(HIDDEN, dtype=dtype), torch.randn(rows, 2 * FEED).to(dtype)
    width = HEADS + 2 * KV_HEADS
    fused = torch.randn(rows, width, DIM).to(dtype)
    q, k, v = fused[:, :HEADS], fused[:, HEADS : HEADS + KV_HEADS], fused[:, HEADS + KV_HEADS :]
    table, positions = torch.rand(4096, DIM), torch.arange(rows, dtype=torch.int32)
    cache = torch.zeros(-(-rows // BLOCK), BLOCK, KV_HEADS, DIM, dtype=dtype)
    slots, size = torch.arange(rows), dtype.itemsize

    def torch_norm() -> Tensor:
        return F.rms_norm(x + residual, (HIDDEN,), weight, 1e-5)

    def torch_silu() -> Tensor:
        return F.silu(gate_up[:, :FEED]) * gate_up[:, FEED:]

    norm = [lambda: ops.add_rms_norm(x, residual, weight, 1e-5)]
    yield Work("add_rms_norm", rows, norm, [torch_norm], 4 * rows * HIDDEN * size)
    silu = [lambda: ops.silu_and_mul(gate_up)]
    yield Work("silu_and_mul", rows, silu, [torch_silu], 3 * rows * FEED * size)
    rope = [lambda: ops.rope(q, k, positions, table, "half")]
    yield Work("rope", rows, rope, [], 2 * rows * (HEADS + KV_HEADS) * DIM * size)
    write = [lambda: ops.kv_write(k, v, cache, cache, slots)]
    yield Work("kv_write", rows, write, [], 4 * rows * KV_HEADS * DIM * size)


def attention(
    ops: CpuOperations, sequences: int, queries: int, context: int, dtype: torch.dtype
) -> Work:
    """Return attention of `sequences` with `queries` new tokens each at length `context`."""
    blocks = -(-context // BLOCK)
    shape = (sequences * blocks, BLOCK, KV_HEADS, DIM)
    size = shape[0] * BLOCK * KV_HEADS * DIM * dtype.itemsize
    copies = max(1, min(LAYERS, COLD_BYTES // (2 * size)))
    pair = torch.randn(2, *shape).to(dtype)
    caches = [pair.clone().unbind() for _ in range(copies)]
    q = torch.randn(sequences * queries, HEADS, DIM).to(dtype)
    batch = AttentionBatch(
        query_start=torch.arange(0, sequences * queries + 1, queries, dtype=torch.int32),
        seq_lens=torch.full((sequences,), context, dtype=torch.int32),
        block_tables=torch.arange(shape[0], dtype=torch.int32).view(sequences, blocks),
        slot_mapping=torch.empty(0, dtype=torch.int64),
    )
    # torch is given contiguous keys, which an engine with a paged cache would have to gather.
    dense = [
        [c.view(sequences, -1, KV_HEADS, DIM)[:, :context].transpose(1, 2) for c in both]
        for both in caches
    ]
    heads = q.view(sequences, queries, HEADS, DIM).transpose(1, 2)
    mask = torch.ones(queries, context, dtype=torch.bool).tril(context - queries)

    def theirs(k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(heads, k, v, attn_mask=mask, enable_gqa=True)

    pairs = queries * (context - queries) + queries * (queries + 1) / 2
    return Work(
        f"attention {sequences}x{queries} at {context}",
        sequences * queries,
        [partial(ops.paged_attention, q, k, v, batch, DIM**-0.5) for k, v in caches],
        [partial(theirs, k, v) for k, v in dense],
        2 * sequences * context * KV_HEADS * DIM * dtype.itemsize,
        4.0 * sequences * HEADS * DIM * pairs,
    )


def sampling(ops: CpuOperations, rows: int) -> Iterator[Work]:
    """Yield the sampler's ways and logprobs, over float32 logits."""
    logits = torch.randn(rows, VOCAB) * 3
    none, offsets = torch.empty(0, dtype=torch.int32), torch.zeros(rows + 1, dtype=torch.int32)

    def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((rows,), value, dtype=dtype)

    ways = {
        "greedy": (0.0, 0, 1.0),
        "temperature": (1.0, 0, 1.0),
        "top-k 50": (1.0, 50, 1.0),
        "top-p 0.9": (1.0, 0, 0.9),
    }
    for name, (temperature, top_k, top_p) in ways.items():
        batch = SamplingBatch(
            temperature=full(temperature),
            top_k=full(top_k, torch.int32),
            top_p=full(top_p),
            min_p=full(0),
            repetition_penalty=full(1),
            presence_penalty=full(0),
            frequency_penalty=full(0),
            seeds=torch.arange(rows),
            choices=full(0, torch.int32),
            positions=full(0, torch.int32),
            num_logprobs=full(-1, torch.int32),
            prompt_tokens=none,
            prompt_offsets=offsets,
            output_tokens=none,
            output_offsets=offsets,
            bias_ids=none,
            bias_values=torch.empty(0),
            bias_offsets=offsets,
            banned_ids=none,
            banned_offsets=offsets,
            mask=None,
            sampleable=VOCAB,
        )
        calls = [partial(ops.sample, logits, batch)]
        theirs: list[Callable[[], object]] = []
        if name == "greedy":
            theirs = [lambda: logits.argmax(-1)]
        elif name == "temperature":
            theirs = [lambda: torch.multinomial(logits.softmax(-1), 1)]
        yield Work(f"sample {name}", rows, calls, theirs, logits.numel() * 4)
    ids = full(0, torch.int32)
    best = [lambda: ops.logprobs(logits, ids, 5, VOCAB)]
    yield Work("logprobs 5", rows, best, [], logits.numel() * 4)


def everything(ops: CpuOperations, rows: Sequence[int], dtype: torch.dtype) -> Iterator[Work]:
    """Yield all work, each made just before it is measured."""
    for count in rows:
        yield from products(ops, count, dtype)
        yield from row_operations(ops, count, dtype)
    for sequences, queries, context in ((1, 1, 192), (32, 1, 192), (128, 1, 192), (1, 1, 2048)):
        yield attention(ops, sequences, queries, context, dtype)
    for queries, context in ((128, 128), (512, 512), (512, 2048)):
        yield attention(ops, 1, queries, context, dtype)
    for count in (1, 128):
        yield from sampling(ops, count)


def report(timings: Sequence[Timing], limits: Limits) -> None:
    """Print the table, in which `x torch` is how many times as fast as torch a kernel is."""
    print(f"machine: {limits.read / 1e9:.1f} GB/s read, {limits.flops / 1e9:.0f} GFLOP/s")
    head = ("kernel", "rows", "best us", "median us", "limit us", "of limit", "x torch")
    print(f"{head[0]:28}{head[1]:>6}" + "".join(f"{name:>11}" for name in head[2:]))
    for one in timings:
        best, torch_best = min(one.seconds), min(one.torch_seconds, default=0.0)
        ratio = f"{torch_best / best:.2f}" if torch_best else "-"
        times = (best, statistics.median(one.seconds), one.limit)
        print(
            f"{one.name:28}{one.rows:6}"
            + "".join(f"{1e6 * seconds:11.1f}" for seconds in times)
            + f"{one.limit / best:11.0%}{ratio:>11}"
        )


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--isa", choices=native.info().runnable, default=native.info().isa)
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "float16"], default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args(given)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    ops = CpuOperations(arguments.isa)
    ops.set_threads(arguments.threads)
    limits = measure_limits(ops, dtype, arguments.repeats)
    timings = []
    with torch.inference_mode():
        for work in everything(ops, arguments.rows, dtype):
            roof = max(work.num_bytes / limits.read, work.flops / limits.flops)
            ours = clock(work.calls, arguments.repeats)
            theirs = clock(work.torch_calls, arguments.repeats)
            timings.append(Timing(work.name, work.rows, ours, theirs, roof))
    report(timings, limits)
    print(
        json.dumps(
            {
                "benchmark": "kernels",
                "machine": describe_machine(),
                "torch": torch.__version__,
                "kernels": ops.name,
                "arguments": vars(arguments),
                "limits": asdict(limits),
                "timings": [asdict(timing) for timing in timings],
            }
        )
    )


if __name__ == "__main__":
    main()
