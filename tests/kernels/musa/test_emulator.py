"""The emulator: what it computes as a device does, and the mistakes that it must report."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.musa.emulated import COMPILER, EMULATOR, NO_COMPILER, Emulator, build

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
PROBES = Path(__file__).with_name("probes.mu")
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class Probes(Emulator):
    """The kernels of probes.mu."""

    def code(
        self,
        name: str,
        values: Tensor | None = None,
        out: Tensor | None = None,
        *,
        n: int | None = None,
        blocks: int = 1,
        threads: int = 128,
        shared: int = 0,
    ) -> int:
        """Run one and return the launch's code."""
        if values is None:
            values = torch.zeros(1)
        if out is None:
            out = torch.zeros(threads * blocks)
        code: int = self.library.probe(
            name.encode(),
            ctypes.c_void_p(values.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            values.numel() if n is None else n,
            blocks,
            threads,
            shared,
        )
        return code


@pytest.fixture(scope="module", params=["registers", "ucontext"])
def probes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Probes:
    """The probes with each way to switch fibres that this machine has."""
    defines = ["MT_EMULATOR_UCONTEXT"] if request.param == "ucontext" else []
    target = tmp_path_factory.mktemp("probes") / f"{request.param}.so"
    return Probes(build(target, [PROBES], defines=defines))


@pytest.fixture(scope="module")
def tmp_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for libraries."""
    return tmp_path_factory.mktemp("libraries")


@pytest.mark.parametrize("warp", [32, 128])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ends_before_barrier", "thread 5 has ended"),
        ("waits_at_two_barriers", "waits at the barrier of probes.mu"),
        ("shuffles_in_half_a_sub_warp", "thread 0 waits at the shuffle of common.muh"),
        ("shuffles_with_a_narrow_mask", "mask ffff and width 16"),
        ("reads_a_lane_too_far", "lane 32 of 32"),
        ("declares_too_much", "28676 bytes of shared memory: 28672 are there"),
        ("writes_past_an_array", "wrote past the end of a shared array"),
        ("accesses_unaligned", "which is not aligned"),
    ],
)
def test_a_mistake_is_an_error_with_kernel_block_and_reason(
    probes: Probes, name: str, reason: str, warp: int
) -> None:
    for seed in (0, 1):
        with probes.running(seed, warp):
            assert probes.code(name, torch.zeros(8)) == 719
            assert reason in probes.fault
            assert f"kernel mt::{name}, block (0, 0, 0): " in probes.fault
    # The next launch works: nothing of the failed one is left.
    assert probes.code("does_nothing") == 0
    assert probes.fault == ""


def test_lanes_that_a_sub_warp_leaves_behind_are_seen_by_the_warp_of_128(probes: Probes) -> None:
    with probes.running(warp=32):
        out = torch.zeros(128)
        assert probes.code("shuffles_in_one_sub_warp", out=out) == 0
        assert out.tolist() == [0.0] * 32 + [32.0] * 32 + [0.0] * 64
    with probes.running(warp=128):
        assert probes.code("shuffles_in_one_sub_warp") == 719
        assert "(hardware warps of 128)" in probes.fault


def test_a_barrier_that_only_other_warps_reach_is_reported(probes: Probes) -> None:
    assert probes.code("shuffles_or_waits", threads=256) == 719
    assert "waits at the barrier" in probes.fault
    assert "has ended" in probes.fault


def test_nothing_runs_between_a_failure_and_the_question_for_it(probes: Probes) -> None:
    out = torch.zeros(128)
    assert probes.code("two_launches", torch.ones(128), out) == 719
    assert "ends_before_barrier" in probes.fault
    assert not out.any()
    assert probes.code("exponentiates", torch.ones(128), out) == 0
    assert out.all()


@pytest.mark.parametrize("threads", [0, 1, 64, 130, 1152])
def test_impossible_blocks_are_refused(probes: Probes, threads: int) -> None:
    assert probes.code("does_nothing", threads=threads) == 9
    assert f"a block of {threads} x 1 x 1 threads" in probes.fault


def test_an_empty_grid_is_refused(probes: Probes) -> None:
    assert probes.code("does_nothing", blocks=0) == 9
    assert "a grid of 0 x 1 x 1 blocks" in probes.fault


def test_shared_memory_is_limited_static_and_dynamic_together(probes: Probes) -> None:
    assert probes.code("takes_dynamic", shared=28 * 1024) == 0
    assert probes.code("takes_dynamic", shared=28 * 1024 + 1) == 9
    assert "28673 bytes of shared memory" in probes.fault
    room = 28 * 1024 - 4 * 4096
    assert probes.code("takes_all_there_is", n=room, shared=room) == 0
    assert probes.code("takes_all_there_is", n=room + 1, shared=room + 1) == 719
    assert "28673 bytes of shared memory" in probes.fault


def test_writes_outside_of_dynamic_shared_memory_are_seen(probes: Probes) -> None:
    assert probes.code("writes_before_dynamic", n=128, shared=128) == 0
    assert probes.code("writes_before_dynamic", n=112, shared=112) == 719
    assert "wrote past" in probes.fault
    with probes.running(guard=True):
        assert probes.code("writes_before_dynamic", n=129, shared=128) == 719
        assert "thread 0 touched memory" in probes.fault


def test_shared_memory_is_nan_in_every_block(probes: Probes) -> None:
    out = torch.zeros(3 * 128)
    assert probes.code("reads_shared_unwritten", out=out, blocks=3) == 0
    assert out.isnan().all()
    out = torch.zeros(128)
    assert probes.code("takes_dynamic", out=out, shared=128) == 0
    assert out.isnan().all()


def test_reading_behind_the_end_names_the_thread(probes: Probes) -> None:
    values = probes.guarded(torch.zeros(1000))
    with probes.running(seed=3, guard=True):
        for _ in range(3):
            assert probes.code("reads_behind_the_end", values) == 719
            address = values.data_ptr() + 4000
            assert f"thread 77 touched memory at {address:#x}" in probes.fault
        assert probes.code("reads_behind_the_end", values, n=999) == 0


def test_a_bad_access_outside_of_launches_still_ends_the_process(probes: Probes) -> None:
    script = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "library.mt_emulator_configure(ctypes.c_uint64(0), 32, 1)\n"
        "print(library.probe(b'does_nothing', None, None, 0, 1, 128, 0), flush=True)\n"
        "print(library.probe(b'reads_behind_the_end', None, None, 0, 1, 128, 0), flush=True)\n"
        "ctypes.string_at(0)\n"
    )
    command = [sys.executable, "-c", script, str(probes.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "719"]
    assert done.returncode == -11


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_orders_are_permutations_that_follow_from_the_seed(probes: Probes, seed: int) -> None:
    runs = []
    for _ in range(2):
        out = torch.zeros(1 + 24 * 128, dtype=torch.int32)
        with probes.running(seed):
            assert probes.code("tells_its_place", out=out) == 0
        runs.append(out[1:].tolist())
    rising = list(range(24 * 128))
    assert runs[0] == runs[1]
    assert sorted(runs[0]) == rising
    assert (runs[0] == rising) is (seed == 0)


def passed_on(probes: Probes) -> list[bool]:
    """Whether the probe was right, for several seeds."""
    values = torch.arange(128.0)
    expected = (torch.arange(128) + 3) % 128 + 3.0
    right = []
    for seed in range(4):
        out = torch.zeros(128)
        with probes.running(seed):
            assert probes.code("passes_on", values, out) == 0
        right.append(torch.equal(out, expected))
    return right


def test_barriers_hold_in_every_order(probes: Probes) -> None:
    assert passed_on(probes) == [True] * 4


@pytest.mark.parametrize("missing", ["FIRST", "SECOND"])
def test_a_missing_barrier_is_wrong_in_every_order(tmp_library: Path, missing: str) -> None:
    define = f"MT_PROBE_NO_{missing}_BARRIER"
    faulty = Probes(build(tmp_library / f"{missing}.so", [PROBES], defines=[define]))
    assert not any(passed_on(faulty))


@pytest.mark.parametrize("warp", [32, 128])
@pytest.mark.parametrize("seed", [0, 5])
def test_shuffles_and_reductions(probes: Probes, warp: int, seed: int) -> None:
    values = torch.randn(256, generator=torch.Generator().manual_seed(1))
    by_warp = values.view(-1, 32)
    with probes.running(seed, warp):
        out = torch.zeros(256, 5)
        assert probes.code("shuffles", values, out, threads=256) == 0
        lanes = torch.arange(32)
        assert torch.equal(out[:, 0], by_warp[:, lanes ^ 1].flatten())
        assert torch.equal(out[:, 1], by_warp[:, 7].repeat_interleave(32))
        up = torch.where(lanes < 3, lanes, lanes - 3)
        assert torch.equal(out[:, 2], by_warp[:, up].flatten())
        sums = out[:, 3].view(-1, 32)
        assert torch.equal(sums, sums[:, :1].expand(-1, 32))
        torch.testing.assert_close(sums[:, 0], by_warp.sum(1), atol=1e-5, rtol=1e-5)
        most = values.view(-1, 8).amax(1)
        assert torch.equal(out[:, 4], most.repeat_interleave(8))
        for threads in (128, 256):
            reduced = torch.zeros(threads, 2)
            code = probes.code(f"reduces<{threads}>", values[:threads], reduced, threads=threads)
            assert code == 0
            assert torch.equal(reduced, reduced[:1].expand(threads, 2))
            # Sub-warps' sums in rising order.
            expected = sums[0, 0]
            for part in sums[1 : threads // 32, 0]:
                expected = expected + part
            assert reduced[0, 0] == expected
            assert reduced[0, 1] == values[:threads].max()


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32 if values.dtype is torch.float32 else torch.int16)


@pytest.mark.parametrize("name", DTYPES)
def test_every_pattern_widens_to_torchs_bits(probes: Probes, name: str) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(DTYPES[name])
    out = torch.zeros(2**16)
    assert probes.code(f"widens<{name}>", patterns, out, blocks=512) == 0
    numbers = ~patterns.isnan()
    assert torch.equal(bits(out[numbers]), bits(patterns[numbers].float()))
    assert out[~numbers].isnan().all()


@pytest.mark.parametrize("name", DTYPES)
def test_narrowing_rounds_to_torchs_bits(probes: Probes, name: str) -> None:
    dtype = DTYPES[name]
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    numbers = patterns[patterns.isfinite()]
    # Between two neighbours: the middle, which goes to the even one, and a step to either side.
    after = (bits(numbers.to(dtype)) + 1).view(dtype).float()
    middles = numbers.double() + (after.double() - numbers.double()) / 2
    middles = middles[middles.isfinite()].float()
    far = torch.tensor([65519.996, 65520.0, 3.4e38, 1e-45, 3e-8, 2.98e-8, 1e-30, 0.0])
    infinite = torch.full_like(middles, torch.inf)
    steps = (torch.nextafter(middles, infinite), torch.nextafter(middles, -infinite))
    values = torch.cat([numbers, middles, *steps, far, -far, patterns[patterns.isinf()]])
    blocks = -(-len(values) // 128)
    out = torch.zeros(len(values), dtype=dtype)
    assert probes.code(f"narrows<{name}>", values, out, blocks=blocks) == 0
    assert torch.equal(bits(out), bits(values.to(dtype)))
    not_a_number = torch.tensor([torch.nan, -torch.nan])
    out = torch.zeros(2, dtype=dtype)
    assert probes.code(f"narrows<{name}>", not_a_number, out) == 0
    assert out.isnan().all()


def test_exp_is_close_everywhere_and_exact_where_it_is_said_to_be(probes: Probes) -> None:
    values = torch.cat([torch.linspace(-90, 90, 20001), torch.tensor([0.0, -torch.inf, torch.nan])])
    out = torch.zeros_like(values)
    assert probes.code("exponentiates", values, out, blocks=158) == 0
    usual = (values >= -87) & (values <= 88)
    expected = values[usual].double().exp()
    error = (out[usual].double() - expected).abs() / expected
    # Half a step in the last place for the result, a little more for the polynomial.
    assert error.max() < 1.5e-7
    assert (out[values < -87] == 0).all()
    assert out[values > 88].isfinite().all()
    assert out[-3:].tolist()[:2] == [1.0, 0.0]
    assert out[-1].isnan()


def test_the_emulator_is_found() -> None:
    assert [path.name for path in EMULATOR] == [
        "emulator.cpp",
        "fibre.cpp",
        "runtime.cpp",
        "shared_memory.cpp",
    ]
