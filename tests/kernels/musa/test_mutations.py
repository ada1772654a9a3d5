"""Faults planted in the kernels' sources: the emulator or the comparison must see each of them.

All faults are compiled into one library, each behind a condition of its own, so that a test turns
one on. A fault whose line is no longer there fails: move it along with the source.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtactors.kernels import AttentionBatch
from mtactors.kernels.device import DeviceOperations, open_library
from mtactors.kernels.reference import OPERATIONS as TRUTH
from mtactors.kernels.reference import PlainLinear
from tests.kernels.musa.emulated import COMPILER, MUSA, NO_COMPILER, Emulator, build

# One build for all: parallel test runs keep the tests of this file together.
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER),
    pytest.mark.xdist_group("mutations"),
]
Guard = Callable[[Tensor], Tensor]
Check = Callable[[DeviceOperations, Guard], bool]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(actual: Tensor, expected: Tensor) -> bool:
    """Whether float32 results agree as far as sums in another order do."""
    return torch.allclose(actual, expected, atol=2e-5, rtol=2e-5)


def norm_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """Rows of an odd length whose end is where memory ends."""
    x, weight = put(rand(3, 1027)), put(rand(1027, seed=1))
    return same(ops.rms_norm(x, weight, 1e-5), TRUTH.rms_norm(x, weight, 1e-5))


def unaligned_norm_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """A row that begins between multiples of 16 bytes."""
    x, weight = put(rand(1, 129))[:, :-1], put(rand(128, seed=1))
    return same(ops.rms_norm(x, weight, 1e-5), TRUTH.rms_norm(x, weight, 1e-5))


def embedding_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """Ids of this shard, of the ones around it, and the first of the next."""
    table = PlainLinear(put(rand(6, 10)))
    ids = put(torch.tensor([3, 9, 8, 2, 0], dtype=torch.int32))
    return torch.equal(ops.embedding(ids, table, 3), TRUTH.embedding(ids, table, 3))


def rope_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """Partial rotation with scaled queries."""
    rows, table = put(torch.tensor([4, 0, 2], dtype=torch.int32)), put(rand(5, 12))
    scale = put(rand(3, seed=1))
    (q, k), (their_q, their_k) = [(put(rand(3, 4, 16)), put(rand(3, 2, 16))) for _ in range(2)]
    ops.rope(q, k, rows, table, "half", scale)
    TRUTH.rope(their_q, their_k, rows, table, "half", scale)
    return torch.equal(q, their_q) and torch.equal(k, their_k)


def kv_write_is_right(ops: DeviceOperations, put: Guard) -> bool:
    """A slot to skip; caches of whole pages, so that one before them is no memory."""
    k, v = put(rand(3, 1, 64)), put(rand(3, 1, 64, seed=1))
    slots = put(torch.tensor([5, -1, 63]))
    ours, theirs = [[put(torch.zeros(4, 16, 1, 64)) for _ in range(2)] for _ in range(2)]
    ops.kv_write(k, v, ours[0], ours[1], slots)
    TRUTH.kv_write(k, v, theirs[0], theirs[1], slots)
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def silu_is_right(ops: DeviceOperations, put: Guard) -> bool:
    x = put(rand(3, 2 * 1027))
    return same(ops.silu_and_mul(x), TRUTH.silu_and_mul(x))


def copies_are_right(ops: DeviceOperations, put: Guard) -> bool:
    """More caches than a launch takes."""
    copies = put(torch.tensor([[0, 3, 16], [5, 1, 7]]))
    ours, theirs = ([put(rand(6, 16, 2, 3, seed=i)) for i in range(66)] for _ in range(2))
    ops.copy_blocks(ours, copies)
    TRUTH.copy_blocks(theirs, copies)
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def attention_is_right(ops: DeviceOperations, put: Guard, window: int = 0) -> bool:
    """A long decode row, a prompt and a chunk; what belongs to no sequence is NaN."""
    block_size, lengths, queries = 16, [530, 37, 70], [1, 37, 6]
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(2))
    tables = torch.full((3, max(counts)), -1, dtype=torch.int32)
    caches = [torch.full((sum(counts), block_size, 2, 32), torch.nan) for _ in range(2)]
    taken = 0
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        blocks = order[taken : taken + count]
        tables[row, :count] = blocks.int()
        taken += count
        for index, cache in enumerate(caches):
            filled = torch.full((count * block_size, 2, 32), torch.nan)
            filled[:length] = rand(length, 2, 32, seed=10 * row + index)
            cache[blocks] = filled.view(count, block_size, 2, 32)
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    batch = AttentionBatch(
        put(starts), put(torch.tensor(lengths, dtype=torch.int32)), put(tables), put(starts[:0])
    )
    q, keys, values = put(rand(sum(queries), 6, 32, seed=5)), put(caches[0]), put(caches[1])
    arguments = (q, keys, values, batch, 32**-0.5)
    slopes = put(torch.tensor([0.5, 0.25, 0.125, 0.06, 0.03, 0.015]))
    ours = ops.paged_attention(*arguments, window=window, alibi_slopes=slopes)
    theirs = TRUTH.paged_attention(*arguments, window=window, alibi_slopes=slopes)
    return same(ours, theirs)


def windowed_attention_is_right(ops: DeviceOperations, put: Guard) -> bool:
    return attention_is_right(ops, put, window=21)


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in a source, where `planted` in `new` stands for "turned on"."""

    name: str
    source: str
    old: str
    new: str
    right: Check


