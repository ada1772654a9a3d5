"""A tiny random model on real workers: cache hit against miss, several ranks against one.

Writes the model, runs `mtactors.doctor.rank` as processes and compares what they say. Knows no
operations.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mtactors.doctor.report import Check
from mtactors.envs import worker_environment
from mtactors.wire.messages import PROTOCOL_VERSION, Configure

Steps = list[dict[str, Any]]

_SECONDS = 300.0
_BLOCK_SIZE = 64
# Logprobs of one model computed in two ways: other orders of addition, rounded to the dtype.
BOUNDS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 320,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, slots=True)
class Trial:
    """Where and how the tiny model runs; `ranks` is compared with one rank."""

    device: str
    kernels: str
    dtype: str
    ranks: int


def model_checks(trial: Trial) -> Iterator[Check]:
    """Yield the comparisons; a run that fails is a failed check with its last words."""
    with tempfile.TemporaryDirectory(prefix="mtactors-doctor-") as name:
        directory = Path(name)
        write_model(directory / "model")
        alone = run_ranks(trial, 1, directory)
        if isinstance(alone, str):
            yield Check("tiny model", "failed", alone, "see the checks before this one")
            return
        yield compare("cache hit = miss", alone["miss"], alone["hit"], trial.dtype)
        if trial.ranks < 2:
            yield Check("tensor parallel", "skipped", "one device: there is nobody to share with")
            return
        several = run_ranks(trial, trial.ranks, directory)
        label = f"tp {trial.ranks} = tp 1"
        if isinstance(several, str):
            remedy = "one rank works: see the checks of mccl, iommu and acs, and MCCL_DEBUG=INFO"
            yield Check(label, "failed", several, remedy if trial.device != "cpu" else "")
            return
        yield compare(label, alone["miss"], several["miss"], trial.dtype)


def write_model(directory: Path) -> None:
    """Write a random Llama of two layers."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(1.5 / float(shape[-1]) ** 0.5)

    hidden, wide, heads, dim = 256, 512, 8, 32
    tensors = {
        "model.embed_tokens.weight": random(320, hidden) * 8,
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": random(320, hidden),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}input_layernorm.weight": torch.ones(hidden),
            f"{prefix}post_attention_layernorm.weight": torch.ones(hidden),
            f"{prefix}self_attn.q_proj.weight": random(heads * dim, hidden),
            f"{prefix}self_attn.k_proj.weight": random(4 * dim, hidden),
            f"{prefix}self_attn.v_proj.weight": random(4 * dim, hidden),
            f"{prefix}self_attn.o_proj.weight": random(hidden, heads * dim),
            f"{prefix}mlp.gate_proj.weight": random(wide, hidden),
            f"{prefix}mlp.up_proj.weight": random(wide, hidden),
            f"{prefix}mlp.down_proj.weight": random(hidden, wide),
        }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def run_ranks(trial: Trial, ranks: int, directory: Path) -> dict[str, Steps] | str:
    """Run the model on some ranks; return what rank 0 says, or why there is nothing."""
    run_dir = directory / f"tp{ranks}"
    run_dir.mkdir()
    processes = [_start(trial, rank, ranks, directory, run_dir) for rank in range(ranks)]
    try:
        said, errors = processes[0].communicate(timeout=_SECONDS)
        if processes[0].returncode == 0:
            found: dict[str, Steps] = json.loads(said.splitlines()[-1])
            return found
        # Another rank's end may be the reason: its words come first.
        words = [errors]
        for process in processes[1:]:
            if process.poll() is not None and process.returncode:
                words.insert(0, process.communicate(timeout=_SECONDS)[1])
        return _last_line("\n".join(words[:1])) or f"exit code {processes[0].returncode}"
    except subprocess.TimeoutExpired:
        return f"{ranks} rank(s) did not answer within {_SECONDS:.0f} s"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start(
    trial: Trial, rank: int, ranks: int, directory: Path, run_dir: Path
) -> subprocess.Popen[str]:
    configure = Configure(
        version=PROTOCOL_VERSION,
        epoch=1,
        rank=rank,
        world_size=ranks,
        model_dir=str(directory / "model"),
        dtype=trial.dtype,
        device=trial.device,
        block_size=_BLOCK_SIZE,
        gpu_memory_utilization=0.9,
        kv_cache_memory_bytes=32 << 20,
        max_num_seqs=2,
        max_num_batched_tokens=128,
        max_model_len=128,
        cpu_threads=0,
        run_dir=str(run_dir),
        kernels=trial.kernels,
        golden_check=False,
    )
    argument = json.dumps(dataclasses.asdict(configure))
    return subprocess.Popen(
        [sys.executable, "-m", "mtactors.doctor.rank", argument],
        env=worker_environment(0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compare(name: str, one: Steps, other: Steps, dtype: str) -> Check:
    """Compare two runs token by token, until a tie lets them part."""
    bound, worst = BOUNDS[dtype], 0.0
    for index, (a, b) in enumerate(zip(one, other, strict=True)):
        error = abs(a["top"][0] - b["top"][0])
        worst = max(worst, error) if error == error else error  # nan is not greater
        # Ids may differ where the two likeliest are as good as equal; then so does what follows.
        tie = a["top"][0] - a["top"][1] <= 2 * bound
        if not worst <= bound or (a["id"] != b["id"] and not tie):
            found = f"token {index}: {a['id']} and {b['id']}, logprobs are {worst:.3g} apart"
            remedy = "the operations that read and write the cache, or the collectives, are wrong"
            return Check(name, "failed", found, remedy, error=worst, bound=bound)
        if a["id"] != b["id"]:
            break
    found = f"{len(one)} tokens in {dtype}, logprobs at most {worst:.3g} apart"
    return Check(name, "ok", found, error=worst, bound=bound)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
