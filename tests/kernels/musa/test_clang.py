"""The front end of clang 14, which MUSA's compiler is made from, reads every kernel as CUDA.

It checks what a host compiler and nvcc do not: what a device function may call, and templates as
clang reads them, in the pass for the host and in that for each chip. Nothing is generated, and the
SDK's names are only declared (clang/), as far as they are known: that mcc accepts the sources is
likely then, not proved.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.musa.emulated import MUSA

cindex = pytest.importorskip("clang.cindex", reason="libclang is not installed")

SOURCES = sorted(MUSA.glob("*.mu"))
#: The SDK's names, and what the kernels use of the C library.
DECLARED = [Path(__file__).with_name(name) for name in ("clang", "freestanding")]


def complaints(source: Path, arch: int, side: str) -> list[str]:
    """Return the warnings and errors of one pass."""
    arguments = [
        *("-x", "cuda", "-std=c++17", f"--cuda-{side}-only", "--cuda-gpu-arch=sm_80"),
        # No SDK and no system: neither their headers nor their versions count.
        *("-nocudainc", "-nocudalib", "--cuda-path=/nonexistent", "-nostdinc"),
        *("-Wall", "-Wextra", f"-DMT_MUSA_ARCH={arch}", *(f"-I{path}" for path in DECLARED)),
        *("-iquote", str(MUSA.parent), "-iquote", str(MUSA)),
    ]
    parsed = cindex.Index.create().parse(str(source), args=arguments)
    return [str(diagnostic) for diagnostic in parsed.diagnostics]


@pytest.mark.parametrize("side", ["device", "host"])
@pytest.mark.parametrize("arch", [220, 310])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_clang_reads_every_kernel(source: Path, arch: int, side: str) -> None:
    assert complaints(source, arch, side) == []


@pytest.mark.parametrize(
    ("arch", "text", "message"),
    [
        (
            220,
            "int host(); __global__ void k(int* p) { *p = host(); }",
            "no matching function for call",
        ),
        (220, "musaEvent_t event;", "unknown type name 'musaEvent_t'"),
        (220, "__device__ mt::f16 f() { return 1.0f; }", "no viable conversion"),
        (220, "template <typename T> void f() { undeclared(); }", "undeclared identifier"),
        (210, "", "needs mp_22 or newer"),
    ],
)
def test_clang_refuses(tmp_path: Path, arch: int, text: str, message: str) -> None:
    source = tmp_path / "source.mu"
    source.write_text(f'#include "common.muh"\n{text}\n')
    found = complaints(source, arch, "device")
    assert len(found) == 1
    assert message in found[0]
