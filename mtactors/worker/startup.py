"""From a Configure message to a runner that takes plans.

Every step of it fails with an error that says what the user can do. Knows nothing of sockets:
progress is reported through a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from mtactors import kernels
from mtactors.checkpoint.loader import load_decoder
from mtactors.errors import ConfigError, WorkerStartError
from mtactors.families import load_spec
from mtactors.families.spec import DecoderSpec
from mtactors.kernels import Operations, golden
from mtactors.models.decoder import Decoder
from mtactors.wire.messages import Configure, Ready
from mtactors.worker import comm, kv_cache
from mtactors.worker.comm import Group
from mtactors.worker.device import Device, Memory, open_device
from mtactors.worker.grammar import Grammars, Vocabulary
from mtactors.worker.kv_cache import KvCache, KvShape
from mtactors.worker.profile import measure_step
from mtactors.worker.rows import Rows
from mtactors.worker.runner import Runner
from mtactors.worker.sampler import Sampler

Report = Callable[[str, float], None]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@runtime_checkable
class _Threaded(Protocol):
    """Operations with a thread pool of their own, beside torch's."""

    def set_threads(self, count: int) -> None:
        """Use `count` threads."""


def claim_process() -> None:
    """Set what is set once in a process: operations run one at a time, with all threads."""
    if torch.get_num_interop_threads() != 1:  # torch takes it once, and before any use
        torch.set_num_interop_threads(1)


def prepare(configure: Configure, report: Report) -> tuple[Runner, Ready]:
    """Load everything and return the runner, with the message that says so.

    Args:
        report: called with each phase and its seconds: "check", "group" (several ranks), "load",
            "kv".

    Raises:
        UsageError: device, checkpoint or memory are not as asked for.
        MemoryError: the KV cache cannot be had.
        WorkerStartError: the device computes wrongly.
    """
    clock = _Clock(report)
    device = open_device(configure.device, configure.rank)
    ops = _load_operations(configure, device)
    if configure.golden_check:
        _check_operations(ops, device, _dtype(configure.dtype))
        clock.phase("check")
    group = comm.join(
        configure.rank,
        configure.world_size,
        device.torch_device,
        Path(configure.run_dir),
        shared=configure.device == "cpu" and configure.kernels != "reference",
    )
    if group.world_size > 1:
        clock.phase("group")
    memory = device.memory()
    decoder = _load_decoder(configure, ops, group, device)
    device.synchronize()
    clock.phase("load")
    cache = _make_cache(configure, decoder, group, device, memory)
    clock.phase("kv")
    runner = _make_runner(configure, decoder, cache, ops, group)
    ready = Ready(
        epoch=configure.epoch,
        rank=configure.rank,
        num_blocks=cache.num_blocks,
        kv_bytes=cache.num_bytes,
        weight_bytes=decoder.weights.num_bytes(),
        device_name=device.name,
        kernels=ops.name,
    )
    return runner, ready


def _load_operations(configure: Configure, device: Device) -> Operations:
    threads = device.set_threads(configure.cpu_threads, configure.world_size)
    device.seed(0)
    ops = kernels.load(configure.device, configure.kernels)
    if isinstance(ops, _Threaded):
        ops.set_threads(threads)
    return ops


def _check_operations(ops: Operations, device: Device, dtype: torch.dtype) -> None:
    """Refuse a device that computes wrongly: it would serve nonsense without an error.

    Raises:
        WorkerStartError: naming the first operation that is wrong, and by how much.
    """
    with torch.inference_mode():
        wrong = golden.first_wrong(ops, device.torch_device, dtype)
    if wrong is not None:
        raise WorkerStartError(
            f"{device.name} with {ops.name} kernels computes wrongly: {wrong.describe()}; "
            f"see `mtactors doctor --device {device.kind}`, or try --kernels reference"
        )


def _load_decoder(configure: Configure, ops: Operations, group: Group, device: Device) -> Decoder:
    directory = Path(configure.model_dir)
    try:
        return load_decoder(
            directory,
            load_spec(directory),
            ops,
            _dtype(configure.dtype),
            comm=group,
            device=device.torch_device,
            max_positions=configure.max_model_len,
            reshard=configure.reshard,
        )
    except RuntimeError as error:
        # torch's host allocator has no exception class of its own, nor has every device's.
        if any(text in str(error).lower() for text in ("out of memory", "can't allocate memory")):
            raise MemoryError(f"no memory for the weights of {directory}") from error
        raise


def _make_cache(
    configure: Configure, decoder: Decoder, group: Group, device: Device, memory: Memory
) -> KvCache:
    """Allocate what the poorest rank has room for.

    Args:
        memory: as it was before the weights were loaded.
    """
    spec = decoder.spec
    if memory.shared or configure.kv_cache_memory_bytes:
        working = kv_cache.working_bytes(
            configure, spec.hidden_size, spec.intermediate_size, spec.vocab_rows
        )
        budget = kv_cache.budget(memory, decoder.weights.num_bytes(), working, configure)
    else:
        # Nobody else draws from a device's own memory: what is left can be known, not guessed.
        working = measure_step(decoder, device, configure)
        budget = kv_cache.budget(device.memory(), 0, working, configure)
    shape = KvShape(spec.num_layers, decoder.kv_heads, spec.head_dim, decoder.dtype)
    # The least room first, then the blocks: every rank refuses, or none.
    blocks = kv_cache.count_blocks(group.minimum(budget), shape, configure)
    cache = kv_cache.allocate(blocks, configure.block_size, shape, device)
    decoder.bind(cache.layers)
    return cache


def _make_runner(
    configure: Configure, decoder: Decoder, cache: KvCache, ops: Operations, group: Group
) -> Runner:
    rows = Rows(
        configure.max_num_seqs,
        configure.max_model_len,
        configure.block_size,
        cache.num_blocks,
        configure.max_num_batched_tokens,
        decoder.spec.vocab_rows,
    )
    spec = decoder.spec
    sampler = Sampler(
        ops,
        decoder.device,
        configure.max_num_seqs,
        spec.vocab_rows,
        spec.sampleable_ids,
        _make_grammars(configure, spec) if group.rank == 0 else None,
    )
    return Runner(decoder, cache, rows, sampler, ops, group, digests=configure.digests)


def _make_grammars(configure: Configure, spec: DecoderSpec) -> Grammars:
    directory = Path(configure.tokenizer_dir or configure.model_dir)

    def load() -> Vocabulary:
        return Vocabulary(directory, spec.vocab_rows, spec.sampleable_ids, spec.stop_ids)

    return Grammars(load, threads=torch.get_num_threads())


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigError("dtype", f"{name!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


class _Clock:
    """Reports phases, each with the seconds since the one before."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = time.perf_counter()

    def phase(self, name: str) -> None:
        now = time.perf_counter()
        self._report(name, now - self._last)
        self._last = now
