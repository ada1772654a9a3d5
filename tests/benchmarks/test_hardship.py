"""The parts of `make chaos` in small, over workers that compute nothing: the front is the real one.

What is proved of real workers is in docs/reliability.md.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.hardship import clients, frames, kills, leaks
from benchmarks.hardship.server import Server
from benchmarks.hardship.streams import Answer, Choice, compare
from tests.entrypoints.openai.server_process import command

ARGUMENTS = Namespace(
    seed=3,
    tokens=24,
    runs=2,
    kills=3,
    without=["structured", "tools"],
    frames=4000,
    fuzz_tp=2,
    crowd=2,
    hostile_runs=2,
    requests=64,
)
Start = Callable[[int], Server]


@pytest.fixture
def start(scratch: Path) -> Iterator[Start]:
    """Start a server whose workers repeat the prompt."""
    servers: list[Server] = []

    def begin(tp: int) -> Server:
        script = {"num_blocks": 2048, "step_seconds": 0.002}
        config = {"max_model_len": 2048, "tp": tp, "workers": {"max_restarts": 1000}}
        options = {"log_requests": False}
        servers.append(Server(command(script, options, config), "server", scratch))
        return servers[-1]

    yield begin
    for server in servers:
        server.process.kill()
        server.process.wait()


def test_killed_workers(start: Start) -> None:
    server = start(2)
    server.wait_until_it_serves()
    result = asyncio.run(kills.prove(server, ARGUMENTS, 2))
    assert result["good"], result
    assert (result["kills"], result["many_kills"]) == (2, 3)
    assert 3 <= result["restarts"] <= 5  # two may hit one group
    assert {"stop", "spawn"} <= set(result["restart_parts_median"])
    assert "32/32 streams equal" in str(kills.rows(result))


def test_frames_of_strangers(start: Start, scratch: Path) -> None:
    server = start(2)
    (scratch / "s").mkdir()
    names = frames.SocketNames(server.temporary, scratch / "s")
    try:
        server.wait_until_it_serves()
        result = asyncio.run(frames.prove(server, ARGUMENTS, names))
    finally:
        names.close()
    assert result["good"], result
    assert result["frames"] == 2 * ARGUMENTS.frames
    assert "8,000 frames" in str(frames.rows(result))


def test_hostile_clients(start: Start) -> None:
    server = start(1)
    server.wait_until_it_serves()
    result = asyncio.run(clients.prove(server, ARGUMENTS))
    assert result["good"], result
    assert len(result["connections"]) == 8
    assert "32/32 streams equal" in str(clients.rows(result))


def test_leaks(start: Start) -> None:
    server = start(1)
    server.wait_until_it_serves()
    result = asyncio.run(leaks.prove(server, ARGUMENTS))
    assert result["good"], result
    assert result["dropped"] > 0
    assert result["finished"] > 0
    assert "as at the start: books, files, threads, mapped" in str(leaks.rows(result))


def test_a_difference_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    right = Answer({0: Choice("a", token_ids=[1])}, "[DONE]")
    assert compare([right], [Answer({0: Choice("a", token_ids=[1])}, "[DONE]")], "x") == 1
    for wrong in (
        Answer({0: Choice("a", token_ids=[2])}, "[DONE]"),
        Answer({0: Choice("a", token_ids=[1])}, '{"error": {}}'),
        Answer({}, "[DONE]"),
    ):
        assert compare([right], [wrong], "x") == 0
    assert "choice 0 differs in token_ids" in capsys.readouterr().err
