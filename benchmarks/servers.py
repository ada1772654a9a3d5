r"""How do servers feel to one foreign client? `vllm bench serve` against each of them, in turns.

Two regimes, random prompts of --input-len and --output-len tokens, greedy: --rate requests a second
(the first token and the tokens after it, lower is better) and --at-once requests together (output
tokens per second). All servers are loaded; all but the one at work are stopped by a signal. The
client shares the cores with the server, as it does for all of them.

    python benchmarks/servers.py --vllm-python /peers/vllm/bin/python \
        --llama-bin /peers/llama.cpp/build/bin --llama-model /peers/smollm2-135m-bf16.gguf

Prints a table of medians with the ratio to the best peer and, last, one JSON line with all figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # as a program it has its own folder on the path, not the one above
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.peers.process import PeerError
from benchmarks.peers.server import Client, Server, free_port, vllm
from benchmarks.peers.vllm_cpu import environment
from benchmarks.report import OURS, aligned, describe_machine
from mtactors.errors import MtactorsError
from mtactors.hub import resolve_model

#: Figure of a run, as the client's file calls it -> its label, and whether less is better.
FIGURES = {
    "rate": {"mean_ttft_ms": ("mean TTFT, ms", True), "mean_tpot_ms": ("mean TPOT, ms", True)},
    "at once": {"output_throughput": ("output tokens/s", False)},
}
_CACHE_GIB = 2  # of vllm-cpu's KV cache
Runs = dict[str, dict[str, list[dict[str, float]]]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, checked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--vllm-python", required=True, help="Python of an environment with vllm-cpu")
    add("--llama-bin", help="folder of llama-server")
    add("--llama-model", help="the model as .gguf")
    add("--model", default="smollm2-135m", help="a Hugging Face directory or the demo's name")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--threads", type=int, default=2)
    add("--rate", type=float, default=4.0, help="requests a second")
    add("--requests", type=int, default=100, help="requests at that rate")
    add("--at-once", type=int, default=64)
    add("--input-len", type=int, default=128)
    add("--output-len", type=int, default=64)
    add("--repeats", type=int, default=3, help="rounds, after a short one that warms up")
    add("--logs", help="folder for the servers' own output; default: a temporary one")
    given = parser.parse_args(arguments)
    if given.repeats < 1 or given.requests < 2 or given.at_once < 1 or given.rate <= 0:
        parser.error("--repeats, --requests, --at-once and --rate must be positive")
    return given


def make_servers(given: argparse.Namespace, model: Path, logs: Path) -> list[Server]:
    """Return the servers whose programs were given; mtactors first."""
    context = 2 * (given.input_len + given.output_len)
    ours, port = str(Path(sys.executable).with_name("mtactors")), free_port()
    common = ["--dtype", given.dtype, "--max-model-len", str(context), "--port", str(port)]
    threads = ["--cpu-threads", str(given.threads)]
    servers = [Server(OURS, port, [ours, "serve", str(model), *common, *threads], {}, logs)]
    port = free_port()
    common[-1] = str(port)
    settings = environment(given.threads, _CACHE_GIB)
    servers.append(
        Server(
            "vllm-cpu",
            port,
            [*vllm(given.vllm_python), "serve", str(model), *common],
            settings,
            logs,
        )
    )
    if given.llama_bin and given.llama_model:
        port, program = free_port(), str(Path(given.llama_bin, "llama-server"))
        slots = ["--parallel", str(given.at_once), "--ctx-size", str(given.at_once * context)]
        command = [program, "-m", given.llama_model, "--port", str(port), "--no-webui", *slots]
        command += ["-t", str(given.threads), "-tb", str(given.threads)]
        servers.append(Server("llama.cpp", port, command, {}, logs))
    return servers


def measure(given: argparse.Namespace, servers: Sequence[Server], client: Client) -> Runs:
    """Run every regime on every server in turns, in another order in each round."""
    runs: Runs = {kind: {server.name: [] for server in servers} for kind in FIGURES}
    for number in range(given.repeats + 1):
        turn = number % len(servers)
        for kind in FIGURES:
            rate, requests = given.rate, given.requests
            if kind == "at once":
                rate, requests = float("inf"), given.at_once
            if not number:
                requests = min(requests, 16)
            for server in [*servers[turn:], *servers[:turn]]:
                with server.awake():
                    found = client.run(server.port, rate, requests, seed=100 * number + requests)
                shown = {label: found[key] for key, (label, _) in FIGURES[kind].items()}
                name = f"round {number}" if number else "warm-up"
                print(f"{name}: {server.name}: {kind}: {shown}", file=sys.stderr, flush=True)
                if number:
                    runs[kind][server.name].append(found)
    return runs


def table(given: argparse.Namespace, runs: Runs) -> str:
    """Return medians by server, and our ratio to the best of the others."""
    names = list(runs["rate"])
    rows = [["", *names, "x best peer"]]
    titles = {"rate": f"{given.rate:g} requests/s", "at once": f"{given.at_once} at once"}
    for kind, figures in FIGURES.items():
        for key, (label, less) in figures.items():
            medians = {
                name: statistics.median(run[key] for run in runs[kind][name]) for name in names
            }
            peers = [value for name, value in medians.items() if name != OURS]
            best = min(peers) if less else max(peers)
            cells = [f"{medians[name]:.1f}" for name in names]
            rows.append([f"{titles[kind]}, {label}", *cells, f"{medians[OURS] / best:.2f}"])
    return aligned(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 when a server or the client fails, 2 for wrong arguments."""
    given = parse(arguments)
    try:
        model = resolve_model(given.model).directory
    except MtactorsError as error:
        print(f"servers: {error}", file=sys.stderr)
        return 2
    logs = Path(given.logs or tempfile.mkdtemp(prefix="servers-logs-"))
    logs.mkdir(parents=True, exist_ok=True)
    servers = make_servers(given, model, logs)
    try:
        for server in servers:
            print(f"{server.name}: load", file=sys.stderr, flush=True)
            server.start()
        client = Client(given.vllm_python, model, given.input_len, given.output_len)
        runs = measure(given, servers, client)
    except PeerError as error:
        print(f"servers: {error}", file=sys.stderr)
        return 1
    finally:
        for server in servers:
            server.stop()
    print(table(given, runs))
    values = {"machine": describe_machine(), "arguments": vars(given), "runs": runs}
    print(json.dumps({"benchmark": "servers", **values}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
