"""Collectives of three ranks, each a process; what they found comes back as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from mtactors.worker.comm import Alone

_RANKS = 3
# One process imports torch and forks the ranks: three imports at once take seconds.
_SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from mtactors import kernels
from mtactors.worker.comm import join

directory = Path(sys.argv[1])
rank = next((rank for rank in (1, 2) if os.fork() == 0), 0)
torch.set_num_threads(1)
kernels.load("cpu")
group = join(rank, 3, torch.device("cpu"), directory, shared=sys.argv[2] == "shared")
group.minimum(0)
unlinked = os.listdir(directory) == []
partial = torch.randn(5, 700, generator=torch.Generator().manual_seed(rank))
sums = group.reduce_sum(partial.clone(), torch.bfloat16)
alone = torch.cat([group.reduce_sum(row[None].clone(), torch.bfloat16) for row in partial])
gathered = group.all_gather(torch.tensor([[rank, 10.0], [20.0, rank]]))
ids = torch.tensor([7, -1, 9], dtype=torch.int32) if rank == 0 else None
maps = Path("/proc/self/maps").read_text()
found = {
    "unlinked": unlinked,
    "in_dev_shm": "/dev/shm" in maps,
    "anonymous": "memfd:mtactors-ranks" in maps,
    "sums": sums.float().tolist(),
    "batch_invariant": torch.equal(sums, alone),
    "gathered": gathered.tolist(),
    "ids": group.broadcast_ids(ids, 3).tolist(),
    "minimum": group.minimum(100 - rank),
}
(directory / f"{rank}.json").write_text(json.dumps(found))
# Not through torch's teardown, which waits for the others.
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in (1, 2)] if rank == 0 else []
os._exit(0 if not any(codes) else 1)
"""


@pytest.fixture(scope="module", params=["gloo", "shared"])
def found(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("group")
    command = [sys.executable, "-c", _SCRIPT, str(directory), request.param]
    subprocess.run(command, cwd=directory, timeout=90, check=True)
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(_RANKS)]


def test_sums_are_made_in_rank_order_and_rounded_once(found: list[dict[str, Any]]) -> None:
    parts = [
        torch.randn(5, 700, generator=torch.Generator().manual_seed(rank)) for rank in range(_RANKS)
    ]
    truth = ((parts[0] + parts[1]) + parts[2]).bfloat16().float().tolist()
    assert [rank["sums"] for rank in found] == [truth] * _RANKS


def test_a_rows_sum_does_not_depend_on_the_batch(found: list[dict[str, Any]]) -> None:
    assert all(rank["batch_invariant"] for rank in found)


def test_gathering_puts_rank_0_first(found: list[dict[str, Any]]) -> None:
    truth = [[0.0, 10.0, 1.0, 10.0, 2.0, 10.0], [20.0, 0.0, 20.0, 1.0, 20.0, 2.0]]
    assert [rank["gathered"] for rank in found] == [truth] * _RANKS


def test_everybody_learns_rank_0s_ids_and_the_least_value(found: list[dict[str, Any]]) -> None:
    assert [rank["ids"] for rank in found] == [[7, -1, 9]] * _RANKS
    assert [rank["minimum"] for rank in found] == [98] * _RANKS


def test_the_rendezvous_file_is_gone_once_all_have_joined(found: list[dict[str, Any]]) -> None:
    assert found[0]["unlinked"]


def test_ranks_keep_nothing_in_dev_shm(
    found: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    """A container gives /dev/shm 64 MB by default: whatever lies there could run out."""
    assert not any(rank["in_dev_shm"] for rank in found)
    shared = request.node.callspec.params["found"] == "shared"
    assert [rank["anonymous"] for rank in found] == [shared] * _RANKS


def test_one_rank_alone_needs_nobody() -> None:
    group = Alone()
    part = torch.randn(2, 3)
    ids = torch.tensor([1], dtype=torch.int32)
    assert torch.equal(group.reduce_sum(part, torch.bfloat16), part.bfloat16())
    assert group.all_gather(part) is part
    assert torch.equal(group.broadcast_ids(ids, 1), ids)
    assert group.minimum(5) == 5
