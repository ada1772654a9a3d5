"""The worker actor: receives plans, runs them, sends results; one process per rank.

    python -m mtactors.worker.main --connect ipc://... --rank R --world-size N --epoch E
        --parent-pipe FD

Hello, then Configure, then Progress for each phase, Ready, and a StepResult per StepPlan (from
rank 0). Shutdown ends it with exit code 0. Any exception is sent as WorkerFailed and ends it with
exit code 1: the other ranks wait in a collective, so going on is not possible. It never outlives
the front: the kernel kills it when the thread that started it ends, and it ends itself when the
inherited pipe FD is closed at the other end.

While a step runs, the page `step-<rank>` in the epoch's directory tells which: see `StepPage`.
Knows nothing of requests, users or scheduling, and imports torch only after it has said Hello.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mtactors.errors import MtactorsError, UsageError, WireError
from mtactors.wire.channel import WorkerChannel
from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    Configure,
    FrontMessage,
    Hello,
    Progress,
    Shutdown,
    StepPlan,
    WorkerFailed,
)
from mtactors.worker import faults
from mtactors.worker.step_page import StepPage

if TYPE_CHECKING:
    from mtactors.worker.runner import Runner

_PR_SET_PDEATHSIG = 1
_CONFIGURE_POLL = 0.5  # seconds
_LULL_SECONDS = 0.02  # without a plan: no row is running
_IDLE_SECONDS = 1.0  # without a plan: whoever started us has sent his first request by then


class _Stopped(Exception):
    """The front sent Shutdown."""


class Worker:
    """One rank's life, from Hello to the last plan.

    Attributes:
        seq: the plan in hand or the last one; 0 before the first.
    """

    def __init__(self, channel: WorkerChannel, epoch: int, rank: int) -> None:
        self._channel = channel
        self._epoch = epoch
        self._rank = rank
        self._fault: faults.Fault | None = None
        self._ahead: FrontMessage | None = None
        self.seq = 0

    def run(self) -> None:
        """Start, then serve until Shutdown."""
        try:
            self._serve(*self._start())
        except _Stopped:
            return

    def _start(self) -> tuple[Runner, StepPage]:
        began = time.perf_counter()
        self._channel.send(Hello(PROTOCOL_VERSION, self._epoch, self._rank, os.getpid()))
        # The front answers while torch, the slowest import there is, loads.
        from mtactors.worker import startup

        startup.claim_process()
        imported = time.perf_counter() - began
        configure = self._await_configure()
        self._report("import", imported)
        page = StepPage.create(Path(configure.run_dir), self._rank)
        self._fault = faults.commanded(self._rank, self._epoch)
        if self._fault is not None:
            self._fault.at_load()
        runner, ready = startup.prepare(configure, self._report)
        self._report("ready", time.perf_counter() - began)
        self._channel.send(ready)
        return runner, page

    def _serve(self, runner: Runner, page: StepPage) -> None:
        import torch

        with torch.inference_mode():
            while True:
                self._step(runner, page)

    def _step(self, runner: Runner, page: StepPage) -> None:
        plan = self._receive_plan(runner)
        arrived = time.perf_counter()
        if self._fault is not None:
            self._fault.at_step(plan, begun=False)
        page.enter(plan.seq)
        if self._fault is not None:
            self._fault.at_step(plan, begun=True)
        result = runner.run(plan, arrived, self._read_ahead)
        page.leave()
        if result is not None:
            self._channel.send(result)
        runner.prepare()

    def _receive_plan(self, runner: Runner) -> StepPlan:
        """Return the next plan; one out of order must never reach a collective.

        Raises:
            WireError: a gap, a repeat, or a message of another epoch.
        """
        message, self._ahead = self._ahead, None
        if message is None:
            message = self._channel.recv(_LULL_SECONDS)
        while message is None and runner.prepare():
            message = self._channel.recv(0)
        if message is None:
            message = self._channel.recv(_IDLE_SECONDS)
        if message is None:
            runner.idle()
            message = self._channel.recv()
        if isinstance(message, Shutdown):
            raise _Stopped
        if not isinstance(message, StepPlan):
            raise WireError(f"expected a plan, got {type(message).__name__}")
        if message.epoch != self._epoch or message.seq != self.seq + 1:
            raise WireError(
                f"expected plan {self.seq + 1} of epoch {self._epoch}, got plan {message.seq} of "
                f"epoch {message.epoch}"
            )
        self.seq = message.seq
        return message

    def _read_ahead(self) -> None:
        """Decode what has come meanwhile; it is looked at when the step in hand is done."""
        self._ahead = self._channel.recv(0)

    def _await_configure(self) -> Configure:
        while True:
            message = self._channel.recv(_CONFIGURE_POLL)
            if isinstance(message, Configure):
                break
            if isinstance(message, Shutdown):
                raise _Stopped
            if message is not None or self._channel.dropped:
                # The channel drops what it cannot read; here that is another version's Configure.
                raise WireError(
                    "the front's first message is no Configure of protocol version "
                    f"{PROTOCOL_VERSION}: front and worker are of different mtactors versions"
                )
        if (message.epoch, message.rank) != (self._epoch, self._rank):
            raise WireError(
                f"this is rank {self._rank} of epoch {self._epoch}, and was configured as rank "
                f"{message.rank} of epoch {message.epoch}"
            )
        return message

    def _report(self, phase: str, seconds: float) -> None:
        self._channel.send(Progress(self._epoch, self._rank, phase, seconds))

    def report_failure(self, error: BaseException) -> None:
        """Tell the front why this rank ends."""
        usable = isinstance(error, (MtactorsError, MemoryError)) and str(error)
        summary = str(error) if usable else f"{type(error).__name__}: {error}"
        self._channel.send(
            WorkerFailed(
                epoch=self._epoch,
                rank=self._rank,
                seq=self.seq,
                kind="usage" if isinstance(error, (UsageError, MemoryError)) else "fault",
                message=summary,
                traceback="".join(traceback.format_exception(error)),
            )
        )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one worker and end the process; never returns."""
    arguments = _parse(argv)
    _die_with_parent(arguments.parent_pipe)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's to decide about
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Written to stderr, which the supervisor puts into its own log.
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("mtactors").setLevel(logging.INFO)
    channel = WorkerChannel(arguments.connect, arguments.epoch, arguments.rank)
    worker = Worker(channel, arguments.epoch, arguments.rank)
    code = 0
    try:
        worker.run()
    except BaseException as error:  # whatever it is, the front must hear of it
        code = 1
        try:
            worker.report_failure(error)
        except MtactorsError:
            traceback.print_exc()  # the front does not listen; stderr is what is left
    channel.close()
    # Not sys.exit: tearing down torch and a group whose other ranks are gone may take seconds.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mtactors worker", description="Started by the engine, not by people."
    )
    parser.add_argument("--connect", required=True, help="the front's socket")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--parent-pipe", type=int, default=-1, help="ends the worker at EOF")
    return parser.parse_args(argv)


def _die_with_parent(pipe: int) -> None:
    """End with the front: by the kernel's signal, and portably by EOF on the inherited pipe.

    A front that died before this call is seen by the pipe, too, whatever getppid() says: inside
    a container the front itself may be process 1.
    """
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    if pipe >= 0:
        os.set_inheritable(pipe, False)
        threading.Thread(target=_exit_at_end, args=(pipe,), daemon=True).start()


def _exit_at_end(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
