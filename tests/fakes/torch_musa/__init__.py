"""Stands in for torch_musa: tensors of a device "musa" whose memory is the host's.

The tensors are real ones of torch's PrivateUse1, so what dispatches by device does so here as
well, and an operation that mixes devices fails as on a card. Every operation runs on the CPU over
the same memory. Not here: kernels, queues (all is done at once), several cards' own memories, and
whatever the real torch_musa does not do, or does otherwise.

Put this file's parent's parent on the path of a process of its own: the device stays until it ends.
FAKE_MUSA_CARDS (2), FAKE_MUSA_BYTES (1 GiB each) and FAKE_MUSA_BROKEN ("import", "context",
"matmul", "all_reduce") say what the machine is like.
"""

# What this imitates is written in C++, or not typed.
# mypy: disable-error-code="no-any-return,no-untyped-call"
from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch.utils import backend_registration

if "import" in os.environ.get("FAKE_MUSA_BROKEN", ""):
    raise ImportError("libmusart.so.4: cannot open shared object file: No such file or directory")

from torch_musa import collectives, memory, operations

__version__ = torch.__version__.partition("+")[0]

_state = {"device": 0}


class _Stream:
    """The one queue; its address is the default queue's."""

    musa_stream = 0

    def synchronize(self) -> None:
        pass


class Event:
    """A moment; everything before it is done when it is recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self._timing = enable_timing
        self._at: float | None = None

    def record(self, stream: _Stream | None = None) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        assert self._at is not None, "not recorded"

    def elapsed_time(self, later: Event) -> float:
        assert self._timing and self._at is not None and later._at is not None
        return (later._at - self._at) * 1e3


def device_count() -> int:
    cards = int(os.environ.get("FAKE_MUSA_CARDS", "2"))
    mask = os.environ.get("MUSA_VISIBLE_DEVICES")
    return cards if mask is None else len([entry for entry in mask.split(",") if entry])


def is_available() -> bool:
    return device_count() > 0


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def _index(device: Any) -> int:
    if device is None:
        return _state["device"]
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return _state["device"] if index is None else index


def set_device(device: Any) -> None:
    index = _index(device)
    if "context" in os.environ.get("FAKE_MUSA_BROKEN", ""):
        raise RuntimeError("MUSA error: the card is in use by another process\nmore text")
    if index >= device_count():
        raise RuntimeError("MUSA error: invalid device ordinal")
    _state["device"] = index


def current_device() -> int:
    return _state["device"]


def synchronize(device: Any = None) -> None:
    pass


def get_device_name(device: Any = None) -> str:
    return "Fake MTT S4000"


def get_device_capability(device: Any = None) -> tuple[int, int]:
    return (2, 2)


def current_stream(device: Any = None) -> _Stream:
    return _Stream()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return memory.total() - memory.allocated(), memory.total()


def memory_allocated(device: Any = None) -> int:
    return memory.allocated()


def max_memory_allocated(device: Any = None) -> int:
    return memory.peak()


def reset_peak_memory_stats(device: Any = None) -> None:
    memory.reset_peak()


def empty_cache() -> None:
    pass


def manual_seed(seed: int) -> None:
    pass


def manual_seed_all(seed: int) -> None:
    pass


backend_registration._setup_privateuseone_for_python_backend(
    rename="musa", backend_module=sys.modules[__name__]
)
operations.register()
collectives.register()
