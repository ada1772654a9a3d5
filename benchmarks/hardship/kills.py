"""Workers are killed while streams run: once at a random token, again and again in one run.

Every stream must have the same text, ids, logprobs and finish reasons, over the connection that
it began with.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.hardship.server import Server
from benchmarks.hardship.streams import (
    PATIENCE,
    Answer,
    Load,
    compare,
    requests,
    say,
    undisturbed,
)


async def disturbed(
    server: Server, load: Load, moments: Sequence[int], rng: random.Random
) -> tuple[list[Answer], int]:
    """Run a load; when so many tokens have come, kill a worker, for each of the moments.

    Returns:
        the answers, and the number of kills.
    """
    running = asyncio.ensure_future(load.run())
    kills = 0
    for moment in moments:
        # At least some tokens of the group that came after the last kill.
        reached = load.reached(max(moment, load.tokens + 4 * bool(kills)))
        await asyncio.wait((running, reached), return_when=asyncio.FIRST_COMPLETED)
        while not running.done():
            workers = server.workers()
            if workers:
                rng.choice(workers).kill()
                kills += 1
                break
            await asyncio.sleep(0.02)  # they are being replaced
    return await asyncio.wait_for(running, PATIENCE), kills


async def prove(server: Server, arguments: argparse.Namespace, tp: int) -> dict[str, Any]:
    """Run everything against one server."""
    rng = random.Random(arguments.seed + tp)
    bodies = requests(arguments.tokens, arguments.without)
    expected, total = await undisturbed(server.url, bodies)
    say(f"tp {tp}: {len(bodies)} streams with {total} tokens, undisturbed")
    again = await Load(server.url, bodies).run()
    calm = compare(expected, again, f"tp {tp}, undisturbed again")
    equal, kills, gaps = 0, 0, []
    for run in range(arguments.runs):
        moment = rng.randrange(1, total)
        answers, killed = await disturbed(server, Load(server.url, bodies), [moment], rng)
        kills += killed
        same = compare(expected, answers, f"tp {tp}, run {run}, kill at {moment}")
        equal += same
        gaps.append(max(answer.gap for answer in answers))
        say(f"tp {tp}, run {run}: kill at token {moment}: {same}/{len(bodies)} equal")
    moments = sorted(rng.randrange(1, total) for _ in range(arguments.kills))
    answers, many = await disturbed(server, Load(server.url, bodies), moments, rng)
    many_equal = compare(expected, answers, f"tp {tp}, many kills")
    say(f"tp {tp}: {many} kills in one run: {many_equal}/{len(bodies)} equal")
    parts = list(server.restarts())
    names = dict.fromkeys(name for restart in parts for name in restart)
    left = server.end()
    return {
        "tp": tp,
        "streams": len(bodies),
        "tokens": total,
        "equal_undisturbed": calm,
        "runs": arguments.runs,
        "kills": kills,
        "equal": equal,
        "many_kills": many,
        "many_equal": many_equal,
        "longest_pause": {"median": _median(gaps), "max": round(max(gaps, default=0.0), 3)},
        "restarts": len(parts),
        "restart_parts_median": {
            name: _median([restart[name] for restart in parts if name in restart]) for name in names
        },
        "left_behind": left,
        "good": not left
        and (calm, equal, many_equal) == (len(bodies), len(bodies) * arguments.runs, len(bodies))
        and min(kills, many) > 0,
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    tp, streams = result["tp"], result["streams"]
    pause = result["longest_pause"]
    parts = ", ".join(f"{name} {s:.2f}" for name, s in result["restart_parts_median"].items())
    return [
        (
            f"tp {tp}: {result['runs']} runs of {streams} streams, {result['kills']} kills",
            f"{result['equal']}/{result['runs'] * streams} streams equal",
        ),
        (
            f"tp {tp}: one run with {result['many_kills']} kills",
            f"{result['many_equal']}/{streams} streams equal",
        ),
        (
            f"tp {tp}: longest silence of a stream in a run, median (worst)",
            f"{pause['median']:.1f} s ({pause['max']:.1f} s)",
        ),
        (f"tp {tp}: parts of a restart, medians of {result['restarts']}, seconds", parts),
    ]


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3) if values else 0.0
