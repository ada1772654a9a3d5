"""Every operation by the device kernels on a GPU, and through the copies that its tests make."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mtactors.kernels import device, golden
from tests.kernels.musa.conftest import GPU, NOT_INSTALLED
from tests.kernels.musa.elsewhere import Elsewhere

CPU = torch.device("cpu")


def test_copies_bring_every_result_back() -> None:
    path = device.installed_library("emulated-musa")
    if path is None:
        pytest.skip(NOT_INSTALLED)
    ops = Elsewhere(path, "cpu")
    assert not ops.reference
    findings = list(golden.check(ops, CPU, torch.float16))
    assert {finding.operation for finding in findings} >= {"rope", "kv_write", "copy_blocks"}
    assert [finding.describe() for finding in findings if not finding.right] == []


@pytest.mark.skipif(not GPU, reason="no GPU that torch can use, or no nvcc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_computes_what_it_must(gpu_library: Path, dtype: torch.dtype) -> None:
    ops = Elsewhere(gpu_library, "cuda")
    print(torch.cuda.get_device_name(), ops.info(), shutil.which("nvcc"))
    findings = list(golden.check(ops, CPU, dtype))
    assert [finding.describe() for finding in findings if not finding.right] == []
