"""The supervisor: groups start, fail, die and stop, and every end has the right name on it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from mtactors.errors import EngineDeadError, ModelError, WorkerStartError
from mtactors.front.run_directory import sweep
from mtactors.front.supervisor import Mail, Supervisor
from mtactors.front.worker_group import GroupDead, GroupReady
from mtactors.front.worker_process import Launcher, WorkerHandle
from mtactors.wire.codec import encode
from mtactors.wire.messages import PROTOCOL_VERSION, StepPlan, StepResult
from tests import fake_worker
from tests.fake_worker import Fault, Script, in_processes, in_threads
from tests.front.engine_configs import small_config
from tests.front.engines import until

WAIT = 10.0
Seat = Callable[..., "Desk"]


class Desk:
    """A supervisor and the mail it delivers."""

    def __init__(self, launcher: Launcher, parent: Path, tp: int, start_timeout: float) -> None:
        workers = {"start_timeout": start_timeout}
        self.mail: asyncio.Queue[Mail] = asyncio.Queue()
        self.phases: list[str] = []
        self.loading = asyncio.Event()
        self.supervisor = Supervisor(
            small_config(tp=tp, workers=workers),
            on_phase=self._on_phase,
            launcher=launcher,
            parent=parent,
        )
        self.supervisor.deliver = self.mail.put_nowait

    def _on_phase(self, phase: str, seconds: float) -> None:
        self.phases.append(phase)
        self.loading.set()

    def send_plan(self, seq: int) -> None:
        """Send a plan without rows."""
        plan = StepPlan(PROTOCOL_VERSION, self.supervisor.epoch, seq, [], [], [], [])
        self.supervisor.send(encode(plan))

    async def next(self) -> Mail:
        """Return the next mail; a test that waits long has failed."""
        return await asyncio.wait_for(self.mail.get(), WAIT)

    async def death(self) -> GroupDead:
        """Return the next mail, which must be a death."""
        mail = await self.next()
        assert isinstance(mail, GroupDead), mail
        return mail


@pytest_asyncio.fixture
async def desk(scratch: Path) -> AsyncIterator[Seat]:
    made: list[Desk] = []

    def make(launcher: Launcher, tp: int = 1, start_timeout: float = WAIT) -> Desk:
        made.append(Desk(launcher, scratch, tp, start_timeout))
        return made[-1]

    yield make
    for each in made:
        await asyncio.wait_for(each.supervisor.stop("test over"), WAIT)
    assert os.listdir(scratch) == []


def _alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("tp", [1, 2])
async def test_a_group_starts_answers_and_stops(desk: Seat, scratch: Path, tp: int) -> None:
    office = desk(in_threads(Script(num_blocks=33)), tp=tp)
    ready = await office.supervisor.start()
    assert isinstance(ready, GroupReady)
    assert (ready.epoch, ready.num_blocks, len(ready.ready)) == (1, 33, tp)
    assert office.phases == ["load"]
    (run,) = os.listdir(scratch)
    assert os.listdir(scratch / run) == []  # nothing left to connect to
    assert os.stat(scratch / run).st_mode & 0o777 == 0o700
    for seq in (1, 2):
        office.send_plan(seq)
        assert await office.next() == StepResult(1, seq, [], [], [], 0, b"")
    await office.supervisor.stop("done")
    assert os.listdir(scratch) == []
    assert office.mail.empty()


async def test_the_next_group_has_the_next_epoch(desk: Seat) -> None:
    office = desk(in_threads(Script()), tp=2)
    await office.supervisor.start()
    await office.supervisor.stop_group("replaced")
    assert (await office.supervisor.start()).epoch == 2
    office.send_plan(1)
    assert await office.next() == StepResult(2, 1, [], [], [], 0, b"")


async def test_worker_processes_start_answer_and_stop(desk: Seat) -> None:
    workers: list[WorkerHandle] = []
    office = desk(in_processes(Script(), workers), tp=2)
    await office.supervisor.start()
    office.send_plan(1)
    assert await office.next() == StepResult(1, 1, [], [], [], 0, b"")
    await office.supervisor.stop("done")
    assert not any(_alive(worker.pid) for worker in workers)


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_killed_worker_is_the_end_of_its_group(desk: Seat, rank: int) -> None:
    workers: list[WorkerHandle] = []
    office = desk(in_processes(Script(), workers), tp=2)
    await office.supervisor.start()
    os.kill(_pid_of_rank(workers, rank), signal.SIGKILL)
    dead = await office.death()
    assert (dead.epoch, dead.rank) == (1, rank)
    assert dead.reason == f"worker rank {rank} was killed by SIGKILL (out of memory?)"
    await office.supervisor.stop_group("lost")
    assert not any(_alive(worker.pid) for worker in workers)
    assert office.mail.empty()


def _pid_of_rank(workers: list[WorkerHandle], rank: int) -> int:
    for worker in workers:
        with open(f"/proc/{worker.pid}/cmdline", "rb") as file:
            if f"--rank={rank}".encode() in file.read().split(b"\0"):
                return worker.pid
    raise AssertionError(f"no worker of rank {rank}")


@pytest.mark.parametrize("rank", [0, 1])
async def test_the_first_to_fail_is_named_not_those_that_follow(desk: Seat, rank: int) -> None:
    # The other rank fails, too, of the loss of the first, and says so at once.
    faults = (Fault(1, "raise", rank), Fault(2, "raise", 1 - rank))
    office = desk(in_threads(Script(faults=faults)), tp=2)
    await office.supervisor.start()
    office.send_plan(1)
    group = office.supervisor._group
    assert group is not None
    await until(lambda: bool(group._signs))
    office.send_plan(2)
    mail = await office.next()
    if isinstance(mail, StepResult):  # rank 0 had nothing to complain about in step 1
        mail = await office.next()
    reason = f"worker rank {rank} failed in step 1: this went wrong"
    assert mail == GroupDead(1, rank, reason, "Traceback: here")


async def test_a_killed_worker_is_named_although_another_complains_first(desk: Seat) -> None:
    # Rank 0 notices the broken collective and reports it before rank 1's death is known.
    faults = (Fault(1, "raise", 0), Fault(1, "kill", 1))
    office = desk(in_threads(Script(faults=faults)), tp=2)
    await office.supervisor.start()
    office.send_plan(1)
    dead = await office.death()
    assert dead.rank == 1
    assert "SIGKILL" in dead.reason


async def test_a_worker_that_dies_without_a_word_is_quoted(
    desk: Seat, caplog: pytest.LogCaptureFixture
) -> None:
    office = desk(in_processes(Script(faults=(Fault("hello", "exit"),))))
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(WorkerStartError, match="exited with code 3 before it was ready: ImportErr"),
    ):
        await office.supervisor.start()
    assert "rank 0: ImportError: no such thing" in caplog.text
    assert "Traceback\nImportError: no such thing" in caplog.text


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault("hello", "raise", 1), WorkerStartError, "worker rank 1 failed: this went wrong"),
        (Fault("ready", "raise"), WorkerStartError, "worker rank 0 failed: this went wrong"),
        (Fault("ready", "usage", 1), ModelError, "^this went wrong$"),
        (Fault("ready", "kill", 1), WorkerStartError, "rank 1 was killed by SIGKILL before it was"),
        (Fault("ready", "exit", 1), WorkerStartError, "rank 1 exited with code 3 before it was"),
    ],
)
async def test_failures_at_start_name_the_cause(
    desk: Seat, fault: Fault, error: type[Exception], words: str
) -> None:
    office = desk(in_threads(Script(faults=(fault,))), tp=2)
    with pytest.raises(error, match=words) as caught:
        await office.supervisor.start()
    assert "\n" not in str(caught.value)
    assert office.mail.empty()


async def test_after_a_failed_start_the_next_may_succeed(desk: Seat) -> None:
    office = desk(in_threads(Script(faults=(Fault("ready", "raise"),))))
    with pytest.raises(WorkerStartError):
        await office.supervisor.start()
    assert (await office.supervisor.start()).epoch == 2


async def test_a_late_worker_is_named_with_its_last_phase(desk: Seat) -> None:
    faults = (Fault("ready", "hang", 1),)
    office = desk(in_threads(Script(faults=faults)), tp=2, start_timeout=0.2)
    with pytest.raises(WorkerStartError, match=r"rank 1 \(after load\) was not ready after 0.2 s"):
        await office.supervisor.start()


@pytest.mark.parametrize("num_blocks", [0, -1, 2**40])
async def test_a_cache_that_cannot_be_is_refused(desk: Seat, num_blocks: int) -> None:
    office = desk(in_threads(Script(num_blocks=num_blocks)))
    with pytest.raises(WorkerStartError, match=f"nonsense: a cache of {num_blocks} blocks"):
        await office.supervisor.start()


async def test_another_protocol_version_is_refused_with_both_named(desk: Seat) -> None:
    office = desk(in_threads(Script(version=PROTOCOL_VERSION + 6)))
    words = f"protocol version {PROTOCOL_VERSION + 6}, this front {PROTOCOL_VERSION}"
    with pytest.raises(WorkerStartError, match=words):
        await office.supervisor.start()


async def test_a_worker_that_cannot_be_launched(desk: Seat) -> None:
    def launch(seat: object) -> Awaitable[WorkerHandle]:
        raise OSError("no processes left")

    with pytest.raises(WorkerStartError, match="worker rank 0: no processes left"):
        await desk(launch).supervisor.start()


async def test_starting_may_be_given_up(desk: Seat) -> None:
    workers: list[WorkerHandle] = []
    office = desk(in_processes(Script(start_seconds=60), workers), tp=2)
    starting = asyncio.ensure_future(office.supervisor.start())
    await asyncio.wait_for(office.loading.wait(), WAIT)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not any(_alive(worker.pid) for worker in workers)


async def test_a_condemned_group_is_dead_at_once_and_killed(desk: Seat) -> None:
    workers: list[WorkerHandle] = []
    office = desk(in_processes(Script(faults=(Fault(1, "hang"),)), workers))
    await office.supervisor.start()
    office.send_plan(1)
    office.supervisor.condemn("step 1 took too long")
    dead = await office.death()
    assert (dead.epoch, dead.rank) == (1, -1)
    assert dead.reason.startswith("step 1 took too long (rank 0 ")
    await office.supervisor.stop_group("hung")
    assert not any(_alive(worker.pid) for worker in workers)


async def test_a_stopped_process_does_not_survive(desk: Seat) -> None:
    workers: list[WorkerHandle] = []
    office = desk(in_processes(Script(), workers))
    await office.supervisor.start()
    os.kill(workers[0].pid, signal.SIGSTOP)
    office.supervisor.condemn("silent")
    await office.supervisor.stop_group("silent")  # SIGTERM cannot reach it
    assert not _alive(workers[0].pid)


async def test_sending_to_a_lost_worker_is_a_death(desk: Seat) -> None:
    workers: list[WorkerHandle] = []
    office = desk(in_processes(Script(), workers))
    await office.supervisor.start()
    os.kill(workers[0].pid, signal.SIGKILL)
    for seq in range(20):  # some of them before, some after the death is known
        office.send_plan(seq)
    assert "SIGKILL" in (await office.death()).reason


def test_workers_do_not_outlive_a_killed_front(scratch: Path) -> None:
    # The front is a process of its own here; it cannot say goodbye.
    place = Path(fake_worker.__file__)
    code = f"""
