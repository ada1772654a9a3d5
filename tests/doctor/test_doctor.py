"""The doctor as users run it, and its comparisons on operations that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtactors import kernels
from mtactors.doctor import build, model, operations
from mtactors.doctor.model import Trial
from mtactors.worker.device import open_device
from tests.kernels.test_golden import Broken, last_column
from tests.source_tree import ROOT

FAKES = str(ROOT / "tests" / "fakes")


def run_doctor(*options: str, **environment: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "mtactors.entrypoints.cli", "doctor", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, run.stdout


def test_the_doctor_finds_this_cpu_well() -> None:
    code, said = run_doctor("--device", "cpu")
    assert code == 0, said
    assert "this machine can serve" in said
    found = json.loads(said.splitlines()[-1])
    names = [check["name"] for check in found["checks"]]
    for name in ("operations float16", "cache hit = miss", "tp 2 = tp 1"):
        assert name in names
    assert found["ok"]


def test_without_a_card_the_doctor_says_what_is_missing() -> None:
    code, said = run_doctor("--device", "musa", "--json", MUSA_VISIBLE_DEVICES="")
    (line,) = said.splitlines()
    found = json.loads(line)
    assert (code, found["ok"]) == (1, False)
    failed = {check["name"]: check for check in found["checks"] if check["state"] == "failed"}
    assert failed["device"]["found"].startswith("device: musa is not available: ")


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="no devices written in Python")
def test_a_card_that_works_is_found_well_whatever_the_files_say() -> None:
    """Over the stand-in for torch_musa: on this host there is neither driver nor toolkit."""
    code, said = run_doctor("--device", "musa", "--tp", "2", "--json", PYTHONPATH=FAKES)
    found = json.loads(said.splitlines()[-1])
    assert (code, found["ok"]) == (0, True), said
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["device"]["found"].startswith("Fake MTT S4000 2.2, ")
    assert checks["tp 2 = tp 1"]["state"] == "ok"
    for name in ("driver", "cards", "torch_musa"):
        assert checks[name]["state"] in ("ok", "hint")


def test_a_broken_operation_is_named_with_error_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ops = Broken("paged_attention", last_column)
    monkeypatch.setattr(kernels, "load", lambda device, name: ops)
    checks = list(operations.operation_checks(open_device("cpu"), "auto"))
    failed = [check for check in checks if check.state == "failed"]
    assert {check.operation for check in failed} == {"paged_attention"}
    assert len(failed) == 3  # dtypes
    for check in failed:
        assert check.error is not None and check.bound is not None
        assert check.error > check.bound
        assert "--kernels reference" in check.remedy


def test_kernels_that_are_not_there_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = operations.operation_checks(open_device("cpu"), "none")
    assert check.state == "failed"


def steps(*values: tuple[int, float, float]) -> list[dict[str, Any]]:
    return [{"id": token, "logprob": a, "top": [a, b]} for token, a, b in values]


@pytest.mark.parametrize(
    ("other", "state"),
    [
        (steps((5, -1.0, -2.0), (7, -1.0, -1.0005)), "ok"),
        (steps((5, -1.0005, -2.0), (8, -1.0, -1.0)), "ok"),  # a tie: either may come
        (steps((6, -1.0, -2.0), (7, -1.0, -1.0005)), "failed"),
        (steps((5, -1.01, -2.0), (7, -1.0, -1.0005)), "failed"),
        (steps((5, float("nan"), -2.0), (7, -1.0, -1.0005)), "failed"),
    ],
)
def test_runs_may_part_at_a_tie_only(other: list[dict[str, Any]], state: str) -> None:
    one = steps((5, -1.0, -2.0), (7, -1.0, -1.0005))
    assert model.compare("runs", one, other, "float32").state == state


def test_a_rank_that_fails_says_why(tmp_path: Path) -> None:
    model.write_model(tmp_path / "model")
    found = model.run_ranks(Trial("cpu", "none", "float32", 1), 1, tmp_path)
    assert isinstance(found, str)
    assert "no implementation 'none'" in found


def make_mcc(home: Path, script: str) -> None:
    (home / "bin").mkdir(parents=True)
    (home / "bin/mcc").write_text(f"#!/bin/sh\n{script}\n")
    (home / "bin/mcc").chmod(0o755)


def test_the_kernels_are_built_with_the_toolkits_mcc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This stands in for mcc: it writes down how it was called and makes empty files."""
    log = tmp_path / "log"
    make_mcc(tmp_path / "musa", f'echo "$@" >> {log}\nwhile [ "$1" != -o ]; do shift; done; >"$2"')
    monkeypatch.setenv("MUSA_HOME", str(tmp_path / "musa"))
    monkeypatch.setenv("MTACTORS_MUSA_ARCHS", "22")
    check, library = build.build_library(tmp_path)
    assert (check.state, library) == ("ok", tmp_path / build.LIBRARY)
    *compiled, linked = log.read_text().splitlines()
    assert all("--offload-arch=mp_22 " in line and " -c " in line for line in compiled)
    assert "-shared" in linked and "-lmusart" in linked


def test_what_mcc_complains_about_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mcc(tmp_path, "echo 'x.mu:3: error: no such thing' >&2; exit 1")
    monkeypatch.setenv("MUSA_HOME", str(tmp_path))
    check, library = build.build_library(tmp_path)
    assert library is None
    assert check.state == "failed"
    assert "x.mu:3: error: no such thing" in check.found


def test_bfloat16_needs_an_architecture_that_has_it() -> None:
    cpu = open_device("cpu")
    assert operations.has_bfloat16(cpu)
