"""A device that is not here: one line, the exit code of a configuration error, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.needs_torch


@pytest.mark.skipif(find_spec("torch_musa") is not None, reason="torch_musa is installed")
def test_without_musa_each_missing_part_is_named(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    (tmp_path / "tmp").mkdir()
    options = ["--device", "musa", "--prompt", "hello"]
    run = subprocess.run(
        [sys.executable, "-m", "mtactors.entrypoints.cli", "generate", str(model), *options],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("mtactors: error: device: musa is not available: ")
    assert "torch_musa is not installed" in line
    assert "no driver" in line or "card" in line
    assert list((tmp_path / "tmp").iterdir()) == []
