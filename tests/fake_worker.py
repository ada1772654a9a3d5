"""A worker that speaks the wire format without weights: in a thread, or as a process of its own.

Its "model" keeps, for each position of its cache, a digest of all tokens up to there. So it knows
what a plan reads, and refuses a plan under which a row would read anything but its own past: a
block given out twice, a copy out of order, a wrong table, a slot in use. As a script:

    python tests/fake_worker.py worker --connect ipc://... --rank 0 ... [--script JSON]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from mtactors.front.worker_process import (
    Launcher,
    WorkerExit,
    WorkerHandle,
    WorkerSeat,
    launch_process,
    worker_options,
)
from mtactors.wire.channel import WorkerChannel
from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    Configure,
    FrontMessage,
    Hello,
    NewRow,
    Progress,
    PromptLogprobs,
    Ready,
    Shutdown,
    StepPlan,
    StepResult,
    TokenLogprobs,
    WorkerFailed,
)

_POLL_SECONDS = 0.02
_NOTHING = 0

How = Literal["raise", "usage", "exit", "kill", "hang", "silent", "junk", "repeat", "short", "long"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, on which rank, when: before Hello, before Ready, or at a plan.

    `how`: "raise" and "usage" report WorkerFailed, "exit" ends with code 3 and a line on stderr,
    "kill" is SIGKILL, "hang" stops reading, "silent" computes without answering; "junk" sends
    noise beside the answer; "repeat", "short" and "long" spoil it.
    """

    at: Literal["hello", "ready"] | int
    how: How
    rank: int = 0
    epoch: int = 1


@dataclass(frozen=True)
class Script:
    """How a fake worker behaves.

    `tokens` "echo": the prompt again and again; "hash": a function of all tokens so far, the
    seed, the choice and the output position. Ids are below `vocab`. `poison`: a token id that
    kills the worker that gets a new row with it.
    """

    tokens: Literal["echo", "hash"] = "echo"
    vocab: int = 400
    num_blocks: int = 64
    step_seconds: float = 0.0
    start_seconds: float = 0.0
    version: int = PROTOCOL_VERSION
    poison: int = -1
    faults: tuple[Fault, ...] = ()


class PlanError(Exception):
    """The front sent a plan that a real worker would compute nonsense for."""


@dataclass
class _Slot:
    row: NewRow
    tokens: list[int]
    blocks: list[int]
    computed: int = 0


