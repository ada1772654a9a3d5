"""Every operation of a device against its known answer, with the size of the error.

Knows nothing of models; the cases are `kernels.golden`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mtactors import kernels
from mtactors.doctor.report import Check
from mtactors.errors import MtactorsError
from mtactors.kernels import golden
from mtactors.worker.device import Device

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}


def operation_checks(device: Device, name: str) -> Iterator[Check]:
    """Yield one check for each operation and dtype.

    Args:
        name: as `--kernels` has it.
    """
    try:
        ops = kernels.load(device.kind, name)
    except MtactorsError as error:
        yield Check("kernels", "failed", str(error), "see docs/musa.md on how they are built")
        return
    if name == "auto" and ops.name == "reference":
        slow = "plain torch computes everything, slowly"
        yield Check("kernels", "hint", slow, "build the kernels: see docs/musa.md, or try --build")
    else:
        yield Check("kernels", "ok", ops.name)
    for label, dtype in _DTYPES.items():
        if dtype is torch.bfloat16 and not has_bfloat16(device):
            yield Check(f"operations {label}", "skipped", "this architecture has no bfloat16")
            continue
        with torch.inference_mode():
            yield from _compare(list(golden.check(ops, device.torch_device, dtype)), label, device)


def has_bfloat16(device: Device) -> bool:
    """Whether a device computes in bfloat16: Moore Threads' do from 2.2 on."""
    return device.kind != "musa" or (device.capability or (0, 0)) >= (2, 2)


def _compare(found: list[golden.Finding], label: str, device: Device) -> Iterator[Check]:
    wrong = [finding for finding in found if not finding.right]
    for finding in wrong:
        error, bound = (None, None) if finding.problem else (finding.error, finding.bound)
        yield Check(
            f"{finding.operation} {label}",
            "failed",
            finding.describe(),
            _remedy(finding, device),
            operation=finding.operation,
            error=error,
            bound=bound,
        )
    if not wrong:
        worst = max(found, key=lambda finding: finding.error)
        yield Check(
            f"operations {label}",
            "ok",
            f"{len(found)} give their known answers; the worst, {worst.describe()}",
            operation=worst.operation,
            error=worst.error,
            bound=worst.bound,
        )


def _remedy(finding: golden.Finding, device: Device) -> str:
    if finding.operation == "linear" or device.kind != "musa":
        return "try --kernels reference; if that fails as well, torch or the device is at fault"
    return f"serve with --kernels musa,-{finding.operation} until it is mended, and report it"
