"""Plans go out with numbers, and a step that is overdue condemns the group."""

from __future__ import annotations

import asyncio

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


def open_line(office: Office, step_timeout: float, clock: Clock) -> StepLine:
    return StepLine(office, small_config(workers={"step_timeout": step_timeout}), clock)


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
