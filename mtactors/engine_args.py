"""`EngineArgs`: every argument of the engine under vLLM's name, as Python and flags spell it.

The one list of arguments: the command line derives its flags and their help from the fields
here. Turns itself into an `EngineConfig`; opens nothing but generation_config.json, by way of
`mtactors.generation_defaults`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtactors.config import (
    DEVICES,
    DTYPES,
    CacheConfig,
    EngineConfig,
    JournalConfig,
    ModelConfig,
    SchedulerConfig,
    WorkerGroupConfig,
    detect_device,
)
from mtactors.errors import ConfigError
from mtactors.families.spec import DecoderSpec
from mtactors.generation_defaults import read_generation_defaults

Choice = tuple[str, ...]


def _arg(default: Any, text: str, **extra: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **extra})


def _refused(default: Any, reason: str, *also: Any) -> Any:
    """Declare an argument of vLLM's that is refused unless it says what this engine does."""
    return dataclasses.field(
        default=default,
        repr=False,
        metadata={"help": f"Refused: {reason}.", "refused": reason, "allowed": (default, *also)},
    )


_NO_QUANTIZATION = "weights are served in float16, bfloat16 or float32"
_NO_RAY = "worker processes are started by the engine itself, without Ray"
_NO_LORA = "LoRA adapters are not supported; merge them into the checkpoint"
_NO_ROPE = "rope settings come from the checkpoint's config.json"
_NO_SPECULATION = "speculative decoding is not supported"


