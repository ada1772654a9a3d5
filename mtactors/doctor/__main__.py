"""The command `mtactors doctor`, a program of its own because it needs torch."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from mtactors.config import detect_device
from mtactors.doctor import host, model, operations
from mtactors.doctor.build import build_library
from mtactors.doctor.report import Check, Report
from mtactors.errors import MtactorsError
from mtactors.worker import device as devices

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_MOST_RANKS = 8


@click.command(context_settings=_SETTINGS)
@click.option(
    "--device",
    default="auto",
    type=click.Choice(("auto", "musa", "cuda", "cpu")),
    help="What to look at; auto takes musa when torch_musa is installed.",
)
@click.option("--kernels", default="auto", help="The kernels to check, as for `mtactors serve`.")
@click.option("--build", is_flag=True, help="Build the MUSA kernels first and check those.")
@click.option(
    "--tp", default=0, type=click.IntRange(0, _MOST_RANKS), help="Ranks to compare with one."
)
@click.option("--json", "as_json", is_flag=True, help="No table; JSON is the last line anyhow.")
def main(device: str, kernels: str, build: bool, tp: int, as_json: bool) -> None:
    """Check whether this machine can serve; exit with 1 and say what to do if it cannot."""
    report = Report(detect_device() if device == "auto" else device)
    with tempfile.TemporaryDirectory(prefix="mtactors-doctor-") as directory:
        _examine(report, kernels, build, tp, Path(directory))
    if not as_json:
        report.show(Console())
    print(report.to_json())
    sys.stdout.flush()
    sys.exit(0 if report.ok else 1)


def _examine(report: Report, kernels: str, build: bool, tp: int, directory: Path) -> None:
    looked = list(host.host_checks(report.device))
    if build:
        check, library = build_library(directory)
        looked.append(check)
        if library is not None:
            kernels = str(library)
    try:
        device = devices.open_device(report.device)
    except MtactorsError as error:
        report.add([*looked, Check("device", "failed", str(error), "mend what failed above")])
        return
    report.add([host.softened(check) for check in looked])
    memory = device.memory()
    free = f"{memory.free / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    number = "" if device.capability is None else " {}.{}".format(*device.capability)
    report.add([Check("device", "ok", f"{device.name}{number}, {free}")])
    report.add(operations.operation_checks(device, kernels))
    dtype = "float32" if report.device == "cpu" else "float16"
    ranks = tp or default_ranks(report.device)
    report.add(model.model_checks(model.Trial(report.device, kernels, dtype, ranks)))


def default_ranks(kind: str) -> int:
    """Return two ranks on the CPU, all cards else, as far as they are a power of two."""
    count = 2 if kind == "cpu" else devices.count(kind)
    return max(size for size in (1, 2, 4, 8) if size <= max(count, 1))


if __name__ == "__main__":
    main()
