"""The devices that a worker can run on, behind one small protocol.

The CPU branch is what is tested on hardware. The tests run every line of the musa branch over a
stand-in for torch_musa; neither it nor the cuda branch has met a Moore Threads card. Knows nothing
of models, plans or processes.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from mtactors.errors import ConfigError
from mtactors.worker import limits, musa


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device's memory. `shared`: all ranks of the host draw from the same."""

    free: int
    total: int
    shared: bool


class Event(Protocol):
    """A moment in a device's queue."""

    def synchronize(self) -> None:
        """Wait until the device has come here."""

    def milliseconds_until(self, later: Event) -> float:
        """Return the time between two moments that are both in the past."""


class Device(Protocol):
    """What a worker needs to know of, and ask from, its device."""

    @property
    def kind(self) -> str:
        """The name that `--device` takes."""

    @property
    def name(self) -> str:
        """The product's name, for people."""

    @property
    def torch_device(self) -> torch.device:
        """Where this rank's tensors live."""

    @property
    def capability(self) -> tuple[int, int] | None:
        """The architecture, (2, 2) for mp_22; None where there is no such number."""

    @property
    def stream(self) -> int:
        """The address of the queue that torch uses now, as kernels take it; 0 without one."""

    def memory(self) -> Memory:
        """Return what is free now."""

    def peak_of(self, work: Callable[[], None]) -> int | None:
        """Do some work; return the bytes that it took at most, None where nobody counts them."""

    def set_threads(self, threads: int, local_ranks: int) -> int:
        """Use `threads` host threads, 0 for the default; return the number chosen."""

    def seed(self, value: int) -> None:
        """Seed torch's generators; sampling has its own, counter-based numbers."""

    def record(self) -> Event:
        """Return the moment when what has been given to the device so far is done."""

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""


@dataclass(frozen=True, slots=True)
class _HostMoment:
    seconds: float

    def synchronize(self) -> None:
        """Return at once."""

    def milliseconds_until(self, later: Event) -> float:
        assert isinstance(later, _HostMoment), "two moments of one device"
        return (later.seconds - self.seconds) * 1e3


class Cpu:
    """The host's processors."""

    kind = "cpu"
    torch_device = torch.device("cpu")
    capability: tuple[int, int] | None = None
    stream = 0

    @property
    def name(self) -> str:
        """The processor's model name."""
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
        return platform.machine()

    def memory(self) -> Memory:
        """Return what the host and this process's cgroup leave."""
        return Memory(limits.available_memory(), limits.total_memory(), shared=True)

    def peak_of(self, work: Callable[[], None]) -> int | None:
        """Do the work; nobody counts the host's bytes."""
        work()
        return None

    def set_threads(self, threads: int, local_ranks: int) -> int:
        """Use `threads` compute threads, 0 for this rank's part of the physical cores."""
        chosen = threads or limits.default_threads(local_ranks)
        torch.set_num_threads(chosen)
        return chosen

    def seed(self, value: int) -> None:
        """Seed torch's generator."""
        torch.manual_seed(value)

    def record(self) -> Event:
        """Return now: an operation on the CPU is done when it returns."""
        return _HostMoment(time.perf_counter())

    def synchronize(self) -> None:
        """Return at once, for the same reason."""


@dataclass(frozen=True, slots=True)
class _QueueMoment:
    event: Any  # of torch's module for the device; those share no class

    def synchronize(self) -> None:
        """Wait for the device."""
        self.event.synchronize()

    def milliseconds_until(self, later: Event) -> float:
        assert isinstance(later, _QueueMoment), "two moments of one device"
        return float(self.event.elapsed_time(later.event))


