"""Segments as they may be found: whole, cut off, damaged, or something else."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtactors.errors import JournalError
from mtactors.journal.reader import read_runs
from mtactors.journal.records import MAGIC, GroupFacts, Kind, pack, read_records
from mtactors.journal.writer import Journal
from mtactors.wire.codec import encode
from tests.journal.scenes import group, result_of
from tests.worker.plans import Plans, known_row, new_row


def test_a_group_comes_back_as_it_was() -> None:
    facts = group()
    assert GroupFacts.decode(facts.encode()) == facts


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=30)), max_size=5), st.data())
def test_a_tail_that_is_cut_off_is_left_out(
    records: list[tuple[Kind, bytes]], data: st.DataObject
) -> None:
    packed = [pack(kind, payload) for kind, payload in records]
    whole = MAGIC + b"".join(packed)
    length = data.draw(st.integers(0, len(whole)))
    place = Path("/tmp") / f"mtactors-test-{id(packed)}"
    place.write_bytes(whole[:length])
    try:
        found = [(record.kind, record.payload) for record in read_records(place)]
    finally:
        place.unlink()
    ends = [len(MAGIC) + sum(map(len, packed[: n + 1])) for n in range(len(packed))]
    assert found == records[: sum(end <= length for end in ends)]


def _journal(directory: Path) -> Path:
    journal = Journal(directory, 1 << 20, prompts=True)
    journal.begin(group())
    plans = Plans()
    for row in (new_row(0, [1, 2, 3], [0]), known_row(0)):
        plan = plans.next(row)
        journal.plan(plan, encode(plan))
        journal.result(result_of(plan))
    journal.close()
    (path,) = directory.glob("segment-*")
    return path


def _read_all(directory: Path) -> None:
    for run in read_runs(directory):
        list(run.events())


@given(st.data())
def test_damage_is_said_or_is_in_what_was_recorded(data: st.DataObject) -> None:
    """A flipped bit is found here, or by the comparison; it is never an error of another kind."""
    with tempfile.TemporaryDirectory() as name:
        path = _journal(Path(name))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with contextlib.suppress(JournalError):
            _read_all(Path(name))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda records: records[:2] + records[3:], "a result out of order"),
        (lambda records: records[:3] + records[4:], "a result out of order"),
        (lambda records: [records[0], *records[3:]], "out of order"),
        (lambda records: records[1:], "begins with ROWS"),
    ],
)
def test_missing_records_are_missed(
    tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    path = _journal(tmp_path)
    records = [pack(record.kind, record.payload) for record in read_records(path)]
    path.write_bytes(MAGIC + b"".join(spoil(records)))
    with pytest.raises(JournalError, match=words):
        _read_all(tmp_path)
