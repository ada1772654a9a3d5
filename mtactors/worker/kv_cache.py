"""The KV cache of one rank: how many blocks fit, and the tensors that hold them.

Layout (blocks, block_size, kv_heads, head_dim), one tensor for K and one for V per layer. Knows
nothing of which block belongs to whom: that is the front's.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from mtactors.errors import ConfigError
from mtactors.wire.messages import Configure
from mtactors.worker.device import Device, Memory

# On a CPU the model shares the host with everything else: without being told, take no more.
CPU_DEFAULT_BYTES = 4 << 30
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class KvShape:
    """One token's place in the cache of one rank; `kv_heads` are this rank's, padded."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one position, K and V of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KvCache:
    """K and V of each layer: (blocks, block_size, kv_heads, head_dim), the model's dtype."""

    layers: list[tuple[Tensor, Tensor]]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, for block copies."""
        return [tensor for pair in self.layers for tensor in pair]

    @property
    def num_blocks(self) -> int:
        """Blocks of each tensor."""
        return self.layers[0][0].shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of address space; on a CPU a block costs memory when it is first written."""
        return sum(tensor.numel() * tensor.itemsize for tensor in self.tensors)


def budget(memory: Memory, weight_bytes: int, working_bytes: int, configure: Configure) -> int:
    """Return the bytes that this rank's cache may take.

    Args:
        memory: as it was before the weights were loaded; or after, with `weight_bytes` 0.
        weight_bytes: of this rank.
        working_bytes: what a step's tensors take at most, of this rank.
    """
    if configure.kv_cache_memory_bytes:
        return configure.kv_cache_memory_bytes
    utilization = configure.gpu_memory_utilization
    if not memory.shared:
        used = memory.total - memory.free
        return int(utilization * memory.total) - used - weight_bytes - working_bytes
    ranks = configure.world_size
    room = utilization * (memory.free - ranks * (weight_bytes + working_bytes))
    return min(CPU_DEFAULT_BYTES, int(room) // ranks)


def working_bytes(configure: Configure, hidden: int, intermediate: int, vocab_rows: int) -> int:
    """Return an upper estimate of a step's activations and logits in bytes."""
    activations = configure.max_num_batched_tokens * (8 * hidden + 3 * intermediate) * 4
    # Logits, a copy of them to work on, and an order of the ids.
    return activations + configure.max_num_seqs * vocab_rows * 12


def count_blocks(budget_bytes: int, shape: KvShape, configure: Configure) -> int:
    """Return how many blocks `budget_bytes` hold.

    Raises:
        ConfigError: not even one sequence of max_model_len fits; the text says what would.
    """
    block_size, wanted = configure.block_size, configure.max_model_len
    blocks = max(0, budget_bytes) // (block_size * shape.token_bytes)
    needed = -(-wanted // block_size)
    if blocks >= needed:
        return int(blocks)
    short = (
        f"{wanted} tokens need {_mib(needed * block_size * shape.token_bytes)} of KV cache and "
        f"there is room for {_mib(max(0, budget_bytes))}"
    )
    advice = (
        "free some memory, or raise --gpu-memory-utilization or --kv-cache-memory-bytes"
        if not configure.kv_cache_memory_bytes
        else "raise --kv-cache-memory-bytes"
    )
    if blocks:
        advice = f"lower --max-model-len to {blocks * block_size}, or {advice}"
    raise ConfigError("max_model_len", f"{short}: {advice}")


def allocate(blocks: int, block_size: int, shape: KvShape, device: Device) -> KvCache:
    """Return the cache's tensors.

    Raises:
        MemoryError: the address space or the device's memory is not there.
    """
    dimensions = (blocks, block_size, shape.kv_heads, shape.head_dim)
    make = _reserve if device.torch_device.type == "cpu" else _zeros

    def tensor() -> Tensor:
        return make(dimensions, shape.dtype, device.torch_device)

    return KvCache([(tensor(), tensor()) for _ in range(shape.layers)])


def _reserve(dimensions: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Map anonymous pages: they read as zeros and cost nothing until they are written.

    torch.empty could hand out recycled heap memory, and a NaN in a position past a sequence's
    end would spoil the whole row: 0 * NaN is NaN.
    """
    size = dtype.itemsize
    for dimension in dimensions:
        size *= dimension
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        text = f"cannot map {_mib(size)} for the KV cache: {error.strerror}"
        raise MemoryError(f"{text}; lower --kv-cache-memory-bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Attention walks through blocks that lie anywhere: small pages cost it a page walk each.
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(dimensions)


def _zeros(dimensions: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.zeros(dimensions, dtype=dtype, device=device)
    except RuntimeError as error:  # torch has no common out-of-memory class for all devices
        raise MemoryError(f"no memory for the KV cache: {error}") from error


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
