"""The operations of a library of device kernels (kernels/musa), and which library to open.

Matrix products are torch's, which calls the vendor's. An operation that the library lacks, or
that was switched off by name, is the reference's: said once at load, and in `name` from then on.
Knows no models and no worker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
import torch.nn.functional as F

from mtactors.errors import ConfigError
from mtactors.kernels import LinearWeight, Operations, _native
from mtactors.kernels.addresses import CODES
from mtactors.kernels.checked import CheckedOperations, shapes
from mtactors.kernels.reference import OPERATIONS as REFERENCE
from mtactors.kernels.reference import PlainLinear

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

#: Operation -> what the library calls it.
OPERATIONS = {
    "embedding": "embedding",
    "rms_norm": "rms_norm",
    "add_rms_norm": "rms_norm",
    "rope": "rope",
    "kv_write": "kv_write",
    "paged_attention": "attention",
    "silu_and_mul": "silu_and_mul",
    "copy_blocks": "copy_blocks",
    "sample": "sample",
    "logprobs": "logprobs",
}
#: What a library calls itself -> the device whose tensors it takes, as torch names it.
DEVICE_TYPES = {"musa": "musa", "nvidia": "cuda", "emulated": "cpu"}
_NAMES = {"musa": "musa", "nvidia": "nvidia-musa", "emulated": "emulated-musa"}
_FILES = {"musa": "libmtactors_musa.so", "emulated-musa": "libmtactors_emulated_musa.so"}
_INSTALLED = Path(_native.__file__).parent
_ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Which kernels run on a device.

    `kind`: "musa", "nvidia" or "emulated". `arch`: 220, 310; 0 emulated. `own`: operations of the
    library, `reference`: those that plain torch computes instead; matrix products are in neither.
    """

    kind: str
    path: str
    arch: int
    warp_size: int
    shared_bytes_per_block: int
    multiprocessors: int
    own: tuple[str, ...]
    reference: tuple[str, ...]


