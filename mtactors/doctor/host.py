"""What the machine has: versions, driver, cards, libraries, memory to share, a compiler.

Reads files, versions and the output of the vendor's own tools; computes nothing on a device.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from mtactors import kernels
from mtactors.doctor.report import Check
from mtactors.errors import ConfigError
from mtactors.worker import limits, musa

_MIB = 1 << 20
_SMALL_SHM = 64 * _MIB
# What goes with what: torch_musa names the torch that it was made for, from 2.5 on.
_OLD_PAIRS = {"1.3": "2.2", "2.0": "2.2"}
# Checks that only look where things usually are.
_FILES_ONLY = ("driver", "cards", "torch_musa")
_HOMES = ("/usr/local/musa",)


def host_checks(device: str) -> Iterator[Check]:
    """Yield what is true of the host, for one kind of device."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    yield Check("torch", "ok", torch.__version__)
    yield from {"cpu": _cpu, "musa": _musa, "cuda": _cuda}[device]()
    yield _shared_memory(device)


def softened(check: Check) -> Check:
    """Return what a check of files is worth once the device has been opened: a hint at most."""
    if check.state != "failed" or check.name not in _FILES_ONLY:
        return check
    found = f"{check.found}; and yet the device works"
    return dataclasses.replace(check, state="hint", found=found)


def toolkit_home() -> Path | None:
    """Return where the MUSA toolkit is, None if it is nowhere."""
    named = [os.environ.get("MUSA_HOME"), os.environ.get("MUSA_PATH")]
    places = [Path(place) for place in (*named, *_HOMES) if place]
    return next((place for place in places if (place / "bin").is_dir()), None)


def _cpu() -> Iterator[Check]:
    yield Check(
        "processor",
        "ok",
        f"{limits.default_threads(1)} thread(s), {limits.available_memory() / 2**30:.1f} GiB free",
    )
    try:
        build = kernels.info()
    except (ConfigError, ImportError) as error:
        yield Check("cpu build", "failed", str(error), "install mtactors again: pip install .")
        return
    runnable = ", ".join(build.runnable)
    yield Check("cpu build", "ok", f"{build.isa}: {build.why}; this CPU runs {runnable}")
    yield _tool("compiler", os.environ.get("CXX", "c++"), "needed only to install from source")


def _cuda() -> Iterator[Check]:
    if torch.version.cuda is None:
        remedy = "install a torch that is built for CUDA"
        yield Check("cuda", "failed", "this torch was built without CUDA", remedy)
        return
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    state, found = ("ok", f"{count}: {names}") if count else ("failed", "torch sees none")
    yield Check("cards", state, found, "" if count else "see nvidia-smi")  # type: ignore[arg-type]


def _musa() -> Iterator[Check]:
    host = musa.look()
    yield _driver(host)
    yield from _cards(host)
    yield from _toolkit()
    yield _torch_musa()
    yield _mccl()
    yield from _buses(host)


def _driver(host: musa.Host) -> Check:
    if not host.driver:
        return Check("driver", "failed", musa.explain(None, host), "install the MUSA driver")
    tool = shutil.which("mthreads-gmi")
    shown = _first_line([tool, "--version"]) if tool else "mthreads-gmi is not on the PATH"
    version = f"module {host.version}, " if host.version else ""
    return Check("driver", "ok", f"{version}{shown}")


def _cards(host: musa.Host) -> Iterator[Check]:
    seen = musa.count_visible(host, os.environ)
    found = f"{seen} of {host.nodes} visible{musa.describe_mask(os.environ)}"
    if not seen:
        yield Check("cards", "failed", found, musa.explain(None, host))
        return
    yield Check("cards", "ok", found)
    try:
        ml = import_module("pymtml")
        ml.nvmlInit()
        for index in range(ml.nvmlDeviceGetCount()):
            handle = ml.nvmlDeviceGetHandleByIndex(index)
            memory = ml.nvmlDeviceGetMemoryInfo(handle)
            name = ml.nvmlDeviceGetName(handle)
            text = f"{name}: {memory.free / _MIB:,.0f} of {memory.total / _MIB:,.0f} MiB free"
            yield _card(index, text, int(memory.total))
    except ImportError:
        yield Check("card memory", "skipped", "no pymtml (pip install mthreads-ml-py)")
    except Exception as error:  # its own class, known only where it is installed
        yield Check("card memory", "hint", f"pymtml: {error}", "see mthreads-gmi")


