"""The real worker with a clock on it, for benchmarks/step.py.

Every call into the native module is timed, and what a step does around them; a part's time is its
own, without that of the parts that it calls. Started by the front like any worker; when it ends,
it writes its steps to --notes, one JSON object a line: {"rows", "decodes", "parts": {name: s}}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mtactors.kernels import _native
from mtactors.models.decoder import Decoder
from mtactors.wire import channel
from mtactors.wire.messages import FrontMessage, StepPlan, WorkerMessage
from mtactors.worker import batch, main, runner
from mtactors.worker.rows import Rows
from mtactors.worker.sampler import Sampler

#: What a step is made of: part -> the calls that belong to it.
KERNELS: dict[str, tuple[tuple[Any, str], ...]] = {
    "kernels: layers": ((_native.Decoder, "forward"),),
    # With the choice of ids where all rows are greedy.
    "kernels: output layer": ((_native.Backend, "linear"), (_native.Backend, "likeliest")),
    "kernels: sampling": ((_native.Backend, "sample"), (_native.Backend, "logprobs")),
    "kernels: copies of blocks": ((_native.Backend, "copy_blocks"),),
}
OTHERS: dict[str, tuple[tuple[Any, str], ...]] = {
    "tensors from the plan": ((Rows, "apply"), (batch.Batches, "build")),
    "arguments of the kernels": (
        (Decoder, "next_ids"),
        (Decoder, "forward"),
        (Decoder, "logits"),
        (Decoder, "likeliest"),
        (Sampler, "sample"),
        (Sampler, "logprobs"),
    ),
    "rest of the runner": ((runner.Runner, "run"),),
    "memory for later steps": ((runner.Runner, "prepare"),),
    "msgpack": ((channel, "decode_for_worker"), (channel, "encode")),
    "socket, and waiting": ((channel.WorkerChannel, "recv"), (channel.WorkerChannel, "send")),
}
LOOP = "rest of the loop"


class StepClock:
    """Where the time of each step goes. It begins when the one before has been answered."""

    def __init__(self) -> None:
        self.steps: list[dict[str, object]] = []
        self._parts: dict[str, float] = {}
        self._within = [0.0]  # seconds of the calls inside of each call that runs
        self._began = time.perf_counter()
        self._plan: StepPlan | None = None

    def time(self, part: str, owner: Any, name: str) -> None:  # noqa: ANN401
        """Replace a function of a class or module by one that counts its time to a part."""
        call: Callable[..., object] = getattr(owner, name)

        def timed(*args: object, **more: object) -> object:
            began = time.perf_counter()
            self._within.append(0.0)
            try:
                return call(*args, **more)
            finally:
                seconds = time.perf_counter() - began
                inner = self._within.pop()
                self._within[-1] += seconds
                self._parts[part] = self._parts.get(part, 0.0) + seconds - inner

        setattr(owner, name, timed)

    def plan(self, plan: StepPlan) -> None:
        """Note what the step in hand computes."""
        self._plan = plan

    def next(self) -> None:
        """End the step in hand."""
        now = time.perf_counter()
        plan, parts = self._plan, self._parts
        if plan is not None:
            parts[LOOP] = now - self._began - sum(parts.values())
            one_each = all(row.sample and row.chunk_len == 1 for row in plan.known)
            decodes = one_each and not plan.new and not plan.copies
            rows = len(plan.new) + len(plan.known)
            self.steps.append({"rows": rows, "decodes": decodes, "parts": parts})
        self._began, self._parts, self._plan = now, {}, None


def install(clock: StepClock, notes: Path) -> None:
    """Put the clock on the worker of this process; it writes to `notes` when it ends."""
    for part, calls in (KERNELS | OTHERS).items():
        for owner, name in calls:
            clock.time(part, owner, name)

    class ClockedChannel(channel.WorkerChannel):
        def recv(self, timeout: float | None = None) -> FrontMessage | None:
            message = super().recv(timeout)
            if isinstance(message, StepPlan):
                clock.plan(message)
            return message

        def send(self, message: WorkerMessage) -> None:
            super().send(message)
            clock.next()

        def close(self) -> None:
            notes.write_text("".join(json.dumps(step) + "\n" for step in clock.steps))
            super().close()

    vars(main)["WorkerChannel"] = ClockedChannel


def run() -> NoReturn:
    """Be a worker."""
    # Beside this file lies kernels.py, which transformers would take for the Hub's package.
    sys.path.remove(str(Path(__file__).resolve().parent))
    parser = argparse.ArgumentParser()
    parser.add_argument("word", choices=["worker"])
    parser.add_argument("--notes", type=Path, required=True)
    given, options = parser.parse_known_args()
    install(StepClock(), given.notes)
    main.main(options)


if __name__ == "__main__":
    run()
