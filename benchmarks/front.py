"""What does the front cost? Scheduler, wire, detokenizer and SSE over a worker that does nothing.

Three regimes. The worker answers at once: plans per second that the front can make. It takes
--step-ms for a step, so that every token is handed out by itself: CPU time of a token and of a
request. With --rate it is as fast as a real one: the share of one core that the front takes. CPU
time is that of the front's process alone, all its threads; worker and clients are processes of
their own. Layer `engine` is what `LLM` uses, `http` is the server with streaming chats.

    python benchmarks/front.py [--streams 1 8 32 128 256] [--rate 1000] [--profile]

Every number is the median of --repeats runs, after one run that warms up. The cost of a token is
the slope between runs with few and with many tokens, so that prompts do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

import mtactors
from mtactors.engine_args import EngineArgs
from mtactors.entrypoints.openai.server import HttpServer
from mtactors.entrypoints.openai.service import ServerOptions, Service
from mtactors.entrypoints.serve import bind
from mtactors.families import load_spec
from mtactors.front.engine import Engine
from mtactors.front.supervisor import Supervisor
from mtactors.front.tokenizer import Tokenizer
from mtactors.front.worker_process import (
    Launcher,
    WorkerHandle,
    WorkerSeat,
    launch_process,
    worker_options,
)
from mtactors.hub import resolve_model
from mtactors.sampling_params import SamplingParams

HERE = Path(__file__).resolve().parent
TEXT = (
    "The scheduler decides which rows run in the next step; the workers do as they are told. "
    "A plan is data: it can be written down, read again, and carried out once more. When a worker "
    "dies, nothing is lost but time, for all that was said is known to the one who asked. "
    "In 1969, 12 lines of code – some say 14 – were enough; naïve, perhaps, but they worked. "
)
_BLOCKS = 16384
_PROMPT_TOKENS = 128

#: Runs so many streams of so many tokens each to their end; returns how many pieces readers saw.
Load = Callable[[int, int], Awaitable[int]]


@dataclass(frozen=True)
class Sample:
    """One run: seconds of CPU and of the clock, steps, and pieces: tokens that were not merged."""

    streams: int
    tokens: int
    cpu: float
    wall: float
    steps: int
    pieces: int


@dataclass(frozen=True)
class Cost:
    """What the front costs at so many streams; `us_` are microseconds of CPU.

    `pieces_per_token` is less than 1 where tokens were merged before anybody read them.
    """

    layer: str
    streams: int
    plans_per_second: float
    us_per_plan: float
    us_per_token: float
    us_per_token_spread: float
    us_per_request: float
    pieces_per_token: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, checked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer is used")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per stream")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", nargs="+", default=["engine", "http"])
    parser.add_argument("--step-ms", type=float, default=10.0, help="milliseconds of a step")
    parser.add_argument("--rate", type=float, default=0.0, help="a worker's tokens per second")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    given = parser.parse_args(arguments)
    if min(given.streams) < 1 or given.repeats < 1:
        parser.error("--streams and --repeats must be positive")
    if given.tokens < 8:
        parser.error("--tokens must be at least 8")
    if unknown := set(given.layers) - {"engine", "http"}:
        parser.error(f"--layers: no layer {unknown.pop()!r}; there are: engine, http")
    return given


@dataclass(frozen=True)
class Pace:
    """How fast the worker is: seconds of a step at least, rows per second at most (0: any)."""

    step: float = 0.0
    rate: float = 0.0


def launcher(script: str, *options: str) -> Launcher:
    """Return what starts a worker by a script that lies beside this one."""

    async def launch(seat: WorkerSeat) -> WorkerHandle:
        command = [sys.executable, str(HERE / script), "worker", *worker_options(seat), *options]
        return await launch_process(seat, command)

    return launch


@contextlib.asynccontextmanager
async def running_engine(model: str, streams: int, pace: Pace) -> AsyncIterator[Engine]:
    """Run an engine over a worker that does nothing."""
    directory = resolve_model(model).directory
    spec = load_spec(directory)
    args = EngineArgs(model=str(directory), max_num_seqs=streams, disable_log_stats=True)
    config = args.create_engine_config(directory, spec)
    tokenizer = Tokenizer.load(config.model.tokenizer_directory)
    words = tokenizer.encode(TEXT, add_special_tokens=False)
    with tempfile.NamedTemporaryFile("w", suffix=".ids") as ids:
        ids.write(" ".join(map(str, words)))
        ids.flush()
        options = f"--ids={ids.name}", f"--blocks={_BLOCKS}", f"--step={pace.step}"
        launch = launcher("front_worker.py", *options, f"--rate={pace.rate}")
        supervisor = Supervisor(config, launcher=launch)
        engine = Engine(config, tokenizer, supervisor=supervisor)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


def engine_load(engine: Engine) -> Load:
    """Return a load on the engine itself, read as `LLM` reads."""
    words = engine.tokenizer.encode(TEXT * 4, add_special_tokens=False)
    runs = 0

    async def read(request_id: str, prompt: list[int], params: SamplingParams) -> int:
        pieces = 0
        async for output in engine.submit(request_id, prompt, params):
            pieces, last = pieces + 1, output
        if len(last.outputs[0].token_ids) != params.max_tokens:
            raise RuntimeError(f"{request_id} ended early")
        return pieces

    async def load(streams: int, tokens: int) -> int:
        nonlocal runs
        runs += 1
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        prompts = [words[row % 64 :][:_PROMPT_TOKENS] for row in range(streams)]
        reads = (read(f"{runs}-{row}", prompt, params) for row, prompt in enumerate(prompts))
        return sum(await asyncio.gather(*reads))

    return load


@contextlib.asynccontextmanager
async def running_clients(engine: Engine) -> AsyncIterator[Load]:
    """Run the server in this process and its clients in another; yield a load on it."""
    service = Service(ServerOptions(served_names=("front",), log_requests=False))
    await service.serve(engine)
    listener = bind("127.0.0.1", 0)
    http = HttpServer(service)
    serving = asyncio.ensure_future(http.serve(sockets=[listener]))
    words = engine.tokenizer.encode(TEXT * 4, add_special_tokens=False)
    prompt = engine.tokenizer.decode(words[: _PROMPT_TOKENS - 16])
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "front_client.py"), "--port"),
        *(str(listener.getsockname()[1]), "--model", "front", "--prompt", prompt),
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield client_load(client)
    finally:
        assert client.stdin is not None
        client.stdin.close()
        await client.wait()
        http.should_exit = True
        await serving
        service.close()


def client_load(client: Process) -> Load:
    """Return a load of streams that the client process reads."""
    assert client.stdin is not None and client.stdout is not None
    commands, answers = client.stdin, client.stdout

    async def load(streams: int, tokens: int) -> int:
        commands.write(f"{streams} {tokens}\n".encode())
        answer = await answers.readline()
        if not answer:
            raise RuntimeError("the clients did not get their answers; see above")
        return int(answer) - 3 * streams  # without role, finish reason and [DONE]

    return load


async def sample(engine: Engine, load: Load, streams: int, tokens: int) -> Sample:
    """Run a load and measure this process."""
    steps, cpu, wall = engine.stats().steps, time.process_time(), time.perf_counter()
    pieces = await load(streams, tokens)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Sample(streams, tokens, cpu, wall, engine.stats().steps - steps, pieces)


def cost(layer: str, at_once: list[Sample], short: list[Sample], long: list[Sample]) -> Cost:
    """Return the cost that runs with equal numbers of streams show.

    Args:
        at_once: with a worker that answers at once.
        short, long: pairs of runs with steps of some length, few and many tokens.
    """
    streams, few, many = long[0].streams, short[0].tokens, long[0].tokens
    slopes, requests = [], []
    for one, other in zip(short, long, strict=True):
        slope = (other.cpu - one.cpu) / (streams * (many - few))
        slopes.append(slope * 1e6)
        requests.append((one.cpu / streams - slope * few) * 1e6)
    pieces = sum(run.pieces for run in long) / sum(run.streams * run.tokens for run in long)
    return Cost(
        layer=layer,
        streams=streams,
        plans_per_second=statistics.median(run.steps / run.wall for run in at_once),
        us_per_plan=statistics.median(run.cpu / run.steps * 1e6 for run in at_once),
        us_per_token=statistics.median(slopes),
        us_per_token_spread=max(slopes) - min(slopes),
        us_per_request=statistics.median(requests),
        pieces_per_token=pieces,
    )


@contextlib.asynccontextmanager
async def running_layer(
    given: argparse.Namespace, layer: str, pace: Pace
) -> AsyncIterator[tuple[Engine, Load]]:
    """Run an engine and yield it with a load on one layer of the front."""
    async with running_engine(given.model, max(given.streams), pace) as engine:
        if layer == "engine":
            yield engine, engine_load(engine)
        else:
            async with running_clients(engine) as load:
                yield engine, load


async def repeat(
    given: argparse.Namespace, layer: str, pace: Pace, lengths: Sequence[int]
) -> dict[tuple[int, int], list[Sample]]:
    """Return the samples by (streams, tokens)."""
    samples: dict[tuple[int, int], list[Sample]] = {}
    async with running_layer(given, layer, pace) as (engine, load):
        for streams in given.streams:
            await load(streams, min(lengths))
            for _ in range(given.repeats):
                for tokens in lengths:
                    run = await sample(engine, load, streams, tokens)
                    samples.setdefault((streams, tokens), []).append(run)
    return samples


async def measure(given: argparse.Namespace) -> tuple[list[Cost], list[Sample]]:
    """Measure each layer at each number of streams."""
    costs, runs = [], []
    few, many = given.tokens // 4, given.tokens
    for layer in given.layers:
        at_once = await repeat(given, layer, Pace(), [many])
        stepped = await repeat(given, layer, Pace(step=given.step_ms / 1e3), [few, many])
        for streams in given.streams:
            groups = at_once[streams, many], stepped[streams, few], stepped[streams, many]
            costs.append(cost(layer, *groups))
            runs += [run for group in groups for run in group]
    return costs, runs


async def measure_shares(given: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Return the share of one core by layer and streams, the worker being as fast as --rate."""
    shares: dict[str, dict[int, float]] = {}
    for layer in given.layers:
        async with running_layer(given, layer, Pace(rate=given.rate)) as (engine, load):
            await load(1, 8)
            shares[layer] = {}
            for streams in given.streams:
                # Eight seconds of work, but no fewer than 32 tokens a stream.
                room = engine.config.model.max_model_len - 2 * _PROMPT_TOKENS
                tokens = min(room, max(32, int(8 * given.rate / streams)))
                run = await sample(engine, load, streams, tokens)
                shares[layer][streams] = run.cpu / run.wall
    return shares


