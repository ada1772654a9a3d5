"""The fake cards' collectives: a backend named mccl that hands the bytes to gloo."""

# What this imitates is written in C++, or not typed.
# mypy: disable-error-code="override,attr-defined,name-defined,call-arg,misc,no-any-return"
from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from torch_musa import memory


def register() -> None:
    dist.Backend.register_backend("mccl", _make, devices=["musa"])


def _make(store: Any, rank: int, size: int, timeout: timedelta) -> _Mccl:
    return _Mccl(store, rank, size, timeout)


class _Done(dist._Work):
    """A collective that is over."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._future: Future[Any] = Future()
        self._future.set_result(result)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True

    def get_future(self) -> Future[Any]:
        return self._future


class _Mccl(dist.ProcessGroup):
    """What of a process group the ranks of a decoder need."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:
        return "mccl"

    def allreduce(self, tensors: list[Tensor], options: Any = None) -> _Done:
        (tensor,) = tensors
        host = _host(tensor)
        self._gloo.allreduce([host], options or dist.AllreduceOptions()).wait()
        if "all_reduce" in os.environ.get("FAKE_MUSA_BROKEN", ""):
            host += 1
        return _Done(tensors)

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any = None
    ) -> _Done:
        (parts,), (part,) = outputs, inputs
        self._gloo.allgather([[_host(each) for each in parts]], [_host(part)]).wait()
        return _Done(outputs)

    def broadcast(self, tensors: list[Tensor], options: Any = None) -> _Done:
        self._gloo.broadcast([_host(tensors[0])], options or dist.BroadcastOptions()).wait()
        return _Done(tensors)

    def barrier(self, options: Any = None) -> _Done:
        self._gloo.barrier(dist.BarrierOptions()).wait()
        return _Done([])


def _host(tensor: Tensor) -> Tensor:
    if tensor.device.type != "musa":
        raise RuntimeError("mccl takes tensors of a card only")
    if not tensor.is_contiguous():
        raise RuntimeError("mccl takes contiguous tensors only")
    if tensor.dtype not in (torch.float32, torch.float16, torch.int32, torch.int64):
        raise RuntimeError(f"mccl does not take {tensor.dtype} here")
    return memory.on_host(tensor)
