"""Turns measurements into tables, one JSON object, and a plot. Measures nothing."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.comparison import Measurements
from benchmarks.limits import MachineLimits, ModelCost, limit
from benchmarks.workloads import Line, make_batch

OURS = "mtactors"
_NONE = "-"


class Report:
    """What is shown of a comparison.

    Args:
        names: the engines in the order of the columns, those that failed included.
    """

    def __init__(
        self, found: Measurements, lines: Sequence[Line], names: Sequence[str], cost: ModelCost
    ) -> None:
        self._found = found
        self._lines = lines
        self._names = names
        self._cost = cost

    @property
    def machine(self) -> MachineLimits | None:
        """The machine's limits: the best of all rounds, since a limit is what can be reached."""
        if not self._found.limits:
            return None
        return MachineLimits(
            max(one.bytes_per_second for one in self._found.limits),
            max(one.flops for one in self._found.limits),
        )

    def limit(self, line: Line) -> float | None:
        """Return what the machine allows on a line, tokens per second."""
        if self.machine is None:
            return None
        batch = make_batch(line, self._cost.vocabulary, 0)
        return limit(line, batch, self._cost, self.machine)

    def table(self) -> str:
        """Return everything for people."""
        head = ["tokens per second", *self._names, "x best peer", "limit", "of limit"]
        rows = [head, *(self._row(line) for line in self._lines)]
        parts = [aligned(rows)]
        if self._found.starts:
            rows = [["lower is better", *self._names, "x best peer"]]
            rows.append(self._lower("start to first token, s", self._found.starts, 1.0))
            rows.append(self._lower("peak memory, MB", self._found.peaks, 1e6))
            parts.append(aligned(rows))
        if self.machine is not None:
            parts.append(
                f"the machine: {self.machine.bytes_per_second / 1e9:.1f} GB/s, "
                f"{self.machine.flops / 1e9:.0f} GFLOP/s (best of {len(self._found.limits)} rounds)"
            )
        parts += [
            f"{name} failed at {where}: {why}"
            for name, places in self._found.failures.items()
            for where, why in places.items()
        ]
        return "\n\n".join(parts)

    def as_json(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """Return everything for programs, raw figures included."""
        return {
            "benchmark": "compare",
            "machine": describe_machine(),
            "arguments": dict(arguments),
            "engines": self._found.details,
            "failures": self._found.failures,
            "limits": [asdict(one) for one in self._found.limits],
            "model": asdict(self._cost),
            "lines": [
                {
                    "name": line.name,
                    "limit": self.limit(line),
                    "ratio": self.ratio(line),
                    "ratios": self.ratios(line),
                    "medians": {name: self._found.median(line.name, name) for name in self._names},
                    "runs": self._found.runs.get(line.name, {}),
                }
                for line in self._lines
            ],
            "starts": self._found.starts,
            "peaks": self._found.peaks,
            "first_ids": self._found.first_ids,
        }

    def ratio(self, line: Line) -> float | None:
        """Return our median over the best peer's."""
        medians = {name: self._found.median(line.name, name) for name in self._names}
        return _ratio(medians)

    def ratios(self, line: Line) -> list[float]:
        """Return the same for each round that all engines finished."""
        runs = self._found.runs.get(line.name, {})
        rounds = zip(*runs.values(), strict=False)
        found = [_ratio(dict(zip(runs, figures, strict=True))) for figures in rounds]
        return [ratio for ratio in found if ratio is not None]

    def plot(self, path: Path) -> None:
        """Draw decode throughput by number of streams.

        Raises:
            ImportError: matplotlib is not installed.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        lines = [line for line in self._lines if line.kind == "decode"]
        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        for name in self._names:
            points = [(line.streams, self._found.median(line.name, name)) for line in lines]
            seen = [(streams, rate) for streams, rate in points if rate is not None]
            if seen:
                axes.plot(*zip(*seen, strict=True), marker="o", label=name, zorder=name == OURS)
        limits = [(line.streams, bound) for line in lines if (bound := self.limit(line))]
        if limits:
            axes.plot(*zip(*limits, strict=True), "--", color="grey", label="limit of the machine")
        axes.set(xscale="log", xlabel="streams", ylabel="new tokens per second")
        axes.set_xticks([line.streams for line in lines], [str(line.streams) for line in lines])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)

    def _row(self, line: Line) -> list[str]:
        runs = self._found.runs.get(line.name, {})
        bound, ours = self.limit(line), self._found.median(line.name, OURS)
        ratio, ratios = self.ratio(line), self.ratios(line)
        shown = _NONE
        if ratio is not None:
            spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
            shown = f"{ratio:.2f}{spread}"
        return [
            line.name,
            *(_median_and_spread(runs.get(name, []), 1.0) for name in self._names),
            shown,
            _NONE if bound is None else f"{bound:.0f}",
            _NONE if bound is None or ours is None else f"{ours / bound:.0%}",
        ]

    def _lower(self, what: str, values: Mapping[str, Sequence[float]], unit: float) -> list[str]:
        medians = {name: statistics.median(runs) for name, runs in values.items() if runs}
        peers = [value for name, value in medians.items() if name != OURS]
        ratio = _NONE
        if peers and OURS in medians:
            ratio = f"{medians[OURS] / min(peers):.2f}"
        cells = (_median_and_spread(values.get(name, []), unit) for name in self._names)
        return [what, *cells, ratio]


def describe_machine() -> dict[str, object]:
    """Return what can be said of the machine without naming it."""
    facts: dict[str, object] = {"platform": platform.platform(), "cpus": os.cpu_count()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "flags") and key.strip() not in facts:
                facts[key.strip()] = value.strip()
    flags = str(facts.pop("flags", "")).split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    facts["isa"] = [flag for flag in wanted if flag in flags]
    return facts


def _ratio(figures: Mapping[str, float | None]) -> float | None:
    ours = figures.get(OURS)
    peers = [value for name, value in figures.items() if name != OURS and value is not None]
    return ours / max(peers) if ours is not None and peers else None


def _median_and_spread(runs: Sequence[float], unit: float) -> str:
    if not runs:
        return _NONE
    middle = statistics.median(runs) / unit
    digits = 1 if middle < 100 else 0
    if len(runs) < 2:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} +-{(max(runs) - min(runs)) / unit / 2 / middle:.0%}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table for people; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)