@dataclass
class FakeModel:
    """Executes plans; raises PlanError where the front has made a mistake."""

    script: Script
    block_size: int
    slots: dict[int, _Slot] = field(default_factory=dict)
    cache: dict[tuple[int, int], int] = field(default_factory=dict)  # (block, offset) -> digest
    seq: int = 0

    def run(self, plan: StepPlan) -> StepResult:
        """Execute one plan."""
        _require(plan.seq == self.seq + 1, f"plan {plan.seq} after {self.seq}")
        self.seq = plan.seq
        for slot in plan.ended:
            _require(slot in self.slots, f"slot {slot} ended without being used")
            del self.slots[slot]
        self._copy(plan)
        result = StepResult(plan.epoch, plan.seq, [], [], [], 0, b"")
        for row in plan.new:
            _require(row.slot not in self.slots, f"slot {row.slot} given out twice")
            self.slots[row.slot] = _Slot(
                row, list(row.tokens), list(row.block_table), row.num_computed
            )
            self._compute(row.slot, row.chunk_len, row.sample, result)
        for known in plan.known:
            _require(known.slot in self.slots, f"slot {known.slot} is not known")
            self.slots[known.slot].blocks += known.new_blocks
            self._compute(known.slot, known.chunk_len, known.sample, result)
        return result

    def _copy(self, plan: StepPlan) -> None:
        sources = {copy.source for copy in plan.copies}
        targets = {copy.target for copy in plan.copies}
        _require(not sources & targets, "a block is source and target of copies")
        _require(len(targets) == len(plan.copies), "a block is target of two copies")
        for copy in plan.copies:
            for offset in range(self.block_size):
                digest = self.cache.get((copy.source, offset), _NOTHING)
                self.cache[copy.target, offset] = digest if offset < copy.tokens else _NOTHING

    def _compute(self, number: int, chunk: int, sample: bool, result: StepResult) -> None:
        slot = self.slots[number]
        end = slot.computed + chunk
        _require(chunk > 0 and end <= len(slot.tokens), f"slot {number} has no {end} tokens")
        _require(end <= len(slot.blocks) * self.block_size, f"slot {number} has no block")
        _require(not sample or end == len(slot.tokens), f"slot {number} samples early")
        digest = _NOTHING
        for position in range(end):
            digest = _digest(digest, slot.tokens[position])
            place = (slot.blocks[position // self.block_size], position % self.block_size)
            if position >= slot.computed:
                self.cache[place] = digest
            _require(self.cache.get(place) == digest, f"slot {number} lost position {position}")
        row = len(result.ids)
        self._predict_prompt(slot, row, end, result)
        slot.computed = end
        token = self._sample(slot, digest) if sample else -1
        result.ids.append(token)
        if sample:
            slot.tokens.append(token)
            if slot.row.sampler.logprobs >= 0:
                result.logprobs.append(
                    _logprobs(row, token, slot.row.sampler.logprobs, self.script.vocab)
                )

    def _sample(self, slot: _Slot, digest: int) -> int:
        row, sampler = slot.row, slot.row.sampler
        position = len(slot.tokens) - row.prompt_len
        if self.script.tokens == "echo":
            token = slot.tokens[position % row.prompt_len]
        else:
            mixed = _digest(_digest(_digest(digest, sampler.seed), row.choice), position)
            token = mixed % self.script.vocab
        while token in sampler.stop_ids and position < sampler.min_tokens:
            token = (token + 1) % self.script.vocab
        return token

    def _predict_prompt(self, slot: _Slot, row: int, end: int, result: StepResult) -> None:
        count, last = slot.row.prompt_logprobs, min(end + 1, slot.row.prompt_len)
        start = slot.computed + 1
        if count < 0 or start >= last:
            return
        ids = slot.tokens[start:last]
        result.prompt_logprobs.append(
            PromptLogprobs(
                row=row,
                start=start,
                logprobs=[-float(token) for token in ids],
                ranks=[1] * len(ids),
                top_ids=[(token + n) % self.script.vocab for token in ids for n in range(count)],
                top_logprobs=[-float(token + n) for token in ids for n in range(count)],
            )
        )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PlanError(otherwise)


def _digest(before: int, token: int) -> int:
    return hash((before, token)) & 0x7FFFFFFFFFFFFFFF


def _logprobs(row: int, token: int, count: int, vocab: int) -> TokenLogprobs:
    """Return logprobs that can be told from the token: its own is -token / 1000."""
    return TokenLogprobs(
        row=row,
        logprob=-token / 1000,
        rank=1,
        top_ids=[(token + n) % vocab for n in range(count)],
        top_logprobs=[-(token + n) / 1000 for n in range(count)],
    )


class _Ended(Exception):
    """The worker ends with a code and last words on stderr."""

    def __init__(self, code: int, words: str = "") -> None:
        super().__init__(words)
        self.code = code
        self.words = words


class FakeWorker:
    """One rank, from Hello to the end.

    Args:
        alive: is asked every few milliseconds; the worker ends when it says no.
    """

    def __init__(
        self, channel: WorkerChannel, epoch: int, rank: int, script: Script,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._epoch = epoch
        self._rank = rank
        self._script = script
        self._alive = alive

    def run(self) -> None:
        """Serve until Shutdown.

        Raises:
            _Ended: in any other way.
        """
        seq = 0
        try:
            model = self._start()
            while True:
                message = self._next()
                if isinstance(message, Shutdown):
                    return
                assert isinstance(message, StepPlan)
                _require(message.epoch == self._epoch, f"a plan of epoch {message.epoch}")
                seq = message.seq
                self._step(model, message)
        except _Ended:
            raise
        except Exception as error:
            self._fail(seq, "fault", f"{type(error).__name__}: {error}")

    def _start(self) -> FakeModel:
        self._misbehave("hello")
        self._channel.send(Hello(self._script.version, self._epoch, self._rank, os.getpid()))
        configure = self._next()
        if isinstance(configure, Shutdown):
            raise _Ended(0)
        assert isinstance(configure, Configure)
        with Path(configure.run_dir, f"step-{self._rank}").open("w+b") as file:
            file.truncate(16)
            self._page = mmap.mmap(file.fileno(), 16)
        self._channel.send(Progress(self._epoch, self._rank, "load", 0.001))
        time.sleep(self._script.start_seconds)
        self._misbehave("ready")
        blocks = self._script.num_blocks
        self._channel.send(Ready(self._epoch, self._rank, blocks, 1, 1, "fake", "fake"))
        return FakeModel(self._script, configure.block_size)

    def _step(self, model: FakeModel, plan: StepPlan) -> None:
        struct.pack_into("<qq", self._page, 0, plan.seq, time.monotonic_ns())
        if any(self._script.poison in row.tokens for row in plan.new):
            raise _Ended(-signal.SIGKILL)
        how = self._misbehave(plan.seq)
        result = model.run(plan)
        time.sleep(self._script.step_seconds)
        if how == "silent":
            return
        struct.pack_into("<q", self._page, 8, 0)
        if self._rank != 0:
            return
        if how == "short":
            result = replace(result, ids=result.ids[:-1])
        elif how == "long":
            result = replace(result, ids=[self._script.vocab + 7 for _ in result.ids])
        elif how == "junk":
            for noise in (b"", b"\xc1", b"\x92\x07\x01"):
                self._channel._socket.send(noise)
        self._channel.send(result)
        if how == "repeat":
            self._channel.send(result)

    def _misbehave(self, at: str | int) -> How | None:
        for fault in self._script.faults:
            if (fault.at, fault.rank, fault.epoch) != (at, self._rank, self._epoch):
                continue
            if fault.how in ("raise", "usage"):
                kind = "usage" if fault.how == "usage" else "fault"
                self._fail(at if isinstance(at, int) else 0, kind, "this went wrong")
            if fault.how == "exit":
                raise _Ended(3, "Traceback\nImportError: no such thing\n")
            if fault.how == "kill":
                raise _Ended(-signal.SIGKILL)
            while fault.how == "hang":
                self._end_if_dead()
                time.sleep(_POLL_SECONDS)
            return fault.how
        return None

    def _fail(self, seq: int, kind: str, message: str) -> None:
        failed = WorkerFailed(self._epoch, self._rank, seq, kind, message, "Traceback: here")
        self._channel.send(failed)
        raise _Ended(1)

    def _next(self) -> FrontMessage:
        while True:
            self._end_if_dead()
            message = self._channel.recv(_POLL_SECONDS)
            if message is not None:
                return message

    def _end_if_dead(self) -> None:
        if not self._alive():
            raise _Ended(-signal.SIGTERM)


class ThreadWorker:
    """A fake worker in a thread, behind the handle of a process."""

    def __init__(self, seat: WorkerSeat, script: Script) -> None:
        self.pid = -1
        self._seat = seat
        self._script = script
        self._signal = 0
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[WorkerExit] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send_signal(self, number: int) -> None:
        """End the thread at its next look; nobody waits for it after SIGKILL."""
        self._signal = self._signal or number
        if number == signal.SIGKILL:
            self._end(WorkerExit(-number, ""))

    async def wait(self) -> WorkerExit:
        """Wait for the end."""
        return await self._exit

    def _run(self) -> None:
        seat = self._seat
        channel = WorkerChannel(seat.address, seat.epoch, seat.rank)
        alive = partial(self._is_alive)
        worker = FakeWorker(channel, seat.epoch, seat.rank, self._script, alive)
        end = WorkerExit(0, "")
        try:
            worker.run()
        except _Ended as ended:
            end = WorkerExit(-self._signal if self._signal else ended.code, ended.words)
        channel.close()
        with contextlib.suppress(RuntimeError):  # after SIGKILL nobody waits: the loop may be gone
            self._loop.call_soon_threadsafe(self._end, end)

    def _is_alive(self) -> bool:
        return not self._signal

    def _end(self, end: WorkerExit) -> None:
        if not self._exit.done():
            self._exit.set_result(end)


def in_threads(script: Script, started: list[ThreadWorker] | None = None) -> Launcher:
    """Return a launcher of fake workers in this process; `started` collects them."""

    async def launch(seat: WorkerSeat) -> WorkerHandle:
        worker = ThreadWorker(seat, script)
        if started is not None:
            started.append(worker)
        return worker

    return launch


def in_processes(script: Script, started: list[WorkerHandle] | None = None) -> Launcher:
    """Return a launcher of fake workers in processes of their own; `started` collects them."""

    place = str(Path(__file__).resolve())

    async def launch(seat: WorkerSeat) -> WorkerHandle:
        command = [sys.executable, place, "worker", *worker_options(seat)]
        worker = await launch_process(seat, [*command, "--script", json.dumps(asdict(script))])
        if started is not None:
            started.append(worker)
        return worker

    return launch


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("word", choices=["worker"])
    parser.add_argument("--connect", required=True)
    for name in ("--rank", "--world-size", "--epoch", "--parent-pipe"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--script", default="{}")
    arguments = parser.parse_args()
    values = json.loads(arguments.script)
    values["faults"] = tuple(Fault(**fault) for fault in values.get("faults", ()))
    threading.Thread(target=_follow_front, args=(arguments.parent_pipe,), daemon=True).start()
    channel = WorkerChannel(arguments.connect, arguments.epoch, arguments.rank)
    code = 0
    try:
        FakeWorker(channel, arguments.epoch, arguments.rank, Script(**values)).run()
    except _Ended as ended:
        sys.stderr.write(ended.words)
        sys.stderr.flush()
        if ended.code < 0:
            os.kill(os.getpid(), -ended.code)
        code = ended.code
    channel.close()
    os._exit(code)


def _follow_front(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    _main()
