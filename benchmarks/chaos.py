"""Do clients notice what goes wrong? Killed workers, forged frames, hostile clients, leaks.

A server runs as users run it; 16 streams of mixed kinds are read to the end undisturbed, then again
while something is done to the server, and every stream must have the same text, ids, logprobs and
finish reasons. The parts, each with a server of its own:

    kills    workers are killed, --runs times once at a random token, then --kills times in one run
    frames   --frames random or mutated frames into each socket that the front binds
    clients  noise, slow clients, half-open connections, resets, readers that do not read
    leaks    --requests requests, half of them dropped, restarts in between: nothing may be left

    python benchmarks/chaos.py [MODEL] [--parts kills frames clients leaks] [--tp 1 2] [--quick]

At last each server is told to end and must leave nothing behind. Progress goes to stderr. stdout
gets a table and, last, one JSON object; the exit code is 1 if anything was not as it has to be.
Numbers in seconds are of a machine that may be busy: they are no benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # as a program it has its own folder on the path, not the one above
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.hardship import clients, frames, kills, leaks
from benchmarks.hardship.server import Server, serve_command
from benchmarks.hardship.streams import say
from benchmarks.report import describe_machine

PARTS = ("kills", "frames", "clients", "leaks")
#: Little of everything: does the proof itself work?
QUICK = {
    "runs": 2, "kills": 3, "tokens": 48, "frames": 20_000, "hostile_runs": 2, "crowd": 3,
    "requests": 160,
}  # fmt: skip
#: So that the cache is full before memory is compared, and choices are preempted.
_SMALL_CACHE = ["--kv-cache-memory-bytes=33554432", "--max-model-len=1024"]
Result = dict[str, Any]


def run_part(
    arguments: argparse.Namespace,
    name: str,
    options: list[str],
    prove: Callable[[Server], Coroutine[Any, Any, Result]],
    tp: int = 1,
) -> Result:
    """Start a server for a part, let it prove what it has to, and end the server in any case."""
    say(f"== {name}")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="chaos") as directory:
        options = [*arguments.server_options.split(), *options]
        command = serve_command(arguments.model, tp, options)
        server = Server(command, name, Path(directory))
        try:
            server.wait_until_it_serves()
            return asyncio.run(prove(server))
        finally:
            server.process.kill()
            server.process.wait()


def run_frames(arguments: argparse.Namespace) -> Result:
    """Run the part that needs to know of sockets before the server serves."""
    say("== frames")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="chaos") as directory:
        place = Path(directory)
        options = arguments.server_options.split()
        command = serve_command(arguments.model, arguments.fuzz_tp, options)
        server = Server(command, "frames", place)
        (place / "s").mkdir()
        names = frames.SocketNames(server.temporary, place / "s")
        try:
            server.wait_until_it_serves()
            return asyncio.run(frames.prove(server, arguments, names))
        finally:
            names.close()
            server.process.kill()
            server.process.wait()


def results(arguments: argparse.Namespace) -> Iterator[tuple[str, Result, list[tuple[str, str]]]]:
    """Run the parts; yield name, facts and lines of the table of each."""
    if "kills" in arguments.parts:
        for tp in arguments.tp:
            each = partial(kills.prove, arguments=arguments, tp=tp)
            found = run_part(arguments, f"kills{tp}", [], each, tp)
            yield f"kills, tp {tp}", found, kills.rows(found)
    if "frames" in arguments.parts:
        found = run_frames(arguments)
        yield "frames", found, frames.rows(found)
    if "clients" in arguments.parts:
        found = run_part(arguments, "clients", [], partial(clients.prove, arguments=arguments))
        yield "clients", found, clients.rows(found)
    if "leaks" in arguments.parts:
        prove = partial(leaks.prove, arguments=arguments)
        found = run_part(arguments, "leaks", _SMALL_CACHE, prove)
        yield "leaks", found, leaks.rows(found)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2], help="for the kills")
    parser.add_argument("--runs", type=int, default=20, help="runs with one kill each")
    parser.add_argument("--kills", type=int, default=20, help="in the one run with many")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of a choice")
    parser.add_argument("--frames", type=int, default=1_000_000, help="into each socket")
    parser.add_argument("--fuzz-tp", type=int, default=2, help="ranks while frames are sent")
    parser.add_argument("--hostile-runs", type=int, default=5, help="of the 16 streams")
    parser.add_argument("--crowd", type=int, default=12, help="hostile clients of each kind")
    parser.add_argument("--requests", type=int, default=2000, help="to find leaks with")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=[], choices=["structured", "tools"])
    parser.add_argument("--server-options", default="", help="further flags of mtactors serve")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    return arguments


def main() -> int:
    """Run the parts and print what came of them."""
    arguments = parse()
    found: dict[str, Result] = {}
    lines = ["| What was done | What came of it |", "|---|---|"]
    for name, result, rows in results(arguments):
        found[name] = result
        verdict = "" if result["good"] else "**not as it has to be:** "
        lines += [f"| {what} | {verdict}{outcome} |" for what, outcome in rows]
        say("\n".join(lines[-len(rows) :]))
    print("\n".join(lines))
    facts = {"machine": describe_machine(), "arguments": vars(arguments), "results": found}
    print(json.dumps(facts, default=str))
    return 0 if all(result["good"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
