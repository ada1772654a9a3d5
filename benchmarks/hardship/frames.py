"""Strangers send frames into the sockets that the front binds, while streams run.

The socket files are gone as soon as every worker has connected, and lie in a directory of this
user's own: the strangers here keep a second name of each file from the moment in which it is made.
They call themselves nothing, anything, workers that are not there, or, at last, workers that are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import zmq

from benchmarks.hardship.server import Server
from benchmarks.hardship.streams import (
    Answer,
    Bodies,
    Load,
    compare,
    requests,
    say,
    undisturbed,
)
from mtactors.wire.channel import worker_identity
from mtactors.wire.codec import encode
from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    Hello,
    KnownRow,
    Progress,
    PromptLogprobs,
    Ready,
    Shutdown,
    StepPlan,
    StepResult,
    TokenLogprobs,
    WorkerFailed,
)

_BATCH = 20_000  # frames over one connection
_SEND_MS = 2_000
_MOST_REFUSED = 20
_QUEUE = 100  # frames that wait on this side
_TAKEOVERS = 200
_RAW = 500
_MOST_GROWTH = 32 * 2**20  # bytes of the front
_DROPPED = re.compile(r"dropped frame (\d+): a stranger")


class SocketNames:
    """Second names of the sockets that a front makes; they stay when the first are unlinked.

    Args:
        temporary: where the front's own directory will be.
        names: an empty directory on the same file system, with a short path.
    """

    def __init__(self, temporary: Path, names: Path) -> None:
        self._temporary = temporary
        self._names = names
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def of(self, epoch: int) -> Path:
        """Return the second name of an epoch's socket."""
        return self._names / f"e{epoch}"

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            for path in self._temporary.glob("mtactors-run-*/e*/wire"):
                with contextlib.suppress(OSError):
                    os.link(path, self._names / path.parent.name)