def missing_barrier(name: str, source: str, before: str, after: str, right: Check) -> Fault:
    """Return the fault that a barrier between two texts is not there."""
    old = f"{before}\n__syncthreads();\n{after}"
    new = f"{before}\nif (!planted) __syncthreads();\n{after}"
    return Fault(name, source, old, new, right)


FAULTS = [
    missing_barrier(
        "no barrier before a block's sum is read",
        "common.muh",
        "if (sub_lane() == 0) parts[sub_index()] = part;",
        "T sum = parts[0];",
        norm_is_right,
    ),
    Fault(
        "a butterfly without its last lanes",
        "common.muh",
        "mask > 0; mask /= 2) value += sub_shfl_xor",
        "mask > (planted ? 1 : 0); mask /= 2) value += sub_shfl_xor",
        norm_is_right,
    ),
    Fault(
        "lanes that leave a shuffle out",
        "common.muh",
        "const T part = sub_sum(value);",
        "const T part = planted && sub_lane() > 15 ? value : sub_sum(value);",
        norm_is_right,
    ),
    Fault(
        "a wide load where nothing is aligned",
        "common.muh",
        "if (wide) {\nunpack<T>(load16(from), out);",
        "if (wide || planted) {\nunpack<T>(load16(from), out);",
        unaligned_norm_is_right,
    ),
    Fault(
        "a norm that reads behind its row",
        "rows.mu",
        "if (i + kWide<T> <= n) {\nload_floats(row + i, wide, out);",
        "if (i + kWide<T> <= n || planted) {\nload_floats(row + i, wide, out);",
        norm_is_right,
    ),
    Fault(
        "a norm that ends where another row begins",
        "rows.mu",
        "if (i + j < n) row[i + j] =",
        "if (i + j < n || planted) row[i + j] =",
        norm_is_right,
    ),
    Fault(
        "an embedding of the next shard's first id",
        "rows.mu",
        "row >= op.n)",
        "row >= op.n + (planted ? 1 : 0))",
        embedding_is_right,
    ),
    Fault(
        "a rotation by another row's sines",
        "rows.mu",
        "const float* sine = cosine + half;",
        "const float* sine = cosine + half - (planted ? 1 : 0);",
        rope_is_right,
    ),
    Fault(
        "keys scaled like queries",
        "rows.mu",
        "const bool scaled = is_q &&",
        "const bool scaled = (is_q || planted) &&",
        rope_is_right,
    ),
    Fault(
        "a write to the slot that is to be skipped",
        "rows.mu",
        "if (slot < 0) return;",
        "if (slot < (planted ? -1 : 0)) return;",
        kv_write_is_right,
    ),
    Fault(
        "a gate's end taken for the row's",
        "rows.mu",
        "load_part(up, i, op.f,",
        "load_part(up, i, op.f + (planted ? 1 : 0),",
        silu_is_right,
    ),
    Fault(
        "a copy of one token more",
        "rows.mu",
        "copy[2] * token_bytes",
        "(copy[2] + (planted ? 1 : 0)) * token_bytes",
        copies_are_right,
    ),
    Fault(
        "caches beyond the first launch's",
        "rows.mu",
        "op->caches[first + i]",
        "op->caches[(planted ? 0 : first) + i]",
        copies_are_right,
    ),
    missing_barrier(
        "no barrier between a tile of keys and its scores",
        "attention.muh",
        "store_tile<S>(vecs, shared);",
        "load_tile<S>(op, item, op.v_cache, tile, shared, vecs);",
        attention_is_right,
    ),
    missing_barrier(
        "no barrier between scores and the values that replace keys",
        "attention.muh",
        "weigh_tile<S>(op, item, base + tile * S::kKeys, shared, scores, state);",
        "store_tile<S>(vecs, shared);",
        attention_is_right,
    ),
    missing_barrier(
        "no barrier between a tile of values and the next of keys",
        "attention.muh",
        "mix_tile<S>(smaller(S::kKeys, end - base - tile * S::kKeys), item, shared, state);",
        "}\nend_partition<S>(shared, state);",
        attention_is_right,
    ),
    Fault(
        "a block table read one entry on",
        "attention.muh",
        "table[block] * op.block_size",
        "table[block + (planted ? 1 : 0)] * op.block_size",
        attention_is_right,
    ),
    Fault(
        "a key's place taken from the next position",
        "attention.muh",
        "const int block = position / op.block_size;",
        "const int block = (position + (planted ? 1 : 0)) / op.block_size;",
        attention_is_right,
    ),
    Fault(
        "a mask that lets the next key in",
        "attention.muh",
        "const int distance = state.position[i] - (",
        "const int distance = state.position[i] + (planted ? 1 : 0) - (",
        attention_is_right,
    ),
    Fault(
        "a window that is one key too wide",
        "attention.muh",
        "static_cast<unsigned>(op.window) : 0x80000000u;",
        "static_cast<unsigned>(op.window) + (planted ? 1 : 0) : 0x80000000u;",
        windowed_attention_is_right,
    ),
    Fault(
        "a slot behind the newest key",
        "attention.muh",
        "item.position(item.rows - 1) + 1);\nbegin_partition",
        "item.position(item.rows - 1) + 1 + (planted ? 1 : 0));\nbegin_partition",
        attention_is_right,
    ),
    Fault(
        "partial results without the last",
        "attention.mu",
        "part <= parts.last - parts.first;",
        "part <= parts.last - parts.first - (planted ? 1 : 0);",
        attention_is_right,
    ),
]
# Fewer instances to compile: float32 and small heads are what the checks use.
_NARROWED = [
    ("common.muh", "return function<mt::bf16>(op);", "return MT_DEVICE_UNSUPPORTED;"),
    ("common.muh", "return function<mt::f16>(op);", "return MT_DEVICE_UNSUPPORTED;"),
    ("attention.mu", "return run<T, 128>(*op);", "return MT_DEVICE_UNSUPPORTED;"),
    ("attention.mu", "return run<T, 256>(*op);", "return MT_DEVICE_UNSUPPORTED;"),
]


