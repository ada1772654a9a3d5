from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch

from mtactors.doctor import host
from mtactors.doctor.report import Check
from mtactors.worker import musa
from mtactors.worker.musa import Host


def checks(device: str) -> dict[str, Check]:
    return {check.name: check for check in host.host_checks(device)}


def test_a_cpu_is_described() -> None:
    found = checks("cpu")
    assert not [check for check in found.values() if check.state == "failed"]
    assert found["torch"].found == torch.__version__
    assert "this CPU runs" in found["cpu build"].found
    assert "not used" in found["/dev/shm"].found


def test_without_musa_each_missing_part_is_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(musa, "look", lambda: Host(nodes=0, pci=0, module=False))
    monkeypatch.setenv("MUSA_HOME", "/nonexistent")
    found = checks("musa")
    for name in ("driver", "cards", "torch_musa"):
        if name != "torch_musa" or found[name].found == "not installed":
            assert found[name].state == "failed"
            assert found[name].remedy
    assert found["toolkit"].state == "hint"


def test_cards_are_counted_through_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(musa, "look", lambda: Host(nodes=8, pci=8, module=True, version="2.7"))
    monkeypatch.setenv("MUSA_VISIBLE_DEVICES", "0,5")
    found = checks("musa")
    assert found["cards"].found == "2 of 8 visible (MUSA_VISIBLE_DEVICES=0,5)"
    assert found["driver"].found.startswith("module 2.7, ")
    assert found["acs"].state == "hint"


@pytest.mark.parametrize(
    ("version", "torch_version"),
    [("2.7.1", "2.7.1"), ("2.11.0.post2+musa5.2.0", "2.11.0"), ("1.3.0", "2.2.0")],
)
def test_the_matrix_pairs_versions(version: str, torch_version: str) -> None:
    assert host.paired_torch(version) == torch_version


@pytest.mark.parametrize(("installed", "state"), [("2.7.1", "hint"), (torch.__version__, "ok")])
def test_a_torch_that_does_not_match_is_a_hint(
    installed: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    assert checks("musa")["torch_musa"].state == state


def test_a_small_s4000_points_to_the_iommu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pymtml.py").write_text(
        "class Memory: free, total = 30 << 30, 32 << 30\n"
        "def nvmlInit(): pass\n"
        "def nvmlDeviceGetCount(): return 1\n"
        "def nvmlDeviceGetHandleByIndex(index): return index\n"
        "def nvmlDeviceGetMemoryInfo(handle): return Memory\n"
        "def nvmlDeviceGetName(handle): return 'MTT S4000'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(musa, "look", lambda: Host(nodes=1, pci=1, module=True))
    monkeypatch.delenv("MUSA_VISIBLE_DEVICES", raising=False)
    card = checks("musa")["card 0"]
    assert card.state == "hint"
    assert "MTT S4000: 30,720 of 32,768 MiB free" in card.found
    assert "IOMMU" in card.remedy


def test_the_toolkit_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mcc = tmp_path / "bin/mcc"
    mcc.parent.mkdir()
    mcc.write_text("#!/bin/sh\necho mcc version 4.2.0\n")
    mcc.chmod(0o755)
    monkeypatch.setenv("MUSA_HOME", str(tmp_path))
    assert host.toolkit_home() == tmp_path
    assert checks("musa")["compiler"].found == f"{mcc}: mcc version 4.2.0"
