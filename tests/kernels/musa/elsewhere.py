"""Operations on another device than the tests' tensors, so that one test runs on each device."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtactors.kernels import _native
from mtactors.kernels.device import OPERATIONS, DeviceOperations
from tests.kernels.musa.emulated import MUSA

#: Operations whose results are written into their arguments.
IN_PLACE = ("rope", "kv_write", "copy_blocks")


def build_for_gpu(target: Path) -> Path:
    """Compile the device kernels with nvcc."""
    command = [str(MUSA / "nvidia" / "build.sh"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


class Elsewhere(DeviceOperations):
    """Copies arguments to a device, and what an operation returns or writes back to the CPU."""

    def __init__(self, path: Path, device: str) -> None:
        super().__init__(_native.Backend.library(str(path)), str(path), device_type=device)
        self._device = torch.device(device)
        for name in OPERATIONS:
            setattr(self, name, partial(self._run, getattr(self, name), name in IN_PLACE))

    def _run(
        self, operation: Callable[..., Any], in_place: bool, *args: object, **options: object
    ) -> Any:
        pairs: list[tuple[Tensor, Tensor]] = []

        def there(tensor: Tensor) -> Tensor:
            # The same strides: what lies between rows is part of the test.
            copy = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device
            )
            pairs.append((tensor, copy.copy_(tensor)))
            return copy

        moved = operation(*_each(args, there), **_each(options, there))
        if in_place:
            for original, copy in pairs:
                original.copy_(copy)
        return _each(moved, Tensor.cpu)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_each(entry, change) for entry in value)
    if isinstance(value, dict):
        return {name: _each(entry, change) for name, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _each(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **changed)
    return value