async def profile(given: argparse.Namespace) -> None:
    """Print where the time of a run goes, function by function."""
    for layer in given.layers:
        async with running_layer(given, layer, Pace(step=given.step_ms / 1e3)) as (_, load):
            streams = max(given.streams)
            await load(streams, given.tokens // 4)
            profiler = cProfile.Profile()
            profiler.enable()
            await load(streams, given.tokens)
            profiler.disable()
            tokens = streams * given.tokens
            print(f"\n{layer}, {streams} streams: microseconds per token, of {tokens} tokens")
            rows = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
            for (file, line, name), (_, calls, own, total, _) in sorted(
                rows, key=lambda row: -row[1][2]
            )[:30]:
                place = "/".join(Path(file).parts[-2:])
                print(
                    f"{own / tokens * 1e6:8.2f} own {total / tokens * 1e6:8.2f} total "
                    f"{calls / tokens:6.2f} calls  {place}:{line} {name}"
                )


def show(costs: list[Cost], shares: dict[str, dict[int, float]], rate: float) -> str:
    """Return the tables."""
    lines = [
        f"{'layer':8}{'streams':>8}{'plans/s':>10}{'us/plan':>10}{'us/token':>10}"
        f"{'+-':>8}{'us/request':>12}{'pieces/token':>14}{'core at 1000/s':>16}"
    ]
    lines += [
        f"{cost.layer:8}{cost.streams:8d}{cost.plans_per_second:10.0f}{cost.us_per_plan:10.0f}"
        f"{cost.us_per_token:10.1f}{cost.us_per_token_spread / 2:8.1f}{cost.us_per_request:12.0f}"
        f"{cost.pieces_per_token:14.2f}{cost.us_per_token / 10:15.1f}%"
        for cost in costs
    ]
    for layer, by_streams in shares.items():
        lines += [
            f"{layer}: {streams} streams at {rate:g} tokens/s take {share:.1%} of one core"
            for streams, share in by_streams.items()
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(arguments)
    if given.profile:
        uvloop.run(profile(given))
        return
    costs, samples = uvloop.run(measure(given))
    shares = uvloop.run(measure_shares(given)) if given.rate else {}
    print(show(costs, shares, given.rate))
    report = {
        "benchmark": "front",
        "version": mtactors.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "arguments": vars(given),
        "costs": [asdict(cost) for cost in costs],
        "core_shares": shares,
        "runs": [asdict(run) for run in samples],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
