"""Libraries of device kernels made for the host, and what tests ask of the emulator in them.

Knows no operation. kernels/musa/emulator/control.h documents the controls.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

MUSA = Path(__file__).parents[3] / "kernels" / "musa"
EMULATOR = sorted((MUSA / "emulator").glob("*.cpp"))
#: What a library needs to be opened as `_native.Backend`.
LIBRARY = MUSA / "library.mu"

COMPILER = shutil.which(os.environ.get("CXX", "c++"))
NO_COMPILER = "no C++ compiler (c++, or what CXX names) to build device kernels for the host with"

_FLAGS = [
    *("-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-strict-aliasing"),
]


def build(target: Path, sources: Sequence[Path], *, defines: Sequence[str] = ()) -> Path:
    """Compile `.mu` sources and the emulator into one library.

    Includes are looked for beside each source first, so a changed copy of a header counts.
    """
    assert COMPILER, NO_COMPILER
    command = [
        *(COMPILER, *_FLAGS, *(f"-D{name}" for name in defines), "-I", str(MUSA / "emulator")),
        *("-iquote", str(MUSA.parent), "-iquote", str(MUSA), "-x", "c++"),
        *map(str, (*sources, *EMULATOR)),
        *("-o", str(target)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


class Emulator:
    """The emulator inside of a library that is open in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.mt_emulator_configure.argtypes = (ctypes.c_uint64, ctypes.c_int, ctypes.c_int)
        self.library.mt_emulator_fault.restype = ctypes.c_char_p
        self.library.mt_emulator_launches.restype = ctypes.c_int64
        self.library.mt_emulator_allocate.argtypes = (ctypes.c_int64, ctypes.c_int64)
        self.library.mt_emulator_allocate.restype = ctypes.c_void_p

    def configure(self, seed: int = 0, warp: int = 32, *, guard: bool = False) -> None:
        """Say how later launches run."""
        assert self.library.mt_emulator_configure(seed, warp, int(guard)) == 0

    @contextmanager
    def running(self, seed: int = 0, warp: int = 32, *, guard: bool = False) -> Iterator[None]:
        """Say how launches run in the block; afterwards as they do by default."""
        self.configure(seed, warp, guard=guard)
        try:
            yield
        finally:
            self.configure()

    @property
    def fault(self) -> str:
        """Why the last launch failed, or nothing."""
        text: bytes = self.library.mt_emulator_fault()
        return text.decode()

    @property
    def launches(self) -> int:
        """Launches until now."""
        count: int = self.library.mt_emulator_launches()
        return count

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return NaN (or -1) whose last element is followed by a page that may not be touched.

        The memory stays until the process ends: tests are small.
        """
        count = math.prod(shape)
        num_bytes = count * dtype.itemsize
        address = self.library.mt_emulator_allocate(num_bytes, dtype.itemsize)
        assert address is not None
        if not count:
            return torch.zeros(*shape, dtype=dtype)
        memory = (ctypes.c_char * num_bytes).from_address(address)
        return torch.frombuffer(memory, dtype=dtype).view(*shape)

    def guarded(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy that ends where memory ends."""
        copy = self.empty(tensor.shape, tensor.dtype)
        copy.copy_(tensor)
        return copy

    @contextmanager
    def results_guarded(self) -> Iterator[None]:
        """Let what torch makes empty in the block be such memory."""

        def empty(*shape: int | Sequence[int], dtype: torch.dtype, **_: object) -> Tensor:
            sizes = [one for part in shape for one in ([part] if isinstance(part, int) else part)]
            return self.empty(sizes, dtype)

        def empty_like(tensor: Tensor) -> Tensor:
            return self.empty(tensor.shape, tensor.dtype)

        with patch.object(torch, "empty", empty), patch.object(torch, "empty_like", empty_like):
            yield
