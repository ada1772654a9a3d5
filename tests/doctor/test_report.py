from __future__ import annotations

import io
import json

from rich.console import Console

from mtactors.doctor.report import Check, Report


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_only_a_failure_fails_and_its_remedy_is_shown() -> None:
    report = Report("cpu", [Check("torch", "ok", "2.13"), Check("x", "hint", "[odd]", "mend x")])
    assert report.ok
    assert "this machine can serve" in shown(report)
    assert "x: mend x" in shown(report)
    report.add([Check("y", "failed", "wrong", "mend y", operation="rope", error=0.5, bound=0.1)])
    assert not report.ok
    assert "y: mend y" in shown(report)
    assert "1 check(s) failed" in shown(report)
    assert "[odd]" in shown(report)


def test_json_is_one_line_with_the_sizes_of_errors() -> None:
    report = Report("cpu", [Check("y", "failed", "wrong", operation="rope", error=0.5, bound=0.1)])
    line = report.to_json()
    assert "\n" not in line
    (check,) = json.loads(line)["checks"]
    assert (check["operation"], check["error"], check["bound"]) == ("rope", 0.5, 0.1)
    assert "remedy" not in check
