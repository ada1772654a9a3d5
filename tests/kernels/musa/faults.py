"""Faults for the kernels' sources, each at one place, and the sources with all of them.

Knows neither how a library is built nor how a fault shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.kernels.musa.checks import (
    Check,
    attention_is_right,
    copies_are_right,
    embedding_is_right,
    kv_write_is_right,
    norm_is_right,
    rope_is_right,
    sampling_is_right,
    silu_is_right,
    unaligned_norm_is_right,
    windowed_attention_is_right,
)
from tests.kernels.musa.emulated import MUSA


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
    missing_barrier(
        "no barrier before a scan's sums are read",
        "sampling.muh",
        "sums[thread] = value;",
        "if (thread < kGroups) {",
        sampling_is_right,
    ),
    missing_barrier(
        "no barrier before a scan's groups are read",
        "sampling.muh",
        "for (int i = 1; i < kGroup; ++i) group[i] += group[i - 1];\n}",
        "Scan scan{",
        sampling_is_right,
    ),
    missing_barrier(
        "no barrier before what was counted is carried",
        "sampling.muh",
        "if (part != 0u) atomicAdd(bin + limb * kBins, part);\n}\n}",
        "for (int limb = 0; limb < kLimbs; ++limb) {\nsums[thread] +=",
        sampling_is_right,
    ),
    Fault(
        "another token's bit of the mask",
        "sampling_rows.muh",
        ">> (id % 32) & 1u",
        ">> ((id + (planted ? 1 : 0)) % 32) & 1u",
        sampling_is_right,
    ),
    Fault(
        "one token more than top-k",
        "sampling.mu",
        "static_cast<uint64_t>(row.top_k)).key;",
        "static_cast<uint64_t>(row.top_k) + (planted ? 1 : 0)).key;",
        sampling_is_right,
    ),
    Fault(
        "a token that is not to be sampled",
        "sampling_rows.muh",
        "op.top_k[index];",
        "op.top_k[index];\nif (planted) ids = op.vocab;",
        sampling_is_right,
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
    names = ["library.h", *(path.name for path in sorted(MUSA.glob("*.mu*")))]
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