class DeviceOperations(CheckedOperations):
    """The operations of `mtactors.kernels.Operations`, which documents them.

    Args:
        backend: an opened library.
        path: of the library, for messages.
        device_type: torch's name of the device whose tensors come; None for the library's own.
        off: operations that the reference computes.
    """

    def __init__(
        self,
        backend: _native.Backend,
        path: str,
        *,
        device_type: str | None = None,
        off: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(backend)
        if backend.kind not in DEVICE_TYPES:
            raise ConfigError("kernels", f"{path} is a library for {backend.kind!r}, not MUSA")
        self.path = path
        self.device_type = device_type or DEVICE_TYPES[backend.kind]
        self._scratch: dict[tuple[torch.device, int], Tensor] = {}
        held = set(backend.operations)
        lacking = {name for name, native in OPERATIONS.items() if native not in held}
        self.reference = tuple(name for name in OPERATIONS if name in lacking | off)
        for name in self.reference:
            why = (
                f"{Path(path).name} has no kernel for it"
                if name in lacking
                else "it was switched off"
            )
            _log.warning("kernels: %s runs in plain torch, slowly: %s", name, why)
            setattr(self, name, getattr(REFERENCE, name))
        self.name = _NAMES[backend.kind]
        if self.reference:
            self.name += f" (reference: {', '.join(self.reference)})"

    def info(self, device: int = 0) -> DeviceInfo:
        """Return what runs, and what the library's runtime says of a device.

        Raises:
            ConfigError: the runtime knows no such device.
        """
        try:
            arch, warp_size, shared_bytes, multiprocessors = self.backend.facts(device)
        except RuntimeError as error:
            raise ConfigError("kernels", f"{self.path}: {error}") from error
        return DeviceInfo(
            kind=self.backend.kind,
            path=self.path,
            arch=arch,
            warp_size=warp_size,
            shared_bytes_per_block=shared_bytes,
            multiprocessors=multiprocessors,
            own=tuple(name for name in OPERATIONS if name not in self.reference),
            reference=self.reference,
        )

    def pack_linear(self, weight: Tensor) -> PlainLinear:
        """Keep a matrix as it is; on a CPU a copy, since it may be the pages of a file."""
        return PlainLinear(weight.clone() if weight.is_cpu else weight.contiguous())

    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Multiply with torch.

        On a GPU the vendor's product is rounded to the dtype of x before `out_dtype` widens it:
        to widen the weights instead would read several times their bytes in every step.
        """
        if x.is_cpu:
            return REFERENCE.linear(x, weight, bias, out_dtype=out_dtype)
        out = F.linear(x, _plain(weight).matrix, bias)
        return out if out_dtype is None else out.to(out_dtype)

    def _place(self, tensor: Tensor) -> tuple[torch.device, int]:
        device = tensor.device
        if device.type != self.device_type:
            raise ValueError(f"a tensor is on {device}, these kernels run on {self.device_type}")
        if device.type == "cpu":
            return device, 0
        stream = getattr(torch, device.type).current_stream(device)
        return device, int(getattr(stream, f"{device.type}_stream"))

    def _rows(self, weight: LinearWeight, device: torch.device) -> tuple[int, int, int, int]:
        matrix = _plain(weight).matrix
        if matrix.device != device:
            raise ValueError(f"a weight is on {matrix.device}, not on {device}")
        return matrix.data_ptr(), matrix.shape[0], matrix.shape[1], CODES[matrix.dtype]

    def _workspace(self, device: torch.device, stream: int, num_bytes: int) -> tuple[int, int]:
        # One per queue: what runs in a queue runs in order, so that its calls can share.
        held = self._scratch.get((device, stream))
        if held is None or held.numel() < num_bytes + _ALIGNMENT:
            if not num_bytes:
                return 0, 0
            held = torch.empty(num_bytes + _ALIGNMENT, dtype=torch.uint8, device=device)
            self._scratch[device, stream] = held
        start = held.data_ptr()
        padding = -start % _ALIGNMENT
        return start + padding, held.numel() - padding

    def _failed(self, operation: str, code: int, *tensors: Tensor) -> NoReturn:
        if code > 0:
            super()._failed(operation, code, *tensors)
        raise ConfigError(
            "kernels",
            f"{operation} of {shapes(tensors)}: {self.backend.error(code)}; "
            f"--kernels {self._switched_off(operation)} lets plain torch compute it",
        )

    def _switched_off(self, operation: str) -> str:
        installed = {str(installed_library(name)): name for name in _FILES}
        base = installed.get(self.path, self.path)
        off = [name for name in OPERATIONS if name in {*self.reference, operation}]
        return ",".join([base, *(f"-{name}" for name in off)])


def _plain(weight: LinearWeight) -> PlainLinear:
    if not isinstance(weight, PlainLinear):
        raise TypeError(f"weight was packed by another implementation: {type(weight).__name__}")
    return weight


def open_library(
    path: str, *, device_type: str | None = None, off: frozenset[str] = frozenset()
) -> DeviceOperations:
    """Return the operations of a library.

    Args:
        path: of the library's file.
        device_type: as in `DeviceOperations`.
        off: operations that the reference computes.

    Raises:
        ConfigError: the library cannot be used; says why.
    """
    try:
        backend = _native.Backend.library(path)
    except RuntimeError as error:
        raise ConfigError("kernels", f"{path} cannot be used: {error}") from error
    return DeviceOperations(backend, path, device_type=device_type, off=off)


def installed_library(name: str) -> Path | None:
    """Return the file of "musa" or "emulated-musa", None where this installation has none."""
    path = _INSTALLED / _FILES[name]
    return path if path.is_file() else None


def why_not_built() -> str:
    """Return in a few words why this installation has no MUSA kernels."""
    report = _INSTALLED / "musa-build.txt"
    return report.read_text().strip() if report.is_file() else "not built"


def read_off(words: Sequence[str]) -> frozenset[str]:
    """Return the operations that words as "-sample" name.

    Raises:
        ConfigError: a word names none.
    """
    for word in words:
        if word[:1] != "-" or word[1:] not in OPERATIONS:
            known = ", ".join(f"-{operation}" for operation in OPERATIONS)
            raise ConfigError("kernels", f"{word!r} is none of {known}")
    return frozenset(word[1:] for word in words)


def load(device: str, name: str, off: frozenset[str] = frozenset()) -> Operations:
    """Return the operations for a device.

    Args:
        device: "cpu", "musa" or "cuda".
        name: "auto" for the installed MUSA kernels, or the reference with a warning where there
            are none; "musa", "emulated-musa", or the path of a library.
        off: operations that the reference computes.

    Raises:
        ConfigError: no such library, or it is for another device, or cannot be used.
    """
    path = name if "/" in name else installed_library("musa" if name == "auto" else name)
    if path is None and name == "emulated-musa":
        raise ConfigError("kernels", f"{name!r} is only in an installation by `make install`")
    if path is None and name == "auto":
        _log.warning(
            "kernels: plain torch computes everything, slowly: MUSA kernels %s", why_not_built()
        )
        return REFERENCE
    if path is None:
        raise ConfigError("kernels", f"the MUSA kernels were {why_not_built()}")
    made = open_library(str(path), off=off)
    if made.device_type != device:
        raise ConfigError("kernels", f"{name!r} does not run on the device {device!r}")
    return made
