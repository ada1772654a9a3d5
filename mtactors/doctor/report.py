"""What was checked and what came of it, as a table for people and as JSON for programs.

Knows nothing of what is checked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

State = Literal["ok", "hint", "failed", "skipped"]
_COLOURS = {"ok": "green", "hint": "yellow", "failed": "bold red", "skipped": "dim"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    `hint`: it may be the reason for trouble, or cost speed; only "failed" fails the whole.
    `operation`, `error`, `bound`: of a comparison; the error is relative.
    """

    name: str
    state: State
    found: str
    remedy: str = ""
    operation: str | None = None
    error: float | None = None
    bound: float | None = None


@dataclass
class Report:
    """All checks in their order."""

    device: str
    checks: list[Check] = field(default_factory=list)

    def add(self, checks: Iterator[Check] | list[Check]) -> None:
        """Take over some checks."""
        self.checks.extend(checks)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.state != "failed" for check in self.checks)

    def to_json(self) -> str:
        """Return one line."""
        checks = [
            {
                key: value
                for key, value in dataclasses.asdict(check).items()
                if value not in (None, "") and value == value  # JSON has no nan
            }
            for check in self.checks
        ]
        return json.dumps({"device": self.device, "ok": self.ok, "checks": checks})

    def show(self, console: Console) -> None:
        """Print the table, then each remedy."""
        table = Table(title=f"mtactors doctor --device {self.device}", title_justify="left")
        table.add_column("check", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("found", overflow="fold")
        for check in self.checks:
            colour = _COLOURS[check.state]
            table.add_row(escape(check.name), f"[{colour}]{check.state}[/]", escape(check.found))
        console.print(table)
        for check in self.checks:
            if check.remedy and check.state in ("failed", "hint"):
                console.print(f"{check.name}: {check.remedy}", markup=False, highlight=False)
        failed = sum(check.state == "failed" for check in self.checks)
        verdict = f"{failed} check(s) failed" if failed else "this machine can serve"
        console.print(verdict, style="bold red" if failed else "bold green")