@dataclass
class EngineArgs:
    """Arguments of the engine, vLLM's names and meanings.

    Raises:
        ConfigError: at construction, an argument that this engine does not support; from
            `create_engine_config`, a value outside its range.
    """

    model: str | None = _arg(
        None, "A directory, a .gguf file or a hub name; without it the demo model smollm2-135m."
    )
    served_model_name: str | Sequence[str] | None = _arg(
        None, "Name(s) the API answers to; default: the model argument as typed.", group="model"
    )
    tokenizer: str | None = _arg(
        None, "Directory of the tokenizer; default: the model's.", group="model"
    )
    revision: str | None = _arg(None, "Branch, tag or commit on the hub.", group="model")
    trust_remote_code: bool = _arg(
        False,
        "Accepted and not needed: no code that comes with a checkpoint is ever run.",
        group="model",
    )
    dtype: str = _arg(
        "auto",
        "Type of weights and KV cache. auto: bfloat16 on cpu, float16 on musa.",
        choices=DTYPES,
        group="model",
    )
    reshard: bool = _arg(
        False,
        "Re-shard a converted checkpoint at load that was made for another tensor parallel size.",
        group="model",
    )
    max_model_len: int | None = _arg(
        None, "Tokens of prompt and output together; default: the model's own.", group="model"
    )
    generation_config: str = _arg(
        "auto",
        "Where the sampling defaults of requests come from: auto (the model's "
        "generation_config.json), vllm (no file: the API's own), or a directory with the file.",
        group="model",
    )
    seed: int | None = _arg(
        None, "Base of the seeds drawn for requests that name none.", group="model"
    )
    device: str = _arg(
        "auto", "Where the model runs; auto takes musa when there.", choices=DEVICES, group="device"
    )
    tensor_parallel_size: int = _arg(
        1, "Worker processes that share the model, one per GPU.", short="-tp", group="device"
    )
    cpu_threads: int = _arg(
        0,
        "Threads per worker on cpu; 0: physical cores divided by the workers.",
        group="device",
    )
    kernels: str = _arg(
        "auto",
        "Kernel implementation: auto, cpu, musa, emulated-musa (the MUSA sources on cpu, to test "
        "them), the path of a library of them, or reference (plain torch). Behind those of MUSA, "
        "',-sample' leaves an operation to plain torch.",
        group="device",
    )
    skip_golden_check: bool = _arg(
        False,
        "Start without comparing each operation with its known answer; by default a device that "
        "computes wrongly does not serve.",
        group="device",
    )
    block_size: int = _arg(64, "Tokens per KV cache block.", group="cache")
    gpu_memory_utilization: float = _arg(
        0.9,
        "Share of the device's memory for weights and KV cache. On cpu: share of the memory "
        "available to this process group that the KV cache may take after the weights, "
        "4 GiB at most.",
        group="cache",
    )
    kv_cache_memory_bytes: int | None = _arg(
        None,
        "Bytes of KV cache per worker, on cpu and GPU alike; overrides gpu_memory_utilization.",
        group="cache",
    )
    enable_prefix_caching: bool = _arg(
        True, "Reuse the KV cache of equal prompt beginnings.", group="cache"
    )
    max_num_seqs: int = _arg(128, "Sequences computed at once.", group="scheduler")
    max_num_batched_tokens: int | None = _arg(
        None, "Tokens computed in one step; default 2048.", group="scheduler"
    )
    max_num_queued_reqs: int = _arg(
        0, "Waiting requests before the server answers 429; 0: no bound.", group="scheduler"
    )
    max_worker_restarts: int = _arg(
        3, "Replacements of a dead worker group within 10 minutes.", group="failure"
    )
    step_timeout: float = _arg(
        30.0, "Seconds after which a silent step counts as hung, at least.", group="failure"
    )
    shutdown_timeout: float = _arg(
        30.0, "Seconds that running requests get to finish at shutdown.", group="failure"
    )
    journal: str | None = _arg(
        None,
        "Directory for a journal of all steps, written as they happen; see docs/reliability.md.",
        group="failure",
    )
    journal_prompts: bool = _arg(
        False,
        "Record the token ids of prompts and outputs too: mtactors replay needs them.",
        group="failure",
    )
    journal_bytes: int = _arg(
        256 << 20, "Bytes that the journal's files may take; the oldest go.", group="failure"
    )
    enforce_eager: bool = _arg(
        True, "Accepted; this engine never compiles graphs.", group="compatibility"
    )
    disable_log_stats: bool = _arg(False, "No statistics line every 10 s.", group="log")
    pipeline_parallel_size: int = _refused(1, "only 1 is supported; use tensor_parallel_size")
    data_parallel_size: int = _refused(1, "start one server per replica")
    kv_cache_dtype: str = _refused("auto", "the KV cache has the model's dtype")
    quantization: str | None = _refused(None, _NO_QUANTIZATION)
    load_format: str = _refused("auto", "the format is recognised from the files", "safetensors")
    worker_use_ray: bool = _refused(False, _NO_RAY)
    distributed_executor_backend: str | None = _refused(None, _NO_RAY, "mp")
    rope_scaling: Any = _refused(None, _NO_ROPE)
    rope_theta: float | None = _refused(None, _NO_ROPE)
    hf_overrides: Any = _refused(None, "edit the checkpoint's config.json instead")
    enable_lora: bool = _refused(False, _NO_LORA)
    lora_modules: Any = _refused(None, _NO_LORA)
    speculative_model: str | None = _refused(None, _NO_SPECULATION)
    speculative_config: Any = _refused(None, _NO_SPECULATION)
    enable_chunked_prefill: bool | None = _refused(None, "prompts are always chunked", True)
    swap_space: float = _refused(0, "preempted requests are recomputed, not swapped")
    cpu_offload_gb: float = _refused(0, "weights are not offloaded")
    skip_tokenizer_init: bool = _refused(False, "the engine stops at text, so it needs one")
    tokenizer_mode: str = _refused("auto", "only fast tokenizers are used", "fast")
    gpu_id: int | None = _refused(None, "choose cards with MTHREADS_VISIBLE_DEVICES")

    def __post_init__(self) -> None:
        """Refuse what is not supported, by name and with the reason."""
        for field in dataclasses.fields(self):
            reason = field.metadata.get("refused")
            value = getattr(self, field.name)
            if reason is not None and value not in field.metadata["allowed"]:
                raise ConfigError(field.name, f"{value!r} is not supported: {reason}")
        for name, allowed in (("device", DEVICES), ("dtype", DTYPES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(name, f"{value!r} is not one of {', '.join(allowed)}")

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> EngineArgs:
        """Build from keyword arguments; an unknown one is a ConfigError that suggests another."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in kwargs:
            if name not in names:
                raise ConfigError(name, "is not an engine argument" + _suggestion(name, names))
        return cls(**kwargs)

    def create_engine_config(
        self, directory: Path, spec: DecoderSpec, tokenizer_directory: Path | None = None
    ) -> EngineConfig:
        """Check every value and resolve "auto"s against the model found in `directory`.

        Raises:
            ConfigError: naming field, value and allowed range.
        """
        device = detect_device() if self.device == "auto" else self.device
        if device != "cpu" and self.block_size != 64:
            raise ConfigError("block_size", f"{self.block_size}: only 64 on {device}")
        return EngineConfig(
            model=self._model_config(directory, spec, device, tokenizer_directory),
            cache=CacheConfig(
                block_size=_integer("block_size", self.block_size),
                utilization=_number("gpu_memory_utilization", self.gpu_memory_utilization),
                memory_bytes=_integer("kv_cache_memory_bytes", self.kv_cache_memory_bytes or 0),
                enable_prefix_caching=self.enable_prefix_caching,
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=_integer("max_num_seqs", self.max_num_seqs),
                max_num_batched_tokens=_integer("max_num_batched_tokens", self._batched_tokens()),
                max_num_queued=_integer("max_num_queued_reqs", self.max_num_queued_reqs),
            ),
            workers=WorkerGroupConfig(
                device=device,
                tensor_parallel_size=_integer("tensor_parallel_size", self.tensor_parallel_size),
                cpu_threads=_integer("cpu_threads", self.cpu_threads),
                kernels=self.kernels,
                step_timeout=_number("step_timeout", self.step_timeout),
                shutdown_timeout=_number("shutdown_timeout", self.shutdown_timeout),
                max_restarts=_integer("max_worker_restarts", self.max_worker_restarts),
                digests=bool(self.journal),
                golden_check=not self.skip_golden_check,
            ),
            log_stats=not self.disable_log_stats,
            journal=JournalConfig(
                directory=Path(self.journal).expanduser() if self.journal else None,
                prompts=self.journal_prompts,
                max_bytes=_integer("journal_bytes", self.journal_bytes),
            ),
        )

    def _batched_tokens(self) -> int:
        if self.max_num_batched_tokens is None:
            return max(2048, self.max_num_seqs)
        return self.max_num_batched_tokens

    def _model_config(
        self, directory: Path, spec: DecoderSpec, device: str, tokenizer_directory: Path | None
    ) -> ModelConfig:
        longest = spec.max_position
        wanted = longest if self.max_model_len is None else self.max_model_len
        if _integer("max_model_len", wanted) > longest:
            raise ConfigError(
                "max_model_len", f"{wanted} is above the model's own {longest} positions"
            )
        model = self.model or "smollm2-135m"
        names = self.served_model_name or model
        return ModelConfig(
            model=model,
            directory=directory,
            tokenizer_directory=tokenizer_directory or directory,
            served_names=(names,) if isinstance(names, str) else tuple(names),
            spec=spec,
            dtype=_resolve_dtype(self.dtype, device),
            max_model_len=wanted,
            seed=self.seed,
            reshard=self.reshard,
            sampling_defaults=read_generation_defaults(self.generation_config, directory),
        )


@dataclass
class AsyncEngineArgs(EngineArgs):
    """`EngineArgs` plus what vLLM's asynchronous engine adds."""

    disable_log_requests: bool = _arg(False, "No line per request.", group="log")
    engine_use_ray: bool = _refused(False, _NO_RAY)


def _resolve_dtype(dtype: str, device: str) -> str:
    if dtype == "auto":
        return "bfloat16" if device == "cpu" else "float16"
    return {"half": "float16", "float": "float32"}.get(dtype, dtype)


def _integer(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(field, f"{value!r} is not an integer")
    return value


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(field, f"{value!r} is not a number")
    return float(value)


def _suggestion(name: str, names: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""
