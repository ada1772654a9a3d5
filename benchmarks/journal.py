"""What does a journal cost? Decode throughput with --journal against the same without.

Two engines in one process, one with a journal and one without, serve the same prompts in turns, so
that a machine that changes its speed changes it for both. Only decode counts: from the first token
of the last row to the last token. The front's share is small; most of the cost is in the workers,
which add up each row's logits for the digest.

    python benchmarks/journal.py [MODEL] [--streams 1 8 32] [--directory DIR]

For each number of streams the median ratio of the pairs; the ceiling is 1. The last line is one
JSON object with device, versions, arguments and raw speeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import mtactors
from mtactors.engine_args import EngineArgs
from mtactors.entrypoints.engine_thread import EngineThread
from mtactors.front.stream import RequestStream
from mtactors.sampling_params import SamplingParams

TEXT = "Write down what happens, step by step, so that it can be read and done once more. "


async def decode(engine: EngineThread, streams: int, tokens: int, run: str) -> float:
    """Return the tokens per second of all rows together, from when all of them decode."""
    tokenizer = engine.engine.tokenizer
    opened: dict[int, RequestStream] = {}
    for number in range(streams):
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=number)
        ids = tokenizer.encode(f"{number} of {streams}. {TEXT}")
        opened[number] = engine.engine.submit(f"{run}-{number}", ids, params)
    counts = [0] * streams
    began, before = 0.0, 0
    while opened:
        for number in list(opened):
            try:
                output = await opened[number].__anext__()
            except StopAsyncIteration:
                del opened[number]
                continue
            counts[number] = len(output.outputs[0].token_ids)
            if not began and all(counts):
                began, before = time.perf_counter(), sum(counts)
    return (sum(counts) - before) / (time.perf_counter() - began)


def measure(arguments: argparse.Namespace, directory: Path) -> dict[int, dict[str, list[float]]]:
    """Return the speeds by streams, without and with a journal, after runs that warm up."""
    found: dict[int, dict[str, list[float]]] = {}
    engines: dict[str, EngineThread] = {}
    most = max(arguments.streams)
    try:
        for name, journal in (("off", None), ("on", str(directory))):
            engines[name] = EngineThread(
                EngineArgs(
                    model=arguments.model,
                    tensor_parallel_size=arguments.tensor_parallel_size,
                    max_num_seqs=most,
                    kv_cache_memory_bytes=1 << 30,
                    journal=journal,
                    journal_prompts=journal is not None,
                    disable_log_stats=True,
                )
            )
        for streams in arguments.streams:
            speeds: dict[str, list[float]] = {name: [] for name in engines}
            for run in range(arguments.repeats + 1):
                # The first of a pair may meet a machine in another state than the second.
                for name in sorted(engines, reverse=bool(run % 2)):
                    engine = engines[name]
                    tag = f"{streams}-{run}"
                    speed = engine.wait(decode(engine, streams, arguments.tokens, tag))
                    if run:
                        speeds[name].append(speed)
            found[streams] = speeds
    finally:
        for engine in engines.values():
            engine.shutdown()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default=None, help="default: the demo model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="of the journal; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(arguments, arguments.directory or Path(temporary) / "journal")
    ratios: dict[int, float] = {}
    for streams, speeds in found.items():
        for name in ("off", "on"):
            spread = f"{min(speeds[name]):.0f} to {max(speeds[name]):.0f}"
            median = statistics.median(speeds[name])
            print(f"{streams:4} streams, journal {name:3} {median:8.1f} tokens/s ({spread})")
        pairs = zip(speeds["on"], speeds["off"], strict=True)
        ratios[streams] = statistics.median(on / off for on, off in pairs)
        best = max(speeds["on"]) / max(speeds["off"])
        print(f"{streams:4} streams, on / off = {ratios[streams]:.3f} (fastest runs {best:.3f})")
    facts = {
        "benchmark": "journal",
        "machine": platform.processor() or platform.machine(),
        "mtactors": mtactors.__version__,
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "tokens_per_second": found,
        "ratios": ratios,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
