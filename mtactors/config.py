"""Frozen configuration, checked once at construction and passed down explicitly.

Built by `engine_args.EngineArgs.create_engine_config`. Knows nothing of command lines, and
reads no files or environment variables.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtactors.errors import ConfigError
from mtactors.families.spec import DecoderSpec

DEVICES = ("auto", "cpu", "musa", "cuda")
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
CPU_BLOCK_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, and how much of it.

    Args:
        model: the argument as the user typed it.
        directory: where its files are, an ordinary Hugging Face layout (or converted) directory.
        served_names: names the API answers to, the first one shown.
        dtype: resolved: "float16", "bfloat16" or "float32".
        max_model_len: tokens, prompt and output together.
        seed: base of the seeds drawn for requests that name none; None draws from the system.
        reshard: a checkpoint converted for another tensor parallel size is cut anew at load.
        sampling_defaults: sampling parameters of requests that do not name them.
    """

    model: str
    directory: Path
    tokenizer_directory: Path
    served_names: tuple[str, ...]
    spec: DecoderSpec
    dtype: str
    max_model_len: int
    seed: int | None = None
    reshard: bool = False
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("max_model_len", self.max_model_len, 1)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache: `block_size` tokens a block; `memory_bytes` 0 sizes it by `utilization`."""

    block_size: int = 64
    utilization: float = 0.9
    memory_bytes: int = 0
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.block_size not in CPU_BLOCK_SIZES:
            allowed = ", ".join(map(str, CPU_BLOCK_SIZES))
            raise ConfigError("block_size", f"{self.block_size} is not one of {allowed}")
        if not (math.isfinite(self.utilization) and 0.0 < self.utilization <= 1.0):
            raise ConfigError(
                "gpu_memory_utilization", f"{self.utilization} is not above 0 and at most 1"
            )
        _at_least("kv_cache_memory_bytes", self.memory_bytes, 0)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one step and of the queue.

    Args:
        max_num_seqs: rows that hold a slot at once.
        max_num_batched_tokens: tokens computed in one step.
        max_num_queued: waiting requests before the server refuses; 0 is no bound (Python API).
        max_in_flight: unanswered plans.
    """

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    max_num_queued: int = 0
    max_in_flight: int = 2

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        _at_least("max_num_queued_reqs", self.max_num_queued, 0)
        _at_least("max_in_flight", self.max_in_flight, 1)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                "max_num_batched_tokens",
                f"{self.max_num_batched_tokens} is below max_num_seqs ({self.max_num_seqs}): "
                "every running sequence needs a token in a step",
            )


@dataclass(frozen=True, slots=True)
class WorkerGroupConfig:
    """The worker processes: one per tensor parallel rank.

    Args:
        device: resolved: "cpu", "musa" or "cuda".
        cpu_threads: per rank; 0 takes the physical cores divided by the ranks.
        start_timeout: seconds until every rank must be Ready.
        step_timeout: seconds, the least deadline of a step.
        shutdown_timeout: seconds that running requests get to finish.
        max_restarts: replacements of the group within 10 minutes; 0 switches restart off.
        golden_check: a worker computes known answers before it serves.
        digests: results carry the bits by which two runs are compared; a journal wants them.
    """

    device: str = "cpu"
    tensor_parallel_size: int = 1
    cpu_threads: int = 0
    kernels: str = "auto"
    start_timeout: float = 600.0
    step_timeout: float = 30.0
    shutdown_timeout: float = 30.0
    max_restarts: int = 3
    digests: bool = False
    golden_check: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("tensor_parallel_size", self.tensor_parallel_size, 1)
        _at_least("cpu_threads", self.cpu_threads, 0)
        _at_least("max_worker_restarts", self.max_restarts, 0)
        for name in ("start_timeout", "step_timeout", "shutdown_timeout"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(name, f"{value} is not a number of seconds")


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """The record of the steps; none without a `directory`.

    Args:
        prompts: whether token ids are recorded, without which nothing can be replayed.
        max_bytes: that its files may take.
    """

    directory: Path | None = None
    prompts: bool = False
    max_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("journal_bytes", self.max_bytes, 1 << 20)
        if self.prompts and self.directory is None:
            raise ConfigError("journal_prompts", "there is no journal: name a directory in journal")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All of an engine's configuration."""

    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    workers: WorkerGroupConfig
    log_stats: bool = True
    journal: JournalConfig = field(default_factory=JournalConfig)


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(name, f"{value} is below {low}")


def detect_device() -> str:
    """Return "musa" where torch_musa is installed, else "cpu"; imports neither."""
    return "musa" if importlib.util.find_spec("torch_musa") is not None else "cpu"
