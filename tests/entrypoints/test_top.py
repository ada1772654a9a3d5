"""`mtactors top`: what it shows of a server, and what it says when there is none."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console, RenderableType

from mtactors.entrypoints.cli import cli
from mtactors.entrypoints.running_server import RunningServer
from mtactors.entrypoints.top import follow, look, top, view
from mtactors.errors import ConfigError, EngineUnavailableError, MtactorsError
from tests.entrypoints.openai.servers import LoopbackServer, running_server
from tests.fake_worker import Script

LONG: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 300, "temperature": 0}


@pytest.fixture
def slow() -> Iterator[LoopbackServer]:
    with running_server(Script(step_seconds=0.005)) as server:
        yield server


def in_words(seen: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(seen)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def once(server: LoopbackServer) -> Result:
    return CliRunner().invoke(
        top, ["--url", server.url, "--once", "--interval", "0.2"], env={"COLUMNS": "200"}
    )


def test_it_shows_what_runs(slow: LoopbackServer) -> None:
    with slow.client() as client:
        asking = threading.Thread(target=lambda: client.post("/v1/completions", json=LONG))
        asking.start()
        slow.until(lambda: slow.engine.stats().generation_tokens > 5)
        words = " ".join(once(slow).output.split())
        asking.join()
    assert f"{slow.url} serving up 0:00:" in words
    assert "epoch 1 restarts 0" in words
    assert "front" in words and "rank 0" in words and "in flight" in words
    assert "running 1 waiting 0" in words
    rate = float(words.partition("generated ")[2].split()[0].replace(",", ""))
    assert rate > 0
    assert "first token - next token " in words
    assert re.search(r"used [1-9]\d*  ?cached 0  ?free \d+  ?of 64", words), words
    assert "stop 0 length 0 abort 0 error 0" in words


def test_it_shows_that_workers_are_replaced(slow: LoopbackServer) -> None:
    server = RunningServer(slow.url, None)
    before = look(server)
    server.post("/admin/restart_workers", 20.0)
    with slow.client() as client:
        client.post("/v1/completions", json={**LONG, "max_tokens": 2})
    words = " ".join(in_words(view(slow.url, before, look(server))).split())
    assert "epoch 2 restarts 1" in words
    assert "length 1" in words


def test_a_lost_group_and_suspects_are_pointed_out(slow: LoopbackServer) -> None:
    now = look(RunningServer(slow.url, None))
    now.ledger.update(status="restarting", detail="worker rank 0 was killed", suspects=3)
    words = in_words(view(slow.url, now, now))
    assert "restarting" in words and "worker rank 0 was killed" in words and "suspects 3" in words
    assert "prompt -  generated -" in words  # no time has passed, so there is no rate


def test_it_follows_until_the_server_is_gone() -> None:
    seen: list[RenderableType] = []
    with running_server() as server:
        watched = RunningServer(server.url, None)
        errors: list[MtactorsError] = []

        def watch() -> None:
            try:
                follow(watched, look(watched), 0.02, seen.append)
            except MtactorsError as error:
                errors.append(error)

        watching = threading.Thread(target=watch)
        watching.start()
        while len(seen) < 3:
            time.sleep(0.01)
    watching.join(20.0)
    assert "no server answers" in str(errors[0])


def test_keys_are_asked_for_and_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTACTORS_API_KEY", raising=False)
    with running_server(options={"api_keys": ("secret",)}) as server:
        result = once(server)
        assert isinstance(result.exception, EngineUnavailableError)
        assert "wants an API key" in str(result.exception)
        monkeypatch.setenv("MTACTORS_API_KEY", "secret")
        assert once(server).exit_code == 0


def test_nobody_there_is_one_line() -> None:
    result = CliRunner().invoke(cli, ["top", "--url", "http://127.0.0.1:9", "--once"])
    assert isinstance(result.exception, EngineUnavailableError)
    assert str(result.exception).startswith("no server answers at http://127.0.0.1:9/")
    assert "\n" not in str(result.exception)


class _Other(BaseHTTPRequestHandler):
    answer = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}"])
def test_another_server_is_not_taken_for_ours(answer: bytes) -> None:
    handler = type("Handler", (_Other,), {"answer": answer})
    with HTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with pytest.raises(ConfigError, match="server"):
                look(RunningServer(f"http://127.0.0.1:{other.server_port}", None))
        finally:
            other.shutdown()
            thread.join()
