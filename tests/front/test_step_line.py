"""Plans go out with numbers, and a step that is overdue condemns the group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtactors.front.step_line import StepLine
from mtactors.front.supervisor import Supervisor
from mtactors.front.worker_group import GroupReady
from mtactors.wire.codec import encode
from mtactors.wire.messages import PROTOCOL_VERSION, KnownRow, StepPlan, StepResult
from tests.front.engine_configs import small_config
from tests.front.engines import until

GROUP = GroupReady(1, 64, (), 0.0)


class Office(Supervisor):
    """A supervisor without workers that notes what it is told."""

    def __init__(self) -> None:
        super().__init__(small_config())
        self.frames: list[bytes] = []
        self.reasons: list[str] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)

    def condemn(self, reason: str) -> None:
        self.reasons.append(reason)


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _plan(seq: int) -> StepPlan:
    return StepPlan(PROTOCOL_VERSION, 1, seq, [], [KnownRow(0, 1, [], True)], [], [])


def _result(seq: int) -> StepResult:
    return StepResult(1, seq, [7], [], [], 1, b"")


def open_line(
    office: Office, step_timeout: float, clock: Clock, on_due: Callable[[], None] | None = None
) -> StepLine:
    config = small_config(workers={"step_timeout": step_timeout})
    return StepLine(office, config, clock, on_due or (lambda: None))


async def test_plans_are_numbered_anew_for_each_group() -> None:
    office, clock = Office(), Clock()
    line = open_line(office, 30.0, clock)
    line.begin(GROUP)
    for seq in (1, 2):
        assert line.next_seq == seq
        line.send(_plan(seq), clock())
    assert office.frames == [encode(_plan(1)), encode(_plan(2))]
    clock.now = 2.0
    assert line.answered(_result(1)) == 2.0
    line.begin(GROUP)
    assert line.next_seq == 1
    line.close()


async def test_an_overdue_step_condemns_the_group_by_its_number() -> None:
    office, clock = Office(), Clock()
    line = open_line(office, 0.01, clock)
    line.begin(GROUP)
    line.send(_plan(1), clock())
    clock.now = 0.001
    line.answered(_result(1))
    line.send(_plan(2), clock())
    clock.now = 5.0
    await until(lambda: bool(office.reasons))
    assert office.reasons == ["step 2 was not answered within 5.0 s"]


async def test_a_line_that_is_closed_waits_for_nothing() -> None:
    office, clock = Office(), Clock()
    line = open_line(office, 0.001, clock)
    line.begin(GROUP)
    line.send(_plan(1), clock())
    line.answered(_result(1))
    line.send(_plan(2), clock())
    clock.now = 5.0
    line.close()
    await asyncio.sleep(0.02)
    assert office.reasons == []


async def test_a_plan_behind_a_step_waits_when_requests_come_meanwhile() -> None:
    office, clock = Office(), Clock()
    rang: list[float] = []
    line = open_line(office, 30.0, clock, lambda: rang.append(clock.now))
    line.begin(GROUP)
    assert line.is_due()
    line.send(_plan(1), clock())
    line.came()
    assert line.is_due()  # nobody knows yet how long it takes
    clock.now = 0.03
    line.answered(_result(1))
    assert line.is_due()  # no step runs
    line.send(_plan(2), clock())
    assert not line.is_due()
    await until(lambda: bool(rang))
    clock.now = 0.06
    assert line.is_due()
    line.close()


async def test_requests_that_find_no_step_running_make_nobody_wait() -> None:
    office, clock = Office(), Clock()
    line = open_line(office, 30.0, clock)
    line.begin(GROUP)
    for seq in (1, 2):
        line.came()
        line.send(_plan(seq), clock())
        assert line.is_due()
        clock.now += 0.03
        line.answered(_result(seq))
    line.close()


async def test_a_line_that_is_closed_rings_for_no_plan() -> None:
    office, clock = Office(), Clock()
    rang: list[float] = []
    line = open_line(office, 30.0, clock, lambda: rang.append(clock.now))
    line.begin(GROUP)
    line.send(_plan(1), clock())
    line.came()
    clock.now = 0.01
    line.answered(_result(1))
    line.send(_plan(2), clock())
    assert not line.is_due()
    line.close()
    await asyncio.sleep(0.03)
    assert rang == []
