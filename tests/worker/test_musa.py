"""What is missing is told apart by files and variables alone; here they are made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtactors.worker import musa
from mtactors.worker.musa import Host


def make_host(root: Path, *, nodes: int = 0, pci: int = 0, module: bool = False) -> Host:
    (root / "dev").mkdir(parents=True)
    for index in range(nodes):
        (root / f"dev/mtgpu.{index}").touch()
    (root / "dev/mtgpu_ctl").touch()  # no card
    for index in range(pci):
        card, sound = root / f"sys/bus/pci/devices/{index}.0", f"sys/bus/pci/devices/{index}.1"
        for device, kind in ((card, "0x030000"), (root / sound, "0x040300")):
            device.mkdir(parents=True)
            (device / "vendor").write_text(f"{musa.PCI_VENDOR}\n")
            (device / "class").write_text(f"{kind}\n")
    if module:
        (root / "sys/module/mtgpu").mkdir(parents=True)
        (root / "sys/module/mtgpu/version").write_text("2.7.0\n")
    return musa.look(root)


def test_cards_driver_and_version_are_read_from_files(tmp_path: Path) -> None:
    host = make_host(tmp_path, nodes=2, pci=3, module=True)
    assert host == Host(nodes=2, pci=3, module=True, version="2.7.0")
    assert host.driver


def test_a_bare_machine_has_nothing(tmp_path: Path) -> None:
    assert musa.look(tmp_path) == Host(nodes=0, pci=0, module=False)


@pytest.mark.parametrize(
    ("host", "environment", "extension", "reason"),
    [
        (Host(0, 0, False), {}, None, "no driver and no card are here"),
        (Host(0, 2, False), {}, None, r"no driver is loaded for the 2 card\(s\)"),
        (Host(0, 0, True), {}, None, "the driver shows no card"),
        (Host(2, 2, True), {"MUSA_VISIBLE_DEVICES": ""}, None, "='' hides the 2 cards"),
        (Host(2, 2, True), {}, None, "torch_musa sees none of the 2 cards"),
        (Host(2, 2, True), {}, "torch_musa is not installed", "^torch_musa is not installed$"),
        (Host(0, 0, False), {}, "torch_musa is old", "^torch_musa is old; no driver and no card"),
    ],
)
def test_what_is_missing_is_one_line(
    host: Host, environment: dict[str, str], extension: str | None, reason: str
) -> None:

    said = musa.explain(extension, host, environment)
    assert re.search(reason, said), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("nodes", "environment", "mask"),
    [
        (8, {"MTHREADS_VISIBLE_DEVICES": "2, 3"}, "2,3"),  # nobody has applied it yet
        (2, {"MTHREADS_VISIBLE_DEVICES": "2,3"}, None),  # a container that shows just these
        (8, {"MTHREADS_VISIBLE_DEVICES": "all"}, None),
        (8, {"MTHREADS_VISIBLE_DEVICES": "none"}, None),
        (8, {}, None),
        (8, {"MTHREADS_VISIBLE_DEVICES": "2,3", "MUSA_VISIBLE_DEVICES": "5"}, "5"),
    ],
)
def test_the_containers_mask_counts_outside_of_one(
    nodes: int, environment: dict[str, str], mask: str | None
) -> None:
    musa.apply_container_mask(Host(nodes, nodes, True), environment)
    assert environment.get("MUSA_VISIBLE_DEVICES") == mask


def test_cards_are_counted_through_the_mask() -> None:
    host = Host(8, 8, True)
    assert musa.count_visible(host, {}) == 8
    assert musa.count_visible(host, {"MUSA_VISIBLE_DEVICES": "0,5"}) == 2
    assert musa.count_visible(host, {"MUSA_VISIBLE_DEVICES": ""}) == 0
    assert musa.describe_mask({}) == ""
    assert musa.describe_mask({"MUSA_VISIBLE_DEVICES": "0,5"}) == " (MUSA_VISIBLE_DEVICES=0,5)"
