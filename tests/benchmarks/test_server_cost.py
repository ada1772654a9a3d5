"""benchmarks/server_cost.py: arguments, the table, a run over a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import server_cost
from benchmarks.server_cost import Run
from tests.tiny_models import make_tiny_model


def test_the_table_compares_runs_in_pairs() -> None:
    runs = [
        *(Run("engine", 2.0, 4.0), Run("http", 2.2, 4.0)),
        *(Run("engine", 4.0, 4.0), Run("http", 4.2, 5.0)),
        *(Run("engine", 3.0, 4.0), Run("http", 3.6, 3.0)),
    ]
    _, _, cpu, wall = server_cost.table(runs).splitlines()
    assert cpu.split() == ["cpu", "3.00", "3.60", "+10.0%", "+5.0%", "to", "+20.0%"]
    assert wall.split() == ["wall", "4.00", "4.00", "+0.0%", "-25.0%", "to", "+25.0%"]


@pytest.mark.parametrize("arguments", ["--streams 0", "--tokens 0", "--repeats 0"])
def test_wrong_arguments(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        server_cost.parse(arguments.split())
    assert caught.value.code == 2
    assert "must be positive" in capsys.readouterr().err


@pytest.mark.needs_torch
def test_it_measures_both_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny_model(tmp_path, "llama")
    server_cost.main([str(model), "--streams", "2", "--tokens", "8", "--repeats", "1"])
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["layer"] for run in values["runs"]] == ["engine", "http"]
    assert all(run["cpu"] > 0 and run["wall"] > 0 for run in values["runs"])
