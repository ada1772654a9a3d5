"""llama.cpp: `llama-server` for requests, `llama-batched-bench` for equal streams.

Over HTTP a client that reads a token at a time would take the cores that the server needs, so
requests are not streamed and equal streams are measured by llama.cpp's own tool, which samples
nothing and speaks no HTTP.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import re
import subprocess
import time
from pathlib import Path

from benchmarks.peers.protocol import Options, Recording, Workload
from benchmarks.peers.server import free_port

_START_SECONDS = 300.0
_REQUEST_SECONDS = 600.0


class Engine:
    """llama.cpp."""

    def start(self, options: Options) -> dict[str, object]:
        """Start llama-server."""
        self._options = options
        self._port = free_port()
        # A slot has an equal part of the context; the mixed workload never runs more than 32.
        slots = min(options.max_streams, 32)
        self._server = subprocess.Popen(
            [
                *self._command("llama-server"),
                *("--host", "127.0.0.1", "--port", str(self._port), "--parallel", str(slots)),
                *("--ctx-size", str(slots * options.max_model_len), "--no-webui"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=2,
        )
        deadline = time.monotonic() + _START_SECONDS
        while self._ask("GET", "/health")[0] != 200:
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended with code {self._server.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"llama-server was not ready after {_START_SECONDS:g} s")
            time.sleep(0.02)
        _, properties = self._ask("GET", "/props")
        return {"version": properties.get("build_info", "unknown"), "slots": slots}

    def generate(self, workload: Workload) -> Recording:
        """Run a workload over HTTP, each answer in one piece."""
        begun = time.perf_counter()

        def run(index: int) -> tuple[float, list[int]]:
            status, answer = self._ask(
                "POST",
                "/completion",
                {
                    "prompt": workload.prompts[index],
                    "n_predict": workload.max_tokens[index],
                    "temperature": 0,
                    "top_k": 1,
                    "samplers": ["top_k"],
                    "ignore_eos": True,
                    "cache_prompt": False,
                    "return_tokens": True,
                },
            )
            if status != 200:
                raise RuntimeError(f"llama-server answered {status}: {answer}")
            return time.perf_counter() - begun, answer["tokens"]

        with concurrent.futures.ThreadPoolExecutor(len(workload.prompts)) as pool:
            ends = list(pool.map(run, range(len(workload.prompts))))
        events = [[(seconds, len(ids))] for seconds, ids in ends]
        return Recording(events, ends[0][1])

    def run_streams(self, streams: int, prompt: int, new: int) -> tuple[float, float]:
        """Run llama-batched-bench once."""
        run = subprocess.run(
            [
                *self._command("llama-batched-bench"),
                *("-npp", str(prompt), "-ntg", str(new), "-npl", str(streams)),
                *("-c", str(streams * (prompt + new)), "-b", "2048", "-ub", "512"),
                *("--output-format", "jsonl"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"^\{.*\}$", run.stdout + run.stderr, re.MULTILINE)
        if run.returncode or found is None:
            last = (run.stderr.strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"llama-batched-bench ended with code {run.returncode}: {last}")
        row = json.loads(found.group())
        return row["t_pp"], row["t_tg"]

    def stop(self) -> None:
        """End llama-server."""
        self._server.terminate()
        self._server.wait(10)

    def _command(self, program: str) -> list[str]:
        path = Path(self._options.program, program)
        if not os.access(path, os.X_OK):
            raise RuntimeError(f"there is no program {path}")
        threads = str(self._options.threads)
        # Its KV cache is float16 by default, as wide as bfloat16 and faster here.
        wide = ["-ctk", "f32", "-ctv", "f32"] if self._options.dtype == "float32" else []
        return [str(path), "-m", self._options.model, "-t", threads, "-tb", threads, *wide]

    def _ask(
        self, method: str, path: str, body: dict[str, object] | None = None
    ) -> tuple[int, dict[str, list[int]]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_REQUEST_SECONDS)
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except ConnectionError:
            return 0, {}
        finally:
            connection.close()


ADAPTER = Engine
