"""benchmarks/step.py over a tiny model: every moment of a step is in one part, and in one only."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import step
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.needs_torch


def test_it_tells_where_each_step_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    began = time.perf_counter()
    options = "--dtype float32 --streams 1 3 --tokens 16 --threads 1"
    step.main([str(model), *options.split()])
    wall = time.perf_counter() - began
    *tables, line = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert [one["streams"] for one in report["found"]] == [1, 3]
    for one in report["found"]:
        # The first token is the prompt's; 8 tokens warmed up.
        assert len(one["steps"]) >= 15 + 7
        assert one["front"] > 0
        for each in one["steps"]:
            assert each["streams"] == one["streams"]
            assert all(seconds >= 0 for seconds in each["parts"].values())
            assert {
                "kernels: layers",
                "kernels: output layer",
                "tensors from the plan",
                "arguments of the kernels",
                "rest of the runner",
                "memory for later steps",
                "msgpack",
                "socket, and waiting",
                "rest of the loop",
            } == each["parts"].keys()
    spent = sum(sum(s["parts"].values()) for one in report["found"] for s in one["steps"])
    assert 0 < spent < wall
    shares = report["outside_of_kernels"]
    assert all(0 < share < 1 for share in shares.values())
    assert tables[0].split() == ["decode,", "1", "stream", "microseconds", "share"]
    assert any(row.startswith("outside of kernels") for row in tables)


def test_the_middle_half_counts() -> None:
    lengths = [9, 1, 2, 3, 3, 2, 99, 1]
    steps = [step.Step(1, {"rest": n / 4, "kernels: layers": 3 * n / 4}) for n in lengths]
    found = step.Found(1, steps, front=0.5)
    assert [one.seconds for one in found.middle()] == [2, 2, 3, 3]
    assert found.parts() == {"kernels: layers": 1.875, "rest": 0.625}
    assert list(found.parts()) == ["kernels: layers", "rest"]
    assert found.outside() == pytest.approx(0.25)
    *_, whole, outside, front = step.table(found).splitlines()
    assert whole.split() == ["a", "step", "2500000.0", "100.0%"]
    assert outside.split()[-2:] == ["625000.0", "25.0%"]
    assert front.split()[-2:] == ["500000.0", "20.0%"]


@pytest.mark.parametrize("options", ["--streams 0", "--streams 2 2", "--tokens 7", "--threads -1"])
def test_wrong_arguments(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.parse(options.split())
    assert "error: --" in capsys.readouterr().err
