"""benchmarks/servers.py: arguments, the table, a server that sleeps, a client that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import servers
from benchmarks.peers.process import PeerError
from benchmarks.peers.server import Client, Server, free_port

ARGUMENTS = ["--vllm-python", "/nonexistent/python"]
#: Answers every request with an empty 200, as a server's /health does.
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_the_table_shows_medians_and_our_ratio_to_the_best_peer() -> None:
    def runs(*values: tuple[float, float]) -> list[dict[str, float]]:
        return [{"mean_ttft_ms": first, "mean_tpot_ms": later} for first, later in values]

    found = {
        "rate": {
            "mtactors": runs((10, 4), (30, 2), (20, 3)),
            "vllm-cpu": runs((40, 6), (40, 6)),
            "llama.cpp": runs((80, 5), (80, 5)),
        },
        "at once": {
            name: [{"output_throughput": value}]
            for name, value in {"mtactors": 600.0, "vllm-cpu": 300.0, "llama.cpp": 400.0}.items()
        },
    }
    _, _, first, later, together = servers.table(servers.parse(ARGUMENTS), found).splitlines()
    assert first.split()[-4:] == ["20.0", "40.0", "80.0", "0.50"]
    assert later.split()[-4:] == ["3.0", "6.0", "5.0", "0.60"]
    assert together.split()[-4:] == ["600.0", "300.0", "400.0", "1.50"]


@pytest.mark.parametrize("arguments", ["--repeats 0", "--rate 0", "--at-once 0", "--requests 1"])
def test_wrong_arguments(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        servers.parse([*ARGUMENTS, *arguments.split()])
    assert caught.value.code == 2
    assert "must be positive" in capsys.readouterr().err


def test_peers_without_a_program_are_left_out(tmp_path: Path) -> None:
    names = [one.name for one in servers.make_servers(servers.parse(ARGUMENTS), tmp_path, tmp_path)]
    assert names == ["mtactors", "vllm-cpu"]


def test_a_server_sleeps_until_it_is_measured(tmp_path: Path) -> None:
    port = free_port()
    server = Server("one", port, [sys.executable, "-c", SERVER, str(port)], {}, tmp_path)
    server.start()
    (process,) = server.processes()
    try:
        assert process.status() == psutil.STATUS_STOPPED
        with server.awake():
            assert process.status() != psutil.STATUS_STOPPED
        assert process.status() == psutil.STATUS_STOPPED
    finally:
        server.stop()
    assert not process.is_running()


def test_a_server_that_ends_at_once_says_where_its_words_are(tmp_path: Path) -> None:
    server = Server("one", free_port(), [sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path)
    with pytest.raises(PeerError, match=r"one ended with code 3 \(see .*one.log\)"):
        server.start()
    server.stop()


def test_a_client_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"cannot ask 127\.0\.0\.1"):
        Client("/nonexistent/python", tmp_path, 8, 4).run(free_port(), 1.0, 2, 0)