def frames(rng: random.Random) -> Iterator[bytes]:
    """Yield noise, messages of either side, and such messages with something changed, for ever."""
    rights = [
        encode(message)
        for message in (
            Hello(PROTOCOL_VERSION, 1, 0, 1),
            Hello(PROTOCOL_VERSION + 1, 1, 0, 1),
            Progress(1, 0, "load", 1.0),
            Ready(1, 0, 100, 1, 1, "cpu", "auto"),
            WorkerFailed(1, 0, 3, "fault", "failed", "Traceback"),
            StepResult(1, 3, [5, -1, 9], [TokenLogprobs(0, -1.0, 1, [5], [-1.0])], [], 9, b""),
            StepResult(1, 3, [5], [], [PromptLogprobs(0, 1, [-1.0], [1], [], [])], 9, b"1"),
            StepPlan(PROTOCOL_VERSION, 1, 3, [], [KnownRow(0, 1, [], True)], [1], []),
            Shutdown(1, "enough"),
        )
    ]
    while True:
        kind = rng.random()
        if kind < 0.3:
            yield rng.randbytes(rng.randrange(200))
            continue
        frame = bytearray(rng.choice(rights))
        for _ in range(rng.randrange(4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        yield bytes(frame[: rng.randrange(len(frame))] if kind > 0.9 else frame)


def storm(path: Path, count: int, epoch: int, ranks: int, rng: random.Random) -> int:
    """Send frames as strangers; return how many a socket took."""
    identities = [
        None,
        b"\xff",
        b"worker",
        worker_identity(epoch, ranks),
        worker_identity(epoch + 1, 0),
        worker_identity(epoch, 0) + b"\0",
    ]
    source, sent, refused = frames(rng), 0, 0
    while sent < count:
        # A name is refused while a connection that had it is not read to its end.
        identity = rng.choice([*identities, rng.randbytes(rng.randrange(1, 255))])
        before = sent
        with stranger(path, identity) as peer, contextlib.suppress(zmq.Again):
            peer.setsockopt(zmq.LINGER, _SEND_MS)
            for _ in range(min(_BATCH, count - sent)):
                frame = next(source)
                peer.send_multipart([frame] if rng.random() < 0.9 else [frame, b"", frame])
                sent += 1
        refused = refused + 1 if sent - before <= _QUEUE else 0
        if refused > _MOST_REFUSED:
            raise SystemExit("chaos: the front has stopped to read what strangers send")
    return sent


@contextlib.contextmanager
def stranger(path: Path, identity: bytes | None) -> Iterator[zmq.Socket[bytes]]:
    """Connect under an identity; an empty or zero first byte is not allowed and made another."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.setsockopt(zmq.SNDTIMEO, _SEND_MS)
    peer.setsockopt(zmq.SNDHWM, _QUEUE)
    peer.setsockopt(zmq.LINGER, 0)
    if identity is not None:
        peer.setsockopt(
            zmq.IDENTITY, b"\1" + identity if identity[:1] in (b"", b"\0") else identity
        )
    peer.connect(f"ipc://{path}")
    try:
        yield peer
    finally:
        peer.close()
        context.term()


def takeovers(path: Path, epoch: int, ranks: int, rng: random.Random) -> int:
    """Connect under the names of the running workers; return the number of attempts."""
    source = frames(rng)
    for attempt in range(_TAKEOVERS):
        with stranger(path, worker_identity(epoch, attempt % ranks)) as peer:
            with contextlib.suppress(zmq.Again):  # nobody reads what it says
                for _ in range(50):
                    peer.send(next(source), zmq.NOBLOCK)
            time.sleep(0.005)
    return _TAKEOVERS


def raw(path: Path, rng: random.Random) -> int:
    """Connect without speaking ZeroMQ's protocol; return the number of connections."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(55, b"\0")
    halves = []
    for _ in range(_RAW):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
        noise = rng.choice(
            [b"", rng.randbytes(rng.randrange(1, 300)), greeting[: rng.randrange(64)]]
        )
        with contextlib.suppress(OSError):
            peer.sendall(noise + (rng.randbytes(50) if rng.random() < 0.3 else b""))
        if rng.random() < 0.2:
            halves.append(peer)  # stays, half open
        else:
            peer.close()
    time.sleep(0.5)
    for peer in halves:
        peer.close()
    return _RAW


def hostile(path: Path, count: int, epoch: int, ranks: int, seed: int) -> dict[str, int]:
    """Do all of it to one socket."""
    rng = random.Random(seed)
    return {
        "frames": storm(path, count, epoch, ranks, rng),
        "takeovers": takeovers(path, epoch, ranks, rng),
        "raw_connections": raw(path, rng),
    }


async def prove(
    server: Server, arguments: argparse.Namespace, names: SocketNames
) -> dict[str, Any]:
    """Run everything against the first two epochs of one server."""
    ranks = arguments.fuzz_tp
    bodies = requests(arguments.tokens, arguments.without)
    began = time.monotonic()
    expected, _ = await undisturbed(server.url, bodies)
    calm = time.monotonic() - began
    front = psutil.Process(server.process.pid)
    totals: dict[str, int] = {}
    equal, streams, slowest, growth = 0, 0, 0.0, 0
    for epoch in (1, 2):
        if epoch == 2:  # the sockets of a group that came later are no other
            server.workers()[-1].kill()
            server.wait_for_epoch(epoch)
            server.wait_until_idle()
        before = front.memory_info().rss
        attack = asyncio.ensure_future(
            asyncio.to_thread(
                hostile, names.of(epoch), arguments.frames, epoch, ranks, arguments.seed + epoch
            )
        )
        more, runs, longest = await _read_during(attack, server.url, bodies, expected)
        equal, streams, slowest = equal + more, streams + runs * len(bodies), max(slowest, longest)
        totals = {name: totals.get(name, 0) + n for name, n in attack.result().items()}
        growth = max(growth, front.memory_info().rss - before)
        say(f"frames: epoch {epoch}: {attack.result()}, {equal}/{streams} streams equal")
    dropped = [int(number) for number in _DROPPED.findall(server.said)]
    restarts = server.wait_until_idle()["restarts"]
    left = server.end()
    return {
        **totals,
        "tp": ranks,
        "streams": streams,
        "equal": equal,
        "dropped_at_least": max(dropped, default=0),
        "front_rss_growth": growth,
        "seconds_of_streams": {"undisturbed": round(calm, 2), "slowest": round(slowest, 2)},
        "left_behind": left,
        # Every frame of a stranger is dropped and counted; the log names powers of two alone.
        "good": not left
        and equal == streams
        and restarts == 1
        and growth < _MOST_GROWTH
        and max(dropped, default=0) * 4 > arguments.frames,
    }


async def _read_during(
    attack: asyncio.Future[dict[str, int]], url: str, bodies: Bodies, expected: list[Answer]
) -> tuple[int, int, float]:
    """Run the streams until an attack is over; return equal ones, runs, the longest run."""
    equal, runs, longest = 0, 0, 0.0
    while not runs or not attack.done():
        began = time.monotonic()
        answers = await Load(url, bodies).run()
        longest = max(longest, time.monotonic() - began)
        equal += compare(expected, answers, "frames")
        runs += 1
    return equal, runs, longest


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    seconds = result["seconds_of_streams"]
    return [
        (
            f"tp {result['tp']}: {result['frames']:,} frames of strangers into 2 sockets, "
            f"{result['takeovers']} takeovers, {result['raw_connections']} raw connections",
            f"{result['equal']}/{result['streams']} streams equal; 16 streams took at most "
            f"{seconds['slowest']:.1f} s (undisturbed {seconds['undisturbed']:.1f} s)",
        )
    ]
