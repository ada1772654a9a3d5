"""Clients of the worst kind, while others read their streams.

Noise instead of HTTP, requests that come byte by byte or never end, connections that say nothing,
resets in the middle of a stream, readers that do not read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import psutil

from benchmarks.hardship.server import Server
from benchmarks.hardship.streams import STORY, Load, compare, requests, say, undisturbed

_HOST = "127.0.0.1"
_BODY = json.dumps({"prompt": STORY, "max_tokens": 200, "stream": True}).encode()
_HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(_BODY)
)
_NOISE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),  # a TLS client
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 200_000,
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n{",
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    b"\0" * 1000,
]


class Enemies:
    """One crowd of clients at a server.

    Attributes:
        count: connections that were made, by kind.
    """

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._rng = random.Random(seed)
        self.count: dict[str, int] = {}
        self._over = asyncio.Event()

    def stop(self) -> None:
        """Let all of them leave."""
        self._over.set()

    async def run(self, crowd: int) -> None:
        """Keep `crowd` connections of each kind open until `stop`."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._noise, self._changed, self._slow_head, self._slow_body, self._silent,
            self._reset, self._deaf, self._half_closed,
        ]  # fmt: skip
        await asyncio.gather(*(self._again(kind) for kind in kinds for _ in range(crowd)))

    async def _again(self, kind: Callable[[], Awaitable[None]]) -> None:
        name = kind.__name__.strip("_")
        while not self._over.is_set():
            with contextlib.suppress(OSError):  # a server may hang up whenever it likes
                await kind()
            self.count[name] = self.count.get(name, 0) + 1
            await self._pause(self._rng.random() * 0.2)

    async def _pause(self, seconds: float) -> bool:
        """Wait; tell whether it is time to leave."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return self._over.is_set()

    @contextlib.asynccontextmanager
    async def _connection(self, receive_bytes: int = 0) -> AsyncIterator[socket.socket]:
        peer = socket.socket()
        peer.setblocking(False)
        if receive_bytes:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(peer, (_HOST, self._port))
            yield peer
        finally:
            peer.close()

    async def _send(self, peer: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(peer, data)

    async def _receive(self, peer: socket.socket, count: int = 1 << 16) -> bytes:
        with contextlib.suppress(asyncio.TimeoutError):
            loop = asyncio.get_running_loop()
            return await asyncio.wait_for(loop.sock_recv(peer, count), 5.0)
        return b""

    async def _noise(self) -> None:
        async with self._connection() as peer:
            known = self._rng.random() < 0.5
            data = self._rng.choice(_NOISE) if known else self._rng.randbytes(2000)
            await self._send(peer, data)
            await self._receive(peer)

    async def _changed(self) -> None:
        """Send a request with something changed in it."""
        data = bytearray(_HEAD + _BODY)
        for _ in range(self._rng.randrange(1, 5)):
            data[self._rng.randrange(len(data))] = self._rng.randrange(256)
        async with self._connection() as peer:
            await self._send(peer, bytes(data))
            await self._receive(peer)

    async def _slow_head(self) -> None:
        async with self._connection() as peer:
            for byte in _HEAD:
                await self._send(peer, bytes([byte]))
                if await self._pause(0.3):
                    return

    async def _slow_body(self) -> None:
        async with self._connection() as peer:
            await self._send(peer, _HEAD)
            for byte in _BODY:
                await self._send(peer, bytes([byte]))
                if await self._pause(0.3):
                    return

    async def _silent(self) -> None:
        """Connect and say nothing."""
        async with self._connection():
            await self._pause(10.0)

    async def _reset(self) -> None:
        """Ask for a stream and reset the connection in the middle of it."""
        async with self._connection() as peer:
            await self._send(peer, _HEAD + _BODY)
            for _ in range(self._rng.randrange(4)):
                await self._receive(peer, 300)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _deaf(self) -> None:
        """Ask for a stream and read none of it for a while."""
        async with self._connection(receive_bytes=1024) as peer:
            await self._send(peer, _HEAD + _BODY)
            await self._pause(3.0)

    async def _half_closed(self) -> None:
        """Close the one direction after a part of a request, or after all of it."""
        data = _HEAD + _BODY
        async with self._connection() as peer:
            await self._send(peer, data[: self._rng.randrange(1, len(data) + 1)])
            peer.shutdown(socket.SHUT_WR)
            await self._receive(peer)


async def prove(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the streams again and again among enemies."""
    bodies = requests(arguments.tokens, arguments.without)
    began = time.monotonic()
    expected, _ = await undisturbed(server.url, bodies)
    calm = time.monotonic() - began
    front = psutil.Process(server.process.pid)
    open_before = front.num_fds()
    enemies = Enemies(server.port, arguments.seed)
    crowd = asyncio.ensure_future(enemies.run(arguments.crowd))
    equal, streams, slowest, slowest_health = 0, 0, 0.0, 0.0
    for _ in range(arguments.hostile_runs):
        began = time.monotonic()
        answers, health = await asyncio.gather(Load(server.url, bodies).run(), _ask(server.url))
        slowest, slowest_health = (
            max(slowest, time.monotonic() - began),
            max(slowest_health, health),
        )
        equal += compare(expected, answers, "clients")
        streams += len(bodies)
    enemies.stop()
    await crowd
    books = await asyncio.to_thread(server.wait_until_idle)
    still_open = await _falls_to(front.num_fds, open_before)
    say(f"clients: {enemies.count}, {equal}/{streams} streams equal")
    left = server.end()
    return {
        "connections": enemies.count,
        "streams": streams,
        "equal": equal,
        "seconds_of_streams": {"undisturbed": round(calm, 2), "slowest": round(slowest, 2)},
        "slowest_health": round(slowest_health, 3),
        "blocks_used": books["used"],
        "descriptors_more": still_open - open_before,
        "left_behind": left,
        "good": not left
        and equal == streams
        and books["used"] == 0
        and books["restarts"] == 0
        and still_open <= open_before,
    }


async def _ask(url: str) -> float:
    """Return how long GET /health took."""
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        began = time.monotonic()
        (await client.get("/health")).raise_for_status()
        return time.monotonic() - began


async def _falls_to(count: Callable[[], int], wanted: int) -> int:
    """Wait a while until a count is as low as it was; return it."""
    for _ in range(100):
        if count() <= wanted:
            break
        await asyncio.sleep(0.1)
    return count()


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    seconds, total = result["seconds_of_streams"], sum(result["connections"].values())
    return [
        (
            f"{total:,} connections of hostile clients ({', '.join(result['connections'])})",
            f"{result['equal']}/{result['streams']} streams equal; {result['descriptors_more']} "
            f"open files more than before; 16 streams took at most {seconds['slowest']:.1f} s "
            f"(undisturbed {seconds['undisturbed']:.1f} s), /health {result['slowest_health']} s",
        )
    ]
