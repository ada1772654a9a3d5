"""The device kernels compile for each chip through the list of names, and fit into a block's means.

nvcc stands in for MUSA's compiler here; test_clang.py asks the front end that it is made from.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtactors.kernels.device import OPERATIONS, open_library
from tests.kernels.musa.emulated import MUSA

SOURCES = sorted(MUSA.glob("*.mu"))
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc to compile device kernels with")

# What a block may use. Shared memory: the least known of any chip. Registers: what 128 for each of
# 256 threads come to. Local memory: where nvcc has more threads at a time in mind, it moves a few
# values of a kernel's beginning there; an array that is indexed at run time would take more.
SHARED_BYTES = 28 * 1024
REGISTERS = 128 * 256
LOCAL_BYTES = 64

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<frame>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_THREADS = re.compile(r"\.entry (?P<name>\w+)\(.*?\.maxntid (?P<threads>\d+), 1, 1", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Use:
    """What one kernel uses; bytes a thread, shared bytes a block."""

    threads: int
    registers: int
    shared_bytes: int
    local_bytes: int


def uses(log: str, ptx: str) -> dict[str, Use]:
    """Return what each kernel uses, from the log of `ptxas -v` and its input."""
    threads = {found["name"]: int(found["threads"]) for found in _THREADS.finditer(ptx)}
    result = {}
    for found in _ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        result[found["name"]] = Use(
            threads=threads[found["name"]],
            registers=int(found["registers"]),
            shared_bytes=int(shared[1]) if shared else 0,
            local_bytes=max(int(found[key]) for key in ("frame", "stores", "loads")),
        )
    return result


def readable(name: str) -> str:
    """Return a kernel's name as it is written, without its arguments."""
    if shutil.which("c++filt"):
        name = subprocess.check_output(["c++filt", name], text=True).strip()
    return name.replace("mt::(anonymous namespace)::", "").replace("void ", "").split("(")[0]


def nvcc(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the front of nvcc alone: `target` receives PTX."""
    assert NVCC
    includes = [f"-I{path}" for path in (MUSA.parent, MUSA, MUSA / "nvidia")]
    command = [NVCC, "-x", "cu", "-std=c++17", "-O3", "-fmad=false", "-arch=sm_80", "-ptx"]
    return subprocess.run(
        [*command, *includes, *options, str(source), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )


@needs_nvcc
def test_every_kernel_compiles_and_fits(tmp_path: Path) -> None:
    target = tmp_path / "library.so"
    done = subprocess.run(
        [MUSA / "nvidia" / "build.sh", target, "-Xptxas=-v", "--keep", f"--keep-dir={tmp_path}"],
        env={**os.environ, "SM": "sm_80", "MT_MUSA_ARCH": "310"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    ptx = {path: (tmp_path / f"{path.stem}.ptx").read_text() for path in SOURCES}
    found = uses(done.stdout, "".join(ptx.values()))
    for name, use in sorted(found.items(), key=lambda item: readable(item[0])):
        print(f"{readable(name):40} {use}")
    assert len(found) == sum(text.count(".entry ") for text in ptx.values()) > 20
    for name, use in found.items():
        assert use.threads % 128 == 0, readable(name)
        assert use.shared_bytes <= SHARED_BYTES, readable(name)
        assert use.registers * use.threads <= REGISTERS, readable(name)
        assert use.local_bytes <= LOCAL_BYTES, readable(name)
    opened = open_library(str(target))
    assert opened.name == "nvidia-musa"
    assert set(opened.backend.operations) == set(OPERATIONS.values())


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_for_the_older_chip(tmp_path: Path, source: Path) -> None:
    done = nvcc(source, tmp_path / "out.ptx", "-DMT_MUSA_ARCH=220")
    assert done.returncode == 0, done.stderr
    # Only common.muh asks for the chip (test_lint.py), so the bounds above hold for this one too.
    assert "warning" not in done.stderr


@needs_nvcc
@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("int f(void** p) { return musaMalloc(p, 1); }", ["-DMT_MUSA_ARCH=310"], "musaMalloc"),
        ("musaEvent_t event;", ["-DMT_MUSA_ARCH=310"], "musaEvent_t"),
        ("int warp = musaDevAttrWarpSize;", ["-DMT_MUSA_ARCH=310"], None),
        ("", ["-DMT_MUSA_ARCH=210"], "needs mp_22 or newer"),
        ("", [], "say which chip"),
    ],
)
def test_an_unknown_name_or_chip_does_not_compile(
    tmp_path: Path, text: str, options: list[str], message: str | None
) -> None:
    source = tmp_path / "source.mu"
    source.write_text(f'#include "common.muh"\n{text}\n')
    done = nvcc(source, tmp_path / "out.ptx", *options)
    if message is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert message in done.stderr
