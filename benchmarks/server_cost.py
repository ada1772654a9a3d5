"""What does the server add to what the engine alone needs for the same work?

One engine with its worker, --streams streams of --tokens tokens at once, in turns: read inside the
process as `LLM` reads, and as streaming chats over HTTP by clients in another process. Prompts are
in the prefix cache both times. CPU time is that of the front's process and the worker together,
without the clients; wall time has the clients in it, which share the cores.

    python benchmarks/server_cost.py [MODEL] [--streams 64] [--tokens 128]

Prints medians and ratios; the last line is one JSON object with every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import uvloop

if not __package__:  # as a program it has its own folder on the path, not the one above
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.front import Load, engine_load, running_clients
from benchmarks.report import aligned, describe_machine
from mtactors.engine_args import EngineArgs
from mtactors.families import load_spec
from mtactors.front.engine import Engine
from mtactors.front.tokenizer import Tokenizer
from mtactors.hub import resolve_model

LAYERS = ("engine", "http")


@dataclass(frozen=True)
class Run:
    """Seconds of one run: CPU of front and worker together, and of the clock."""

    layer: str
    cpu: float
    wall: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, checked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per stream")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    if min(given.streams, given.tokens, given.repeats) < 1:
        parser.error("--streams, --tokens and --repeats must be positive")
    return given


async def measure(given: argparse.Namespace) -> list[Run]:
    """Run both layers in turns, after one run of each that warms up."""
    directory = resolve_model(given.model).directory
    args = EngineArgs(model=str(directory), max_num_seqs=given.streams, disable_log_stats=True)
    config = args.create_engine_config(directory, load_spec(directory))
    engine = Engine(config, Tokenizer.load(config.model.tokenizer_directory))
    await engine.start()
    (worker,) = psutil.Process().children()
    runs: list[Run] = []
    try:
        async with running_clients(engine) as clients:
            loads: dict[str, Load] = {"engine": engine_load(engine), "http": clients}
            for number in range(given.repeats + 1):
                for layer in LAYERS:
                    cpu, wall = _cpu_seconds(worker), time.perf_counter()
                    await loads[layer](given.streams, given.tokens)
                    cpu, wall = _cpu_seconds(worker) - cpu, time.perf_counter() - wall
                    if number:
                        runs.append(Run(layer, cpu, wall))
    finally:
        await engine.stop()
    return runs


def _cpu_seconds(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return time.process_time() + float(times.user) + float(times.system)


def table(runs: Sequence[Run]) -> str:
    """Return medians and what the server adds."""
    rows = [["seconds", *LAYERS, "added", "range"]]
    for what in ("cpu", "wall"):
        found = {layer: [getattr(r, what) for r in runs if r.layer == layer] for layer in LAYERS}
        pairs = [http / alone - 1 for alone, http in zip(*found.values(), strict=True)]
        medians = [f"{statistics.median(found[layer]):.2f}" for layer in LAYERS]
        added = f"{statistics.median(pairs):+.1%}"
        rows.append([what, *medians, added, f"{min(pairs):+.1%} to {max(pairs):+.1%}"])
    return aligned(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(arguments)
    runs = uvloop.run(measure(given))
    print(table(runs))
    values = {"machine": describe_machine(), "arguments": vars(given)}
    print(json.dumps({"benchmark": "server_cost", **values, "runs": [asdict(r) for r in runs]}))


if __name__ == "__main__":
    main()