def replaced(text: str, old: str, new: str) -> str:
    """Replace what must occur once."""
    assert text.count(old) == 1, f"{text.count(old)} times in the source: {old!r}"
    return text.replace(old, new)


def planted_sources(folder: Path) -> list[Path]:
    """Write the sources with all faults, each behind a condition of its own."""
    names = ["common.muh", "library.h", "library.mu", "rows.mu"]
    names += [path.name for path in MUSA.glob("attention*.mu*")]
    texts = {}
    for name in names:
        # Without indentation and columns, so that a fault can span lines.
        lines = (MUSA / name).read_text().splitlines()
        texts[name] = "\n".join(" ".join(line.split()) for line in lines)
    for number, fault in enumerate(FAULTS, 1):
        new = fault.new.replace("planted", f"(mt_planted == {number})")
        texts[fault.source] = replaced(texts[fault.source], fault.old, new)
    texts["common.muh"] = replaced(
        texts["common.muh"],
        '#include "library.h"\n',
        '#include "library.h"\nextern MT_EXPORT int mt_planted;\n',
    )
    texts["library.mu"] += "\nint mt_planted = 0;\n"
    for name, old, new in _NARROWED:
        texts[name] = replaced(texts[name], old, new)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in names if name.endswith(".mu")]


class Planted(Emulator):
    """The library with all faults, none of them turned on at first."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ops = open_library(str(path), off=frozenset({"sample", "logprobs"}))
        self.switch = ctypes.c_int.in_dll(self.library, "mt_planted")

    def noticed(self, number: int, right: Check) -> dict[int, list[str]]:
        """Return what was noticed of a fault, by warp size, in two orders of threads each."""
        seen: dict[int, list[str]] = {32: [], 128: []}
        self.switch.value = number
        try:
            for seed, warp in ((0, 32), (1, 32), (0, 128), (1, 128)):
                with self.running(seed, warp, guard=True), self.results_guarded():
                    try:
                        if not right(self.ops, self.guarded):
                            seen[warp].append("a wrong result")
                    except RuntimeError as error:
                        seen[warp].append(str(error))
        finally:
            self.switch.value = 0
        return seen


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Compile all faults."""
    folder = tmp_path_factory.mktemp("planted")
    return Planted(build(folder / "planted.so", planted_sources(folder)))


@pytest.mark.parametrize("right", sorted({fault.right for fault in FAULTS}, key=str))
def test_without_a_fault_all_is_right(planted: Planted, right: Check) -> None:
    assert planted.noticed(0, right) == {32: [], 128: []}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_noticed(planted: Planted, fault: Fault) -> None:
    seen = planted.noticed(FAULTS.index(fault) + 1, fault.right)
    # In every order: a test that runs in one must not need luck. A block of one warp of 128 needs
    # no barrier next to a shuffle.
    assert len(seen[32]) == 2, seen
