"""The journal as a whole: whatever is written, and however it ends, what is read back is true."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mtactors.journal.reader import Opening, read_runs
from mtactors.journal.records import Kind, read_records
from mtactors.journal.ring import segments
from mtactors.journal.writer import Journal
from mtactors.wire.codec import encode
from mtactors.wire.messages import SamplerSpec, StepPlan, StepResult
from tests.journal.scenes import Truth, group, result_of
from tests.worker.plans import Plans, known_row, new_row, sampler

LEAST = 1 << 20
SLOTS = 4


class JournalMachine(RuleBasedStateMachine):
    """An engine that plans, is answered, loses its workers and dies at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = tempfile.TemporaryDirectory()
        self.directory = Path(self.holder.name) / "journal"
        self.runs = 0
        self.limit = 4096
        self.open_journal()

    def open_journal(self) -> None:
        self.runs += 1
        self.journal = Journal(self.directory, self.limit, prompts=True)
        self.epoch = 0
        self.begin()

    def begin(self) -> None:
        self.epoch += 1
        self.plans = Plans(self.epoch)
        self.unanswered: deque[StepPlan] = deque()
        self.lengths: dict[int, int] = {}  # slots that plans have given out
        self.truth = Truth()
        self.journal.begin(group(self.epoch, f"run{self.runs}"))

    @precondition(lambda self: len(self.unanswered) < 2)
    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        ended = [slot for slot in self.lengths if data.draw(st.integers(0, 5)) == 0]
        known = [known_row(slot) for slot in self.lengths if slot not in ended]
        for slot in ended:
            del self.lengths[slot]
        new = []
        for slot in set(range(SLOTS)) - {*self.lengths}:
            if data.draw(st.booleans()):
                count = data.draw(st.integers(1, 300))
                self.lengths[slot] = count
                name = f"r{self.epoch}-{self.plans.seq}-{slot}"
                new.append(new_row(slot, range(count), [slot], request_id=name))
        plan = self.plans.next(*new, *known, ended=ended)
        self.unanswered.append(plan)
        self.journal.plan(plan, encode(plan))

    @precondition(lambda self: self.unanswered)
    @rule(token=st.integers(0, 1000))
    def answer(self, token: int) -> None:
        plan = self.unanswered.popleft()
        result = result_of(plan, token)
        self.truth.apply(plan, result)
        self.journal.result(result)

    @rule()
    def lose_workers(self) -> None:
        self.begin()

    @rule(cut=st.integers(0, 60))
    def die(self, cut: int) -> None:
        """End as SIGKILL would, perhaps in the middle of a write, and come back."""
        self.journal.close()
        newest = list(segments(self.directory).values())[-1]
        os.truncate(newest, max(0, newest.stat().st_size - cut))
        list(read_records(newest))
        self.open_journal()

    @invariant()
    def segments_are_bounded(self) -> None:
        paths = segments(self.directory).values()
        sizes = [path.stat().st_size for path in paths]
        # A segment is at most twice its opening or an eighth of the limit, and one record.
        assert len(sizes) <= 2 or sum(sizes) <= self.limit + 3 * 8192

    @invariant()
    def each_segment_opens_with_its_group_and_rows(self) -> None:
        for path in segments(self.directory).values():
            kinds = [record.kind for record in read_records(path)][:2]
            assert kinds == [Kind.GROUP, Kind.ROWS][: len(kinds)]

    @invariant()
    def what_is_read_is_what_happened(self) -> None:
        *earlier, run = read_runs(self.directory)
        for each in earlier:
            deque(each.events(), maxlen=0)
        assert run.name == f"run{self.runs}"
        for newest in (0, 1):
            told, waiting = Truth(), deque[StepPlan]()
            for event in run.events(newest):
                if isinstance(event, Opening):
                    waiting.clear()
                    told.opens(event.rows)
                elif isinstance(event, StepPlan):
                    waiting.append(event)
                else:
                    told.apply(waiting.popleft(), event)
            assert told == self.truth
            assert list(waiting) == list(self.unanswered)

    def teardown(self) -> None:
        self.journal.close()
        self.holder.cleanup()


JournalMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJournalMachine = JournalMachine.TestCase


def _write(journal: Journal, plans: Plans, steps: int, tokens: int = 0) -> None:
    """Record one row that decodes."""
    for _ in range(steps):
        row = known_row(0) if plans.seq else new_row(0, range(1, tokens + 2), [0])
        plan = plans.next(row)
        journal.plan(plan, encode(plan))
        journal.result(result_of(plan))


def test_long_rows_do_not_make_a_segment_of_every_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LEAST, prompts=True)
    journal.begin(group())
    _write(journal, Plans(), 300, tokens=100_000)  # 400 kB, where a segment is to have 128 kB
    journal.close()
    assert len(segments(tmp_path)) <= 3


def test_a_full_disk_ends_the_journal_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, LEAST, prompts=True)
    journal.begin(group())
    plans = Plans()
    _write(journal, plans, 3)
    (path,) = segments(tmp_path).values()
    before = path.read_bytes()
    write = os.write

    def last_bytes(file: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", no_space)
        return write(file, data[:10])

    def no_space(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", last_bytes)
    with caplog.at_level(logging.WARNING):
        _write(journal, plans, 5)
        journal.begin(group(2))
        _write(journal, Plans(2), 2)
    monkeypatch.setattr(os, "write", write)
    assert journal.stopped
    assert [record.message for record in caplog.records] == [
        f"the journal in {tmp_path} ends here, serving goes on: No space left on device"
    ]
    assert path.read_bytes() == before
    journal.close()
    Journal(tmp_path, LEAST, prompts=True).close()  # others may have the directory


def _recorded(directory: Path) -> list[object]:
    return [event for run in read_runs(directory) for event in run.events()]


def test_without_prompts_no_token_is_recorded(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LEAST, prompts=False)
    journal.begin(group(prompts=False))
    spec: SamplerSpec = sampler(bias_ids=[4242], bias_values=[1.0], stop_ids=[4243])
    row = new_row(0, [4244] * 9, [0], spec=spec, grammar='{"secret"}')
    plans = Plans()
    for plan in (plans.next(row), plans.next(known_row(0))):
        journal.plan(plan, encode(plan))
        journal.result(replace(result_of(plan), ids=[4245]))
    journal.close()
    opening, first, answer, _, _ = _recorded(tmp_path)
    assert isinstance(opening, Opening)
    assert not opening.group.prompts
    assert isinstance(first, StepPlan)
    assert first.new[0].tokens == [0] * 9
    assert isinstance(answer, StepResult)
    assert answer.ids == [0]
    data = b"".join(path.read_bytes() for path in segments(tmp_path).values())
    assert b"secret" not in data
    for token in range(4242, 4246):
        assert token.to_bytes(4, "little") not in data


def test_logprobs_are_not_recorded(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LEAST, prompts=True)
    journal.begin(group())
    _write(journal, Plans(), 2)
    journal.close()
    results = [event for event in _recorded(tmp_path) if isinstance(event, StepResult)]
    assert [result.seq for result in results] == [1, 2]
    assert all(result.digests for result in results)
