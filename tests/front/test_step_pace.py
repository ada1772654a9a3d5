"""When to send the plan behind the one that runs."""

from __future__ import annotations

import pytest

from mtactors.front.step_pace import StepPace

STEP = 0.020
TOKENS = 4


def _pace(*seconds: float) -> StepPace:
    """Return a pace at which requests come, after steps of so many seconds."""
    pace = StepPace()
    pace.came(0.0)
    for step in seconds:
        pace.answered(TOKENS, step, 0.0)
    return pace


def _waits(pace: StepPace, started: float = 0.0, tokens: int = TOKENS) -> float:
    """Return for how long the plan behind a step that begins now waits."""
    moment = pace.wait(started, tokens, started)
    return 0.0 if moment is None else moment - started


def test_a_plan_waits_for_most_of_the_shortest_step() -> None:
    assert 0.8 * STEP < _waits(_pace(2 * STEP, STEP, 1.01 * STEP)) < STEP


def test_the_wait_ends() -> None:
    pace = _pace(STEP)
    moment = pace.wait(0.0, TOKENS, 0.005)
    assert moment is not None
    assert pace.wait(0.0, TOKENS, moment) is None


def test_nobody_waits_for_a_step_of_an_unknown_kind() -> None:
    pace = _pace(STEP)
    assert _waits(pace, tokens=TOKENS + 1) > 0
    assert _waits(pace, tokens=2 * TOKENS) == 0
    assert _waits(StepPace()) == 0


def test_nobody_waits_for_very_short_steps() -> None:
    assert _waits(_pace(0.0005)) == 0


def test_nobody_waits_where_no_request_comes_while_steps_run() -> None:
    pace = StepPace()
    pace.answered(TOKENS, STEP, 0.0)
    assert _waits(pace, started=1.0) == 0
    pace.came(1.0)
    assert _waits(pace, started=2.0) > 0
    assert _waits(pace, started=60.0) == 0


def test_a_quick_step_is_forgotten_in_time() -> None:
    pace = _pace(STEP, STEP / 2)
    assert _waits(pace) < STEP / 2
    for _ in range(50):
        pace.answered(TOKENS, STEP, 0.0)
    assert 0.8 * STEP < _waits(pace) < STEP


@pytest.mark.parametrize("answered", [False, True])
def test_who_was_late_comes_earlier_for_a_while(answered: bool) -> None:
    pace = _pace(STEP)
    usual = _waits(pace)
    late = usual + 0.010
    if not answered:
        assert pace.wait(0.0, TOKENS, late) is None
    pace.answered(TOKENS, STEP, late)
    assert _waits(pace) == pytest.approx(usual - 0.010, abs=0.002)
    for _ in range(50):
        pace.answered(TOKENS, STEP, late)
    assert _waits(pace) == pytest.approx(usual, abs=0.001)


def test_who_is_later_than_a_step_is_long_does_not_wait() -> None:
    pace = _pace(STEP)
    _waits(pace)
    pace.answered(TOKENS, STEP, 10 * STEP)
    assert _waits(pace) == 0


def test_it_is_not_late_to_have_nothing_to_send() -> None:
    pace = _pace(STEP)
    moment = pace.wait(0.0, TOKENS, 0.0)
    assert moment is not None
    assert pace.wait(0.0, TOKENS, moment) is None
    pace.answered(TOKENS, STEP, 60.0)
    assert _waits(pace) > 0.8 * STEP
