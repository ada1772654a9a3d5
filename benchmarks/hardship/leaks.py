"""Requests by the thousand, half of them dropped at random moments, and restarts in between.

Afterwards the books, open files, shared memory and threads must be as at the start, and memory must
have stopped to grow. There are restarts in the first parts and in the last one: in between the
workers stay the same, so that their memory can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from benchmarks.hardship.server import Server
from benchmarks.hardship.streams import PATIENCE, STORY, say

_AT_ONCE = 16
_SEGMENTS = 16
_MIDDLE = _SEGMENTS // 2
_LAST_RESTART = 6  # before the middle, so that the cache has filled again by then
_MOST_GROWTH = 20 * 2**20


@dataclass(frozen=True)
class Holdings:
    """What a server holds when it has nothing to do.

    Args:
        books: free and cached blocks together, and all blocks; choices; plans in flight.
        files: of the front, of each worker.
        mapped: shared memory that they have mapped, by name.
        memory: resident bytes of the front, of each worker.
    """

    books: tuple[int, ...]
    files: tuple[int, ...]
    threads: int
    mapped: tuple[str, ...]
    memory: tuple[int, ...]


def holdings(server: Server) -> Holdings:
    """Look at a server that is idle."""
    books = server.wait_until_idle()
    front = psutil.Process(server.process.pid)
    processes = [front, *server.workers()]
    mapped = [
        region.path
        for process in processes
        for region in process.memory_maps()
        if "/dev/shm" in region.path or "memfd:" in region.path
    ]
    return Holdings(
        books=(
            books["free"] + books["cached"],
            *(books[name] for name in ("total", "running", "waiting", "in_flight", "suspects")),
        ),
        files=tuple(process.num_fds() for process in processes),
        threads=front.num_threads(),
        mapped=tuple(sorted(mapped)),
        memory=tuple(process.memory_info().rss for process in processes),
    )


class Visitors:
    """Clients of all kinds, half of which leave before the end: more want to, some are too late.

    Attributes:
        finished, dropped: requests so far.
        errors: answers that were neither.
    """

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._rng = random.Random(seed)
        self.finished = 0
        self.dropped = 0
        self.errors: list[str] = []

    async def send(self, count: int) -> None:
        """Send requests, some at once, over connections that are closed afterwards."""
        gate = asyncio.Semaphore(_AT_ONCE)
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE) as client:
            await asyncio.gather(*(self._one(client, gate, n % 5 < 3) for n in range(count)))

    async def _one(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, leaves: bool) -> None:
        rng = self._rng
        body: dict[str, Any] = {
            "prompt": STORY[rng.randrange(60) :] * rng.randrange(1, 4),
            "max_tokens": rng.randrange(1, 40),
            "stream": rng.random() < 0.7,
            "n": rng.choice([1, 1, 2]),
            "seed": rng.randrange(1000),
            "logprobs": rng.choice([None, 2]),
            "ignore_eos": True,
        }
        patience = rng.random() * 0.8 if leaves else PATIENCE
        async with gate:
            try:
                await asyncio.wait_for(self._read(client, body), patience)
                self.finished += 1
            except asyncio.TimeoutError:
                self.dropped += 1

    async def _read(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            text = "".join([part async for part in answer.aiter_text()])
        if answer.status_code != httpx.codes.OK or '"error"' in text:
            self.errors.append(f"{answer.status_code} {text[-200:]}")


async def prove(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Send the requests in parts, a restart in each, and look at what is held after each part."""
    rng = random.Random(arguments.seed)
    visitors = Visitors(server.url, arguments.seed)
    # What is made once for all: connections, caches of the tokenizer, the first restart's files.
    await visitors.send(_AT_ONCE)
    await _restart(server, commanded=True)
    await visitors.send(_AT_ONCE)
    seen = [await asyncio.to_thread(_at_rest, server, None)]
    part = max(1, arguments.requests // _SEGMENTS)
    for segment in range(_SEGMENTS):
        sending = asyncio.ensure_future(visitors.send(part))
        await asyncio.sleep(rng.random())
        if segment < _LAST_RESTART or segment == _SEGMENTS - 1:
            await _restart(server, commanded=segment % 2 == 0)
        await sending
        seen.append(await asyncio.to_thread(_at_rest, server, seen[0]))
        say(
            f"leaks: {(segment + 1) * part} requests, {visitors.dropped} dropped, "
            f"{[round(size / 2**20, 1) for size in seen[-1].memory]} MiB"
        )
    first, last, middle = seen[0], seen[-1], seen[_MIDDLE]
    growth = max(look.memory[0] for look in seen[_MIDDLE:]) - middle.memory[0]
    workers = max(sum(look.memory[1:]) for look in seen[_MIDDLE:-1]) - sum(middle.memory[1:])
    left = server.end()
    return {
        "requests": _SEGMENTS * part,
        "finished": visitors.finished,
        "dropped": visitors.dropped,
        "errors": visitors.errors[:10],
        "restarts": _LAST_RESTART + 1,
        "books": {"before": first.books, "after": last.books},
        "files": {"before": first.files, "after": last.files},
        "threads": {"before": first.threads, "after": last.threads},
        "mapped": {"before": first.mapped, "after": last.mapped},
        "growth_of_front": growth,
        "growth_of_workers": workers,
        "left_behind": left,
        "good": not left
        and not visitors.errors
        and (first.books, first.files, first.mapped) == (last.books, last.files, last.mapped)
        and last.threads <= first.threads
        and max(growth, workers) < _MOST_GROWTH,
    }


async def _restart(server: Server, *, commanded: bool) -> None:
    epoch = (await asyncio.to_thread(server.ledger))["epoch"]
    if commanded:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            (await client.post("/admin/restart_workers")).raise_for_status()
    else:
        server.workers()[0].kill()
    await asyncio.to_thread(server.wait_for_epoch, epoch + 1)


def _at_rest(server: Server, first: Holdings | None) -> Holdings:
    """Return what is held; what goes in a moment, like a closed connection, gets that moment."""
    deadline = time.monotonic() + 10.0
    time.sleep(0.5 if first is None else 0.0)
    while True:
        time.sleep(0.1)
        now = holdings(server)
        if first is None or now.files == first.files or time.monotonic() > deadline:
            return now


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    same = [
        name
        for name in ("books", "files", "threads", "mapped")
        if result[name]["before"] == result[name]["after"]
    ]
    return [
        (
            f"{result['requests']:,} requests, {result['dropped']:,} of them dropped, "
            f"{result['restarts']} restarts",
            f"as at the start: {', '.join(same)}; growth over the last half: front "
            f"{result['growth_of_front'] / 2**20:.1f} MiB, workers "
            f"{result['growth_of_workers'] / 2**20:.1f} MiB",
        )
    ]