class Accelerator:
    """One GPU through torch's module for it, which becomes the process's current one."""

    def __init__(self, kind: str, module: ModuleType, index: int) -> None:
        self.kind = kind
        self.torch_device = torch.device(kind, index)
        self._module = module
        # Before any process group is made: a group binds itself to the current card.
        module.set_device(index)

    @property
    def name(self) -> str:
        """The product's name."""
        return str(self._module.get_device_name(self.torch_device))

    @property
    def capability(self) -> tuple[int, int] | None:
        """Major and minor number of the architecture."""
        major, minor = self._module.get_device_capability(self.torch_device)
        return int(major), int(minor)

    @property
    def stream(self) -> int:
        """The address of the current queue."""
        return int(getattr(self._module.current_stream(), f"{self.kind}_stream"))

    def memory(self) -> Memory:
        """Return what the driver reports."""
        free, total = self._module.mem_get_info(self.torch_device)
        return Memory(int(free), int(total), shared=False)

    def peak_of(self, work: Callable[[], None]) -> int | None:
        """Do the work; return what torch's allocator held at most beyond what it held before.

        What the allocator keeps in reserve afterwards is given back to the driver.
        """
        module = self._module
        self.synchronize()
        module.reset_peak_memory_stats()
        before = int(module.memory_allocated())
        work()
        self.synchronize()
        peak = int(module.max_memory_allocated())
        module.empty_cache()
        return peak - before

    def set_threads(self, threads: int, local_ranks: int) -> int:
        """Use `threads` host threads, 0 for one: the host only feeds the device."""
        chosen = threads or 1
        torch.set_num_threads(chosen)
        return chosen

    def seed(self, value: int) -> None:
        """Seed torch's generators on host and device."""
        torch.manual_seed(value)
        self._module.manual_seed(value)

    def record(self) -> Event:
        """Put a mark into the current queue."""
        event = self._module.Event(enable_timing=True)
        event.record()
        return _QueueMoment(event)

    def synchronize(self) -> None:
        """Wait for the device."""
        self._module.synchronize()


def open_device(kind: str, local_rank: int = 0) -> Device:
    """Return the device of this rank.

    Raises:
        ConfigError: there is no such device here; the text says what is missing.
    """
    if kind == "cpu":
        return Cpu()
    if kind not in ("musa", "cuda"):
        raise ConfigError("device", f"{kind!r} is not one of cpu, musa, cuda")
    module, reason = _accelerator_module(kind)
    if module is None:
        raise ConfigError("device", f"{kind} is not available: {reason}; use --device cpu")
    seen = int(module.device_count())
    if local_rank >= seen:
        mask = musa.describe_mask(os.environ) if kind == "musa" else ""
        raise ConfigError(
            "tensor_parallel_size",
            f"rank {local_rank} has no device: {seen} {kind} device(s) are visible{mask}",
        )
    try:
        return Accelerator(kind, module, local_rank)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError("device", f"{kind} {local_rank} cannot be used: {first}") from error


def count(kind: str) -> int:
    """Return how many devices of a kind this process sees; the host's processors are one."""
    if kind == "cpu":
        return 1
    module = _accelerator_module(kind)[0]
    return 0 if module is None else int(module.device_count())


def unavailable(kind: str) -> str | None:
    """Return why a device cannot be used here, None if it can."""
    return None if kind == "cpu" else _accelerator_module(kind)[1]


def _accelerator_module(kind: str) -> tuple[ModuleType | None, str | None]:
    if kind == "musa":
        return _musa_module()
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        return None, (
            "torch sees no device of that kind" if built else "this torch was built without it"
        )
    return torch.cuda, None


def _musa_module() -> tuple[ModuleType | None, str | None]:
    """Import torch_musa, which is done nowhere else; return torch.musa, or what is missing."""
    musa.apply_container_mask(musa.look(), os.environ)
    if find_spec("torch_musa") is None:
        return None, musa.explain("torch_musa is not installed (see docs/musa.md)")
    try:
        import_module("torch_musa")
    except Exception as error:  # a missing library, another version of torch: it says what
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return None, musa.explain(f"torch_musa cannot be imported ({first})")
    module: ModuleType = torch.musa  # type: ignore[attr-defined]
    return (module, None) if module.is_available() else (None, musa.explain(None))
