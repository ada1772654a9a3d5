"""An engine with a journal: what it writes down, and what it does when it cannot."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mtactors.config import EngineConfig, JournalConfig
from mtactors.errors import ConfigError
from mtactors.front.journaling import open_journal
from mtactors.journal.reader import Event, Opening, read_runs
from mtactors.wire.messages import PROTOCOL_VERSION, StepPlan, StepResult
from tests.fake_worker import Fault, Script
from tests.front.engine_configs import small_config
from tests.front.engines import EngineFactory, engine_factory, final, greedy

PROMPT = [11, 12, 13, 14, 15]


@pytest.fixture
async def start(scratch: Path) -> AsyncIterator[EngineFactory]:
    async for factory in engine_factory(scratch):
        yield factory


def with_journal(directory: Path, **options: object) -> EngineConfig:
    """Return a configuration for fake workers, with a journal that has token ids."""
    journal = JournalConfig(directory, prompts=True)
    return replace(small_config(**options), journal=journal)  # type: ignore[arg-type]


def events(directory: Path) -> list[Event]:
    """Return what the only run recorded."""
    (run,) = read_runs(directory)
    return list(run.events())


async def test_plans_and_results_are_there_as_soon_as_tokens_are(
    start: EngineFactory, tmp_path: Path
) -> None:
    engine = await start(config=with_journal(tmp_path / "j"))
    stream = engine.submit("r", PROMPT, greedy(max_tokens=3))
    output = await final(stream)
    opening, *rest = events(tmp_path / "j")
    assert isinstance(opening, Opening)
    assert opening.group.configure.version == PROTOCOL_VERSION
    assert (opening.group.epoch, opening.group.prompts) == (1, True)
    assert opening.group.num_blocks == 64
    plans = [event for event in rest if isinstance(event, StepPlan)]
    assert plans[0].new[0].tokens == PROMPT
    results = [event for event in rest if isinstance(event, StepResult)]
    ids = [token for result in results for token in result.ids]
    assert tuple(ids[:3]) == tuple(output.outputs[0].token_ids)


async def test_each_group_begins_with_rows_of_its_own(start: EngineFactory, tmp_path: Path) -> None:
    script = Script(faults=(Fault(4, "kill"),))
    config = with_journal(tmp_path / "j", workers={"max_restarts": 3})
    engine = await start(script, config=config)
    output = await final(engine.submit("r", PROMPT, greedy(max_tokens=6)))
    openings = [event for event in events(tmp_path / "j") if isinstance(event, Opening)]
    assert [opening.group.epoch for opening in openings] == [1, 2]
    assert all(opening.rows.new == [] for opening in openings)
    resumed = [
        row
        for event in events(tmp_path / "j")
        if isinstance(event, StepPlan) and event.epoch == 2
        for row in event.new
        if row.request_id == "r"
    ]
    known = resumed[0].tokens[len(PROMPT) :]
    assert known and known == list(output.outputs[0].token_ids)[: len(known)]


async def test_serving_goes_on_when_the_disk_is_full(
    start: EngineFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = await start(config=with_journal(tmp_path / "j"))
    await final(engine.submit("a", PROMPT, greedy()))
    (segment,) = (tmp_path / "j").glob("segment-*")
    write = os.write

    def full(file: int, data: bytes) -> int:
        if os.fstat(file).st_ino == segment.stat().st_ino:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING):
        for name in "bcd":
            assert (await final(engine.submit(name, PROMPT, greedy()))).outputs[0].token_ids
    said = [record.message for record in caplog.records if "journal" in record.message]
    assert said == [
        f"the journal in {tmp_path / 'j'} ends here, serving goes on: No space left on device"
    ]


def test_a_journal_that_cannot_be_written_is_a_wrong_argument(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"^journal: .*file cannot be written: File exists"):
        open_journal(with_journal(file))
    journal = open_journal(with_journal(tmp_path / "j"))
    assert journal is not None
    with pytest.raises(ConfigError, match="is the journal of another engine that runs"):
        open_journal(with_journal(tmp_path / "j"))
    journal.close()
    again = open_journal(with_journal(tmp_path / "j"))
    assert again is not None
    again.close()


def test_no_journal_is_the_default() -> None:
    assert open_journal(small_config()) is None


def test_what_is_recorded_is_for_its_owner_alone(tmp_path: Path) -> None:
    journal = open_journal(with_journal(tmp_path / "j"))
    assert journal is not None
    journal.close()
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "j" / "lock").stat().st_mode & 0o777 == 0o600
