"""The command: what it refuses, and which run it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mtactors.entrypoints import replay as command
from mtactors.entrypoints.replay import replay_command
from mtactors.errors import JournalError, UsageError
from mtactors.journal.reader import Run
from mtactors.journal.records import MAGIC
from mtactors.journal.writer import Journal
from mtactors.replay.execution import Report
from tests.journal.scenes import group


def _refusal(*arguments: str) -> str:
    result = CliRunner().invoke(replay_command, list(arguments))
    assert isinstance(result.exception, JournalError), result.exception
    assert isinstance(result.exception, UsageError)  # exit code 2
    return str(result.exception)


def _write_run(directory: Path, name: str) -> None:
    journal = Journal(directory, 1 << 20, prompts=True)
    journal.begin(group(run=name))
    journal.close()


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that are replayed; in truth nothing is."""
    names: list[str] = []

    async def note(run: Run, **_: object) -> Report:
        names.append(run.name)
        return Report(steps=3, tokens=5, epochs=1)

    monkeypatch.setattr(command, "replay", note)
    monkeypatch.setattr(command, "build_name", lambda: "0")
    return names


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    assert _refusal(str(tmp_path / "no")) == (
        f"{tmp_path / 'no'} is no journal: No such file or directory"
    )
    assert "is no journal: there is no segment" in _refusal(str(tmp_path))
    (tmp_path / "segment-00000001").write_bytes(MAGIC[:5])
    assert "is no journal: there is no segment" in _refusal(str(tmp_path))
    (tmp_path / "segment-00000001").write_bytes(b"something else, and more of it")
    assert "is no segment of a journal" in _refusal(str(tmp_path))
    (tmp_path / "segment-00000001").write_bytes(MAGIC + b"\x02\x00\x00\x00\x01{}")
    assert "no description of a group at segment-00000001, byte 19" in _refusal(str(tmp_path))


def test_another_build_is_refused_unless_asked_for(
    tmp_path: Path, replayed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_run(tmp_path, "one")
    monkeypatch.setattr(command, "build_name", lambda: "1")
    words = _refusal(str(tmp_path))
    assert "another build wrote the journal (0), this one is 1" in words
    assert replayed == []
    result = CliRunner().invoke(replay_command, [str(tmp_path), "--any-build"])
    assert result.exception is None
    assert replayed == ["one"]


def test_the_last_run_is_taken_or_the_one_that_is_named(
    tmp_path: Path, replayed: list[str]
) -> None:
    for name in ("one", "two", "three"):
        _write_run(tmp_path, name)
    result = CliRunner().invoke(replay_command, [str(tmp_path)])
    assert replayed == ["three"]
    assert "3 steps with 5 tokens" in result.output and "are equal" in result.output
    assert "holds 3 runs" in result.output
    CliRunner().invoke(replay_command, [str(tmp_path), "--run", "two"])
    assert replayed == ["three", "two"]
    assert "holds no run 'four'; there are: one, two, three" in _refusal(
        str(tmp_path), "--run", "four"
    )
