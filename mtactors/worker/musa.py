"""What can be known of Moore Threads cards without touching them: driver, cards, masks.

Looks at files and variables only, so it makes no context and needs neither torch nor a driver.
Nothing here was seen on hardware: the places are those that public tools for these cards use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

CONTAINER_MASK = "MTHREADS_VISIBLE_DEVICES"
PROCESS_MASK = "MUSA_VISIBLE_DEVICES"
PCI_VENDOR = "0x1ed5"

_NODE = re.compile(r"mtgpu\.?\d+")
_DISPLAY_CLASS = "0x03"  # a card has an audio function, too
_IN_CONTAINER = f"in a container use --runtime mthreads --env {CONTAINER_MASK}=all"


@dataclass(frozen=True, slots=True)
class Host:
    """The machine's side. `nodes`: device files; `pci`: cards on the bus; `module`: the driver's.

    `version`: of the kernel module, "" where it says none.
    """

    nodes: int
    pci: int
    module: bool
    version: str = ""

    @property
    def driver(self) -> bool:
        """Whether a driver is at work: a container shows the nodes, perhaps not the module."""
        return self.module or self.nodes > 0


def look(root: Path = Path("/")) -> Host:
    """Return what the files below `root` tell."""
    module = root / "sys/module/mtgpu"
    devices = root / "dev"
    nodes = [path for path in devices.glob("mtgpu*") if _NODE.fullmatch(path.name)]
    pci = root / "sys/bus/pci/devices"
    found = sum(_is_card(device) for device in pci.iterdir()) if pci.is_dir() else 0
    return Host(len(nodes), found, module.is_dir(), _read(module / "version"))


def masked(environment: Mapping[str, str]) -> list[str] | None:
    """Return the cards that the process mask names, None without a mask."""
    mask = environment.get(PROCESS_MASK)
    return None if mask is None else [entry for entry in mask.split(",") if entry.strip()]


def count_visible(host: Host, environment: Mapping[str, str]) -> int:
    """Return how many cards a process can see."""
    named = masked(environment)
    return host.nodes if named is None else min(host.nodes, len(named))


def apply_container_mask(host: Host, environment: MutableMapping[str, str]) -> None:
    """Let MTHREADS_VISIBLE_DEVICES count outside containers as well.

    Inside one the runtime has shown the named cards alone, and numbered them anew: nothing is to
    be done. Where more cards are there than it names, nobody has looked at it yet. A process mask
    says it better and wins.
    """
    named = [entry.strip() for entry in environment.get(CONTAINER_MASK, "").split(",")]
    if PROCESS_MASK in environment or not all(entry.isdigit() for entry in named):
        return  # not set, or "all", "none", "void", or UUIDs
    if host.nodes > len(named):
        environment[PROCESS_MASK] = ",".join(named)


def describe_mask(environment: Mapping[str, str]) -> str:
    """Return the masks that are set, in brackets; "" without any."""
    names = [name for name in (PROCESS_MASK, CONTAINER_MASK) if name in environment]
    if not names:
        return ""
    return f" ({', '.join(f'{name}={environment[name]}' for name in names)})"


def explain(
    extension: str | None, host: Host | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """Say in one line what is missing: torch_musa, the driver or a card.

    Args:
        extension: why torch_musa cannot be used; None when it was imported and sees no card.
    """
    host = look() if host is None else host
    missing = [] if extension is None else [extension]
    if not host.driver and host.pci:
        missing.append(f"no driver is loaded for the {host.pci} card(s) on the bus")
    elif not host.driver:
        missing.append(f"no driver and no card are here (no /dev/mtgpu.0; {_IN_CONTAINER})")
    elif not host.nodes:
        missing.append(f"the driver shows no card (no /dev/mtgpu.0; {_IN_CONTAINER})")
    elif not count_visible(host, environment):
        missing.append(f"{PROCESS_MASK}={environment[PROCESS_MASK]!r} hides the {host.nodes} cards")
    elif extension is None:
        missing.append(f"torch_musa sees none of the {host.nodes} cards: does mthreads-gmi?")
    return "; ".join(missing)


def _is_card(device: Path) -> bool:
    return _read(device / "vendor") == PCI_VENDOR and _read(device / "class").startswith(
        _DISPLAY_CLASS
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
