"""benchmarks/kernels.py over small matrices: it measures every kernel and prints what it found."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import kernels
from mtactors.kernels import native
from mtactors.kernels.native import CpuOperations


def test_it_measures_every_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads(), native.info().threads
    monkeypatch.setattr(kernels, "COLD_BYTES", 1 << 16)
    monkeypatch.setattr(kernels, "SECONDS", 0)
    monkeypatch.setattr(kernels, "VOCAB", 512)
    monkeypatch.setitem(kernels.PRODUCTS, "lm_head", (512, kernels.HIDDEN))
    monkeypatch.setattr(kernels, "HEAD_ROWS", 4)
    try:
        options = "--threads 1 --rows 4 5 --repeats 2 --dtype float32"
        kernels.main(options.split())
    finally:
        torch.set_num_threads(threads[0])
        native.load().set_threads(threads[1])
    machine, head, *rows, line = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert "GB/s" in machine and head.split()[:3] == ["kernel", "rows", "best"]
    assert len(rows) == len(report["timings"])
    assert min(report["limits"].values()) > 0
    found = {(one["name"], one["rows"]): one for one in report["timings"]}
    assert {("qkv", 5), ("lm_head", 4), ("rope", 4), ("sample top-p 0.9", 128)} <= found.keys()
    assert ("lm_head", 5) not in found
    for one in found.values():
        assert len(one["seconds"]) == 2 and min(one["seconds"]) > 0
        assert len(one["torch_seconds"]) in (0, 2)
        assert one["limit"] > 0


@pytest.mark.parametrize("isa", native.info().runnable)
def test_a_product_reads_what_its_weight_is_held_in(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "COLD_BYTES", 1 << 16)
    n, k = kernels.PRODUCTS["down"]
    monkeypatch.setattr(kernels, "PRODUCTS", {"down": (n, k)})
    (work,) = kernels.products(CpuOperations(isa), 2, torch.bfloat16)
    others = 2 * 2 * (n + k)
    given = 2 * n * k
    if isa == "portable":
        assert given <= work.num_bytes - others <= 1.01 * given
    else:
        assert 0.75 * given <= work.num_bytes - others < 0.8 * given


def test_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    timing = kernels.Timing("x", 7, [3e-6, 2e-6, 4e-6], [9e-6, 8e-6], limit=1e-6)
    alone = kernels.Timing("y", 7, [2e-6], [], limit=1e-6)
    kernels.report([timing, alone], kernels.Limits(2e9, 3e9))
    machine, _, first, second = capsys.readouterr().out.splitlines()
    assert machine == "machine: 2.0 GB/s read, 3 GFLOP/s"
    assert first.split() == ["x", "7", "2.0", "3.0", "1.0", "50%", "4.00"]
    assert second.split()[-1] == "-"
