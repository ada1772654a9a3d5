"""The device kernels' sources keep to names and forms that are known to work with MUSA.

What CUDA has besides would compile with nvcc: these rules forbid it, each with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels.musa.emulated import MUSA

COMMON = "common.muh"
SOURCES = sorted([*MUSA.glob("*.mu"), *MUSA.glob("*.muh")])

# Names of the language, of its compilers and of <musa_fp16.h> and <musa_bf16.h> that MUSA is known
# to have; the kernels use no others with two underscores in front.
RESERVED = {
    *("__global__", "__device__", "__host__", "__forceinline__", "__launch_bounds__"),
    *("__half", "__half2float", "__float2half"),
    *("__mt_bfloat16", "__bfloat162float", "__float2bfloat16"),
    *("__syncthreads", "__restrict__", "__builtin_assume_aligned"),
}
# Those that common.muh alone may use, because it wraps them.
RESERVED_IN_COMMON = RESERVED | {
    *("__shared__", "__align__", "__MUSA_ARCH__", "__clang__", "__VA_ARGS__"),
    *("__shfl_xor_sync", "__shfl_sync", "__shfl_up_sync"),
}
# Pattern and reason; `atomicAdd` of 4 bytes is the only one that needs no loop on some chip.
FORBIDDEN = [
    (r"\bcuda\w*|\bCUDA\w*|\b__nv_\w+|\b__CUDA\w*", "CUDA's names"),
    (r"\basm\b|\bwmma\b|\bnvcuda\b|\bmma_sync\b", "assembly and tensor cores: mcc has others"),
    (r"\b__(ballot|any|all|activemask|match)\w*", "votes: unknown with 128 lanes"),
    (r"\b__syncwarp\b", "unknown on mp_22"),
    (r"\bwarpSize\b", "kernels think in sub-warps of 32 lanes"),
    (r"\batomic(?!Add\b)\w+", "only atomicAdd of 4 bytes is everywhere"),
    (r"\bdouble\b", "slow, or computed as float"),
    (r"\bh(exp|log|sqrt|rsqrt|sin|cos|add|mul|fma)\d?\b|\b__h\w+(?<!__half)(?<!__half2float)\(",
     "arithmetic of half: missing in some versions, so it is done in float"),
    (r"\bstd::|\bprintf\b|\bassert\(|\bmalloc\b|\bnew\b", "not on the device"),
    (r"\bcooperative_groups\b|\btex\w*\(|\bsurf\w*\(", "not known to work"),
]  # fmt: skip
# Forms that only common.muh may spell.
WRAPPED = [
    (r"<<<", "MT_LAUNCH: a host compiler cannot read <<<>>>"),
    (r"\bextern\s+__shared__|\b__shared__\b", "MT_SHARED: the emulator fills it with NaN"),
    (r"\b__shfl\w*", "sub_shfl_*: their width is 32 lanes on every chip"),
    (r"\b__MUSA_ARCH__\b", "one path for all chips, so that it is the tested one"),
]


def code(text: str) -> str:
    """Return C++ without comments and without the contents of strings."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return re.sub(r'"[^"\n]*"', '""', text)


def faults(name: str, text: str) -> Iterator[str]:
    """Yield what breaks a rule in a source of that name."""
    plain = code(text)
    common = name == COMMON
    for pattern, reason in [*FORBIDDEN, *([] if common else WRAPPED)]:
        for found in re.finditer(pattern, plain):
            yield f"{found[0]}: {reason}"
    allowed = RESERVED_IN_COMMON if common else RESERVED
    for word in sorted(set(re.findall(r"\b__\w+", plain)) - allowed):
        yield f"{word}: not among the names that MUSA is known to have"
    for call in re.findall(r"\b__shfl\w*\(([^;]*)\);", plain):
        if not re.fullmatch(r".*,\s*kSubWarp", call):
            yield f"__shfl({call}): without the width of 32 lanes it is the hardware's"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_keeps_to_what_musa_has(path: Path) -> None:
    assert list(faults(path.name, path.read_text())) == []


@pytest.mark.parametrize(
    ("name", "line", "word"),
    [
        ("rows.mu", "cudaMemset(p, 0, 4);", "CUDA"),
        ("rows.mu", "__nv_bfloat16 x;", "CUDA"),
        (COMMON, "#if defined(__CUDA_ARCH__)", "CUDA"),
        ("rows.mu", 'asm volatile("membar.gl;");', "assembly"),
        ("rows.mu", "if (__any_sync(kAllLanes, x)) return;", "votes"),
        (COMMON, "__syncwarp();", "mp_22"),
        ("rows.mu", "kernel<<<1, 128>>>();", "MT_LAUNCH"),
        ("rows.mu", "__shared__ float x[4];", "MT_SHARED"),
        ("rows.mu", "__shfl_xor_sync(kAllLanes, x, 1, kSubWarp);", "sub_shfl"),
        (COMMON, "return __shfl_sync(kAllLanes, x, 1);", "width"),
        (COMMON, "return __shfl_sync(kAllLanes, x, kSubWarp, 32);", "width"),
        ("rows.mu", "atomicMax(p, 1);", "atomicAdd"),
        ("rows.mu", "const double x = 0.5;", "slow"),
        ("rows.mu", "x = hexp(y);", "half"),
        ("rows.mu", "x = __hadd(y, z);", "half"),
        ("rows.mu", "x = __popc(y);", "not among"),
        ("rows.mu", "#if __MUSA_ARCH__ >= 310", "one path"),
        ("rows.mu", "for (int i = 0; i < warpSize; ++i) {}", "sub-warps"),
    ],
)
def test_a_broken_rule_is_found(name: str, line: str, word: str) -> None:
    assert any(word in fault for fault in faults(name, line))


def test_comments_and_strings_may_say_anything() -> None:
    text = '/* no __syncwarp,\n no cudaMalloc */ // asm\nconst char* x = "double";'
    assert list(faults("rows.mu", text)) == []


def test_the_list_of_names_holds_those_in_use_and_no_others() -> None:
    shim = code((MUSA / "nvidia" / "musa_runtime.h").read_text())
    listed = set(re.findall(r"#define (musa\w+)", shim))
    sources = "".join(code(path.read_text()) for path in SOURCES)
    used = set(re.findall(r"\bmusa[A-Z]\w*", sources))
    assert listed == used
    for name in listed:
        assert re.search(rf"#define {name} {name.replace('musa', 'cuda', 1)}\n", shim)
