"""Clients that leave, streaming or not; readers that are slow; a queue that is full."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from mtactors.entrypoints.openai.app import build_app
from mtactors.entrypoints.openai.connection import ClientGone, read_body, while_connected
from mtactors.entrypoints.openai.errors import HttpError
from mtactors.entrypoints.openai.service import ServerOptions, Service
from tests.entrypoints.openai.engines import start_engine
from tests.entrypoints.openai.servers import WAIT, running_server
from tests.fake_worker import Script
from tests.front.engines import until_idle

SLOW = Script(step_seconds=0.005)
LONG: dict[str, Any] = {"prompt": "The quick brown fox", "max_tokens": 480, "ignore_eos": True}
PATH = "/v1/completions"
SCOPE: dict[str, Any] = {
    "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(),
    "query_string": b"", "headers": [], "client": ("127.0.0.1", 1), "root_path": "",
    "server": ("127.0.0.1", 1), "scheme": "http", "http_version": "1.1",
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_is_aborted(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mtactors")
    with running_server(SLOW) as server, server.client() as http:

        def running() -> bool:
            return server.engine.stats().running == 1

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=server.url) as client:
                asking = asyncio.ensure_future(client.post(PATH, json={**LONG, "stream": stream}))
                await asyncio.to_thread(server.until, running)
                asking.cancel()
                await asyncio.wait((asking,))

        asyncio.run(leave())
        server.until_idle()
        stats = server.on_loop(server.engine.stats)
        assert stats.finished == {"abort": 1}
        assert stats.generation_tokens < 480
        assert http.get("/health").status_code == 200
    # The last line of an earlier test's server may come as late as this.
    (line,) = [r.getMessage() for r in caplog.records if "status=499" in r.getMessage()]
    assert "request " in line and "abort=client_left" in line and "finish=abort" in line


def test_streams_dropped_at_random_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(7)

    async def one(client: httpx.AsyncClient, most: int) -> int:
        """Read so many lines, then leave."""
        seen = 0
        body = {**LONG, "max_tokens": 40, "stream": True, "n": draw.choice((1, 2))}
        async with client.stream("POST", PATH, json=body) as response:
            assert response.status_code == 200
            async for _ in response.aiter_lines():
                seen += 1
                if seen >= most:
                    break
        return seen

    with running_server(Script(step_seconds=0.001), scheduler={"max_num_seqs": 8}) as server:

        async def all_of_them() -> list[int]:
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(
                base_url=server.url, limits=limits, timeout=WAIT
            ) as client:
                ends = [draw.choice((1, 3, 20, 10**6)) for _ in range(120)]
                return await asyncio.gather(*(one(client, most) for most in ends))

        assert len(asyncio.run(all_of_them())) == 120
        server.until_idle()
        with server.client() as http:
            ledger = http.get("/debug/ledger").json()
        assert ledger["used"] == 0
        assert ledger["free"] + ledger["cached"] == ledger["total"]
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


def test_a_full_queue_is_told_before_any_byte() -> None:
    limits = {"max_num_seqs": 1, "max_num_queued": 1}
    with running_server(SLOW, scheduler=limits) as server, server.client() as http:

        async def fill() -> None:
            async with httpx.AsyncClient(base_url=server.url) as client:
                held = []
                for running, queued in ((1, 0), (1, 1)):
                    held.append(asyncio.ensure_future(client.post(PATH, json=LONG)))

                    def there(running: int = running, queued: int = queued) -> bool:
                        stats = server.engine.stats()
                        return (stats.running, stats.queued) == (running, queued)

                    await asyncio.to_thread(server.until, there)
                for stream in (False, True):
                    answer = await client.post(PATH, json={**LONG, "stream": stream})
                    assert answer.status_code == 429
                    assert answer.headers["retry-after"] == "1"
                    assert answer.json()["error"]["code"] == "queue_full"
                # Trying again would not help this one.
                answer = await client.post(PATH, json={"prompt": ["a", "b"]})
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
                assert (await client.get("/health")).status_code == 200
                for asking in held:
                    asking.cancel()
                await asyncio.wait(held)

        asyncio.run(fill())
        server.until_idle()
        assert http.post(PATH, json={**LONG, "max_tokens": 1}).status_code == 200


async def test_a_reader_that_stops_reading_gets_the_rest_at_once(tmp_path: Path) -> None:
    engine = await start_engine(tmp_path)
    service = Service(ServerOptions(("fake",)))
    await service.serve(engine)
    body = json.dumps({**LONG, "max_tokens": 200, "stream": True}).encode()
    inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[bytes] = []
    readable = asyncio.Event()

    async def receive() -> Message:
        if not inbox:
            await asyncio.Event().wait()
        return inbox.pop()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 4:
            await readable.wait()

    answering = asyncio.ensure_future(build_app(service)(SCOPE.copy(), receive, send))
    for _ in range(int(WAIT / 0.005)):
        if engine.stats().finished:
            break
        await asyncio.sleep(0.005)
    # The engine did not wait for the reader.
    assert engine.stats().finished == {"length": 1}
    assert len(sent) == 4
    readable.set()
    await asyncio.wait_for(answering, WAIT)
    await engine.stop()
    service.close()
    events = b"".join(sent).decode().split("\n\n")
    texts = [json.loads(event[6:])["choices"][0]["text"] for event in events[:-2]]
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(LONG["prompt"])
    assert "".join(texts) == tokenizer.decode((ids * 200)[:200])
    assert len(texts) < 10
    assert events[-2:] == ["data: [DONE]", ""]


async def test_a_reader_that_never_reads_can_be_given_up(tmp_path: Path) -> None:
    engine = await start_engine(tmp_path)
    service = Service(ServerOptions(("fake",)))
    await service.serve(engine)
    body = json.dumps({**LONG, "stream": True}).encode()
    inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    stuck = asyncio.Event()

    async def receive() -> Message:
        if not inbox:
            await asyncio.Event().wait()
        return inbox.pop()

    async def send(message: Message) -> None:
        stuck.set()
        await asyncio.Event().wait()

    answering = asyncio.ensure_future(build_app(service)(SCOPE.copy(), receive, send))
    await asyncio.wait_for(stuck.wait(), WAIT)
    answering.cancel()
    await asyncio.wait_for(answering, WAIT)
    await until_idle(engine)
    assert engine.ledger().used == 0
    assert engine.stats().finished == {"abort": 1}
    await engine.stop()
    service.close()


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    begun, undone = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            undone.set()

    async def receive() -> Message:
        await begun.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await while_connected(receive, work())
    assert undone.is_set()


async def test_work_is_cancelled_with_who_waits_for_it() -> None:
    begun, undone = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            undone.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    waiting = asyncio.ensure_future(while_connected(receive, work()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert undone.is_set()


async def test_errors_of_the_work_are_raised() -> None:
    async def work() -> None:
        raise KeyError("x")

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(KeyError):
        await while_connected(receive, work())


async def test_a_body_is_read_in_parts_and_within_bounds() -> None:
    def receiver(*parts: bytes) -> Any:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Message:
            return messages.pop(0)

        return receive

    scope: dict[str, Any] = {"headers": []}
    assert await read_body(scope, receiver(b"ab", b"cd"), 4) == b"abcd"
    with pytest.raises(HttpError):
        await read_body(scope, receiver(b"ab", b"cde"), 4)
    with pytest.raises(HttpError):
        await read_body({"headers": [(b"content-length", b"5")]}, receiver(), 4)

    async def left() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await read_body(scope, left, 4)


def test_an_id_that_is_in_use_is_refused() -> None:
    body = {**LONG, "request_id": "twice"}
    with running_server(SLOW) as server, server.client() as http, server.client() as other:
        with http.stream("POST", PATH, json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            refused = other.post(PATH, json=body)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "request_id"
        server.until_idle()
        assert other.post(PATH, json={**body, "max_tokens": 1}).status_code == 200


async def test_a_failure_keeps_nothing_alive() -> None:
    class Body:
        """Stands for megabytes."""

    async def work(body: Body) -> None:
        raise KeyError("x")

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    body = Body()
    alive = weakref.ref(body)
    gc.disable()
    try:
        with contextlib.suppress(KeyError):
            await while_connected(receive, work(body))
        del body
        assert alive() is None
    finally:
        gc.enable()
