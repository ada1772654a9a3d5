"""Where does a decode step go? The kernels, the worker around them, the front beside it.

A real engine with a real worker that has a clock on every call into native code and on what it does
around them. Of the steps that decode all streams, the middle half by length is averaged, so that
other work on the machine does not count. The front has a core of its own or shares the kernels';
its CPU time is that of this process.

    python benchmarks/step.py [MODEL] [--streams 1 8 32 128] [--threads 2] [--dtype bfloat16]

Prints a table for each number of streams; the last line is one JSON object with every step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

if not __package__:  # as a program it has its own folder on the path, not the one above
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.front import engine_load, launcher
from benchmarks.report import aligned, describe_machine
from mtactors.engine_args import EngineArgs
from mtactors.families import load_spec
from mtactors.front.engine import Engine
from mtactors.front.supervisor import Supervisor
from mtactors.front.tokenizer import Tokenizer
from mtactors.hub import resolve_model

_KERNELS = "kernels: "


@dataclass(frozen=True)
class Step:
    """One decode step: seconds of each part, which make up the whole of it."""

    streams: int
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        """From one plan to the next."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Found:
    """What was measured at one number of streams.

    Args:
        front: seconds of CPU that the front takes for a step.
    """

    streams: int
    steps: list[Step]
    front: float

    def middle(self) -> list[Step]:
        """Return the steps that are neither among the shortest quarter nor the longest."""
        ordered = sorted(self.steps, key=lambda step: step.seconds)
        quarter = len(ordered) // 4
        return ordered[quarter : len(ordered) - quarter]

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part in the mean of these steps, kernels first."""
        steps = self.middle()
        names = {name: None for step in steps for name in step.parts}
        ordered = sorted(names, key=lambda name: not name.startswith(_KERNELS))
        return {
            name: sum(step.parts.get(name, 0.0) for step in steps) / len(steps) for name in ordered
        }

    def outside(self) -> float:
        """Return which share of a step the worker spends outside of kernels."""
        parts = self.parts()
        inside = sum(seconds for name, seconds in parts.items() if name.startswith(_KERNELS))
        return 1 - inside / sum(parts.values())


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, checked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=256, help="new tokens per stream")
    parser.add_argument("--threads", type=int, default=0, help="0: the engine's own choice")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args(arguments)
    if min(given.streams) < 1 or len(set(given.streams)) < len(given.streams):
        parser.error("--streams are positive, each once")
    if given.tokens < 8 or given.threads < 0:
        parser.error("--tokens is at least 8, --threads not negative")
    return given


async def decode(given: argparse.Namespace, notes: Path) -> tuple[dict[int, float], str]:
    """Decode at each number of streams; the worker notes its steps when it ends.

    Returns:
        Seconds of CPU that the front takes for a step, by streams, and the kernels' name.
    """
    directory = resolve_model(given.model).directory
    args = EngineArgs(
        model=str(directory),
        device="cpu",
        dtype=given.dtype,
        cpu_threads=given.threads,
        max_num_seqs=max(given.streams),
        disable_log_stats=True,
    )
    config = args.create_engine_config(directory, load_spec(directory))
    tokenizer = Tokenizer.load(config.model.tokenizer_directory)
    clocked = launcher("step_worker.py", f"--notes={notes}")
    engine = Engine(config, tokenizer, supervisor=Supervisor(config, launcher=clocked))
    fronts = {}
    await engine.start()
    try:
        assert engine.group is not None
        kernels = engine.group.ready[0].kernels
        load = engine_load(engine)
        for streams in given.streams:
            await load(streams, 8)
            cpu, steps = time.process_time(), engine.stats().steps
            await load(streams, given.tokens)
            cpu, steps = time.process_time() - cpu, engine.stats().steps - steps
            fronts[streams] = cpu / steps
    finally:
        await engine.stop()
    return fronts, kernels


def measure(given: argparse.Namespace) -> tuple[list[Found], str]:
    """Return what was found at each number of streams, and the kernels' name."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        fronts, kernels = uvloop.run(decode(given, notes))
        noted = [json.loads(line) for line in notes.read_text().splitlines()]
    steps = [Step(step["rows"], step["parts"]) for step in noted if step["decodes"]]
    return [
        Found(streams, [step for step in steps if step.streams == streams], front)
        for streams, front in fronts.items()
    ], kernels


def table(found: Found) -> str:
    """Return one number of streams for people."""
    parts = found.parts()
    whole = sum(parts.values())
    sums = {
        "a step": whole,
        "outside of kernels": whole * found.outside(),
        "CPU time of the front, beside it": found.front,
    }
    head = [f"decode, {found.streams} stream{'s' * (found.streams > 1)}", "microseconds", "share"]
    rows = [
        [name, f"{seconds * 1e6:.1f}", f"{seconds / whole:.1%}"]
        for name, seconds in (parts | sums).items()
    ]
    return aligned([head, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(arguments)
    found, kernels = measure(given)
    print("\n\n".join(map(table, found)))
    report = {
        "benchmark": "step",
        "machine": describe_machine(),
        "kernels": kernels,
        "arguments": vars(given),
        "outside_of_kernels": {one.streams: one.outside() for one in found},
        "found": [asdict(one) for one in found],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