def _card(index: int, text: str, total: int) -> Check:
    name = f"card {index}"
    if "S4000" in text and total < 40 << 30:
        # An S4000 has 48 GB; with the IOMMU off it shows 32 GB.
        return Check(name, "hint", text, "an S4000 has 48 GB: switch the IOMMU on in the BIOS")
    return Check(name, "ok", text)


def _toolkit() -> Iterator[Check]:
    home = toolkit_home()
    if home is None:
        remedy = "needed only to build the kernels: install it, or set MUSA_HOME"
        yield Check("toolkit", "hint", "no MUSA toolkit in MUSA_HOME or /usr/local/musa", remedy)
        return
    yield Check("toolkit", "ok", str(home))
    yield _tool("compiler", str(home / "bin/mcc"), "needed to build the kernels")


def _torch_musa() -> Check:
    try:
        version = importlib.metadata.version("torch_musa")
    except importlib.metadata.PackageNotFoundError:
        remedy = "use Moore Threads' image or wheels: see docs/musa.md"
        return Check("torch_musa", "failed", "not installed", remedy)
    wanted = paired_torch(version)
    if release(torch.__version__) != wanted:
        return Check(
            "torch_musa",
            "hint",
            f"{version} is made for torch {wanted}, and torch is {torch.__version__}",
            "install both from one place: see docs/musa.md",
        )
    return Check("torch_musa", "ok", version)


def paired_torch(version: str) -> str:
    """Return the torch, as `release` has it, that a torch_musa was made for."""
    parts = release(version)
    minor = ".".join(parts.split(".")[:2])
    return release(_OLD_PAIRS[minor] + ".0") if minor in _OLD_PAIRS else parts


def release(version: str) -> str:
    """Return "2.7.1" of "2.7.1.post2+musa5.2.0"."""
    return ".".join(version.partition("+")[0].split(".")[:3])


def _mccl() -> Check:
    places = ["libmccl.so.2", "libmccl.so"]
    home = toolkit_home()
    if home is not None:
        places += [str(home / folder / "libmccl.so") for folder in ("lib", "lib64")]
    for place in places:
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return Check("mccl", "ok", place)
    remedy = "needed for more than one card: it comes with the toolkit for S4000 and later"
    return Check("mccl", "hint", "no libmccl.so is found", remedy)


def _buses(host: musa.Host) -> Iterator[Check]:
    groups = Path("/sys/kernel/iommu_groups")
    on = groups.is_dir() and any(groups.iterdir())
    if not on:
        remedy = "several cards need it, and an S4000 shows 32 of its 48 GB without: see the BIOS"
        yield Check("iommu", "hint", "off, or not visible from in here", remedy)
    else:
        yield Check("iommu", "ok", "on")
    if host.nodes > 1:
        found = "not readable without root" if os.geteuid() else "look with the command below"
        command = "sudo lspci -vvv | grep ACSCtl: every SrcValid+ on a switch between cards must go"
        yield Check("acs", "hint", found, f"if one card works and several hang: {command}")


def _shared_memory(device: str) -> Check:
    try:
        state = os.statvfs("/dev/shm")
    except OSError:
        return Check("/dev/shm", "ok", "not there, and not needed")
    size = state.f_blocks * state.f_frsize
    found = f"{size / _MIB:,.0f} MiB"
    if device == "cpu":
        return Check("/dev/shm", "ok", f"{found}; not used: ranks share anonymous memory")
    if size < _SMALL_SHM:
        return Check("/dev/shm", "hint", found, "collectives may need more: --shm-size=1g")
    return Check("/dev/shm", "ok", f"{found}; mtactors uses none, the collectives' library may")


def _tool(name: str, program: str, purpose: str) -> Check:
    path = shutil.which(program)
    if path is None:
        return Check(name, "hint", f"no {program}", purpose)
    return Check(name, "ok", f"{path}: {_first_line([path, '--version'])}")


def _first_line(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    lines = (run.stdout + run.stderr).strip().splitlines()
    return lines[0].strip() if lines else "says nothing"