import asyncio, importlib.util, os, sys
from pathlib import Path
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
fake = load("fake_worker", {str(place)!r})
configs = load("engine_configs", {str(place.parent / "front" / "engine_configs.py")!r})
from mtactors.front.run_directory import sweep
from mtactors.front.supervisor import Supervisor
async def main():
    workers = []
    launcher = fake.in_processes(fake.Script(), workers)
    config = configs.small_config(tp=2)
    supervisor = Supervisor(config, launcher=launcher, parent=Path({str(scratch)!r}))
    await supervisor.start()
    print(*(worker.pid for worker in workers), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as front:
        assert front.stdout is not None
        pids = [int(pid) for pid in front.stdout.readline().split()]
        assert len(pids) == 2
        assert all(_alive(pid) for pid in pids)
        front.kill()
    for _ in range(500):
        if not any(_alive(pid) for pid in pids):
            break
        time.sleep(0.01)
    assert not any(_alive(pid) for pid in pids)
    (left,) = scratch.iterdir()
    assert sweep(scratch) == [left]


def test_workers_start_and_die_on_uvloop_in_another_thread(scratch: Path) -> None:
    reasons: list[str] = []

    async def live() -> None:
        workers: list[WorkerHandle] = []
        office = Desk(in_processes(Script(), workers), scratch, 1, WAIT)
        await office.supervisor.start()
        os.kill(workers[0].pid, signal.SIGKILL)
        reasons.append((await office.death()).reason)
        await office.supervisor.stop("over")

    thread = threading.Thread(target=lambda: uvloop.run(live()))
    thread.start()
    thread.join(WAIT)
    assert reasons == ["worker rank 0 was killed by SIGKILL (out of memory?)"]


async def test_whoever_gave_up_waiting_for_the_end_is_followed_by_the_next(desk: Seat) -> None:
    started: list[WorkerHandle] = []
    office = desk(in_processes(Script(), started))
    await office.supervisor.start()
    os.kill(started[0].pid, signal.SIGSTOP)
    office.supervisor.condemn("for a test")
    await office.death()
    ending = asyncio.ensure_future(office.supervisor.stop_group("for a test"))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait((ending,))
    with pytest.raises(EngineDeadError, match="has not been stopped"):
        await office.supervisor.start()
    await office.supervisor.stop_group("once more")
    # A stopped process hears nothing but SIGKILL, and it got that at once.
    assert not _alive(started[0].pid)
    assert (await office.supervisor.start()).epoch == 2
    assert office.supervisor.pids == (started[1].pid,)


async def test_a_group_tells_what_its_start_took(desk: Seat) -> None:
    office = desk(in_threads(Script(start_seconds=0.01)))
    first = await office.supervisor.start()
    assert list(first.parts) == ["spawn", "load"]
    assert sum(first.parts.values()) <= first.seconds
    assert office.phases == ["load"]
    await office.supervisor.stop_group("for a test")
    assert list((await office.supervisor.start()).parts) == ["spawn", "load"]
    assert office.phases == ["load"]  # the first start is what somebody watches
