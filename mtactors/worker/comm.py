"""How the ranks of a group talk to each other.

One rank: not at all. Ranks on the CPUs of one host: through shared memory. Others:
torch.distributed, over gloo on the CPU, where sums are made in rank order whatever gloo does
inside; mccl and nccl carry device tensors. The tests run the branch for mccl over a stand-in; it
has not met a Moore Threads card. Knows nothing of models or plans.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mtactors.errors import WorkerStartError
from mtactors.kernels.shared import SharedComm, SharedRegion
from mtactors.layers.comm import Comm, SingleRank

_DEVICE_BACKENDS = {"musa": "mccl", "cuda": "nccl"}
_JOIN_SECONDS = 600.0
_ADVICE = "see `mtactors doctor`; several cards need the IOMMU on and ACS off"


class Group(Comm, Protocol):
    """What a worker asks of its group, beside what the layers ask."""

    def broadcast_ids(self, ids: Tensor | None, count: int) -> Tensor:
        """Return rank 0's `ids`, (count,) int32 on the host; other ranks give None."""

    def minimum(self, value: int) -> int:
        """Return the least `value` of any rank."""


class Alone(SingleRank):
    """The group of one rank."""

    def broadcast_ids(self, ids: Tensor | None, count: int) -> Tensor:
        """Return the ids."""
        assert ids is not None, "rank 0 samples"
        return ids.cpu()

    def minimum(self, value: int) -> int:
        """Return the value."""
        return value


class Ranks:
    """Several ranks over torch.distributed.

    The host's collectives go over gloo. On the CPU the reductions do as well: gathered and added
    in rank order, since gloo's own all-reduce splits a tensor by its length, and then a row's sum
    would depend on the batch.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device, run_dir: Path) -> None:
        # Imported here: one rank alone does not need it, and it is slow.
        import torch.distributed as dist

        # gloo listens where the host's name resolves to; ranks of one host need no network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.rank = rank
        self.world_size = world_size
        self._dist = dist
        rendezvous = run_dir / "rendezvous"
        store = dist.FileStore(str(rendezvous), world_size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        self._device_group = None
        if device.type != "cpu":
            self._device_group = dist.new_group(backend=_DEVICE_BACKENDS[device.type])
            self._warm_up(device)
        dist.barrier()
        if rank == 0:
            rendezvous.unlink(missing_ok=True)

    def _warm_up(self, device: torch.device) -> None:
        """Make the device's connections now, not in the first step, and see that they add up.

        Raises:
            WorkerStartError: the library fails, or a sum is wrong.
        """
        backend = _DEVICE_BACKENDS[device.type]
        ones = torch.ones(self.world_size, dtype=torch.float32, device=device)
        try:
            self._dist.all_reduce(ones, group=self._device_group)
            sums = ones.tolist()
        except RuntimeError as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WorkerStartError(f"{backend} does not work: {first}; {_ADVICE}") from error
        if sums != [float(self.world_size)] * self.world_size:
            raise WorkerStartError(
                f"{backend} adds wrongly: {self.world_size} ranks of ones gave {sums[0]:g}; "
                f"{_ADVICE}"
            )

    def reduce_sum(self, partial: Tensor, dtype: torch.dtype) -> Tensor:
        """Add the ranks' float32 partial sums and round once; in rank order on the CPU."""
        if self._device_group is not None:
            self._dist.all_reduce(partial, group=self._device_group)
            return partial.to(dtype)
        parts = self._gather(partial)
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total.to(dtype)

    def all_gather(self, part: Tensor) -> Tensor:
        """Return (T, world_size * N), rank 0's columns first."""
        return torch.cat(list(self._gather(part)), dim=-1)

    def broadcast_ids(self, ids: Tensor | None, count: int) -> Tensor:
        """Send rank 0's ids to all, over the host."""
        received = torch.empty(count, dtype=torch.int32) if ids is None else ids.cpu()
        self._dist.broadcast(received, src=0)
        return received

    def minimum(self, value: int) -> int:
        """Return the least value of any rank."""
        least = torch.tensor([value], dtype=torch.int64)
        self._dist.all_reduce(least, op=self._dist.ReduceOp.MIN)
        return int(least.item())

    def _gather(self, part: Tensor) -> Tensor:
        """Return (world_size, *part.shape), the ranks' parts in rank order."""
        parts = part.new_empty((self.world_size, *part.shape))
        self._dist.all_gather(list(parts.unbind()), part.contiguous(), group=self._device_group)
        return parts


def join(
    rank: int, world_size: int, device: torch.device, run_dir: Path, *, shared: bool = False
) -> Group:
    """Return this rank's group; with several ranks, wait until all have joined.

    Args:
        run_dir: the ranks' own directory, where they find each other.
        shared: the ranks are on the CPUs of one host and shall use its memory.

    Raises:
        WorkerStartError: rank 0 did not come.
    """
    if world_size == 1:
        return Alone()
    if shared:
        return _join_shared(rank, world_size, run_dir)
    return Ranks(rank, world_size, device, run_dir)


def _join_shared(rank: int, world_size: int, run_dir: Path) -> SharedComm:
    meeting = run_dir / "shared-memory"
    region = SharedRegion(world_size) if rank == 0 else None
    if region is not None:
        draft = meeting.with_suffix(".draft")
        draft.write_text(region.path)
        draft.rename(meeting)
    comm = SharedComm(_read_when_there(meeting), rank, world_size)
    comm.minimum(0)  # all have mapped it
    if region is not None:
        region.close()
        meeting.unlink()
    return comm


def _read_when_there(path: Path) -> str:
    until = time.monotonic() + _JOIN_SECONDS
    while time.monotonic() < until:
        if path.exists():
            return path.read_text()
        time.sleep(0.002)
    raise WorkerStartError(f"rank 0 did not come within {_JOIN_SECONDS:.0f} s")
