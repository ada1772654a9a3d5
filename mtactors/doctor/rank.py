"""One rank of the doctor's tiny model, as a process: says as JSON what it computed.

    python -m mtactors.doctor.rank '{"rank": 0, ...}'     (the fields of Configure)

A prompt is computed and continued greedily; then once more over the cached first block, as a
prefix cache would have it. Rank 0 prints ids and logprobs of both. Knows no checks.
"""

from __future__ import annotations

import json
import os
import sys
import time

from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    Configure,
    KnownRow,
    NewRow,
    SamplerSpec,
    StepPlan,
    StepResult,
)
from mtactors.worker import startup
from mtactors.worker.runner import Runner

PROMPT = 70
NEW_TOKENS = 8
TOP = 2


def main() -> None:
    """Run the rank that the argument describes."""
    configure = Configure(**json.loads(sys.argv[1]))
    startup.claim_process()
    runner, _ = startup.prepare(configure, lambda phase, seconds: None)
    rank = _Rank(runner, configure.block_size)
    miss = rank.generate(0, computed=0, blocks=[0, 1])
    hit = rank.generate(1, computed=configure.block_size, blocks=[0, 2])
    if configure.rank == 0:
        print(json.dumps({"miss": miss, "hit": hit}))
    sys.stdout.flush()
    # Not sys.exit: a torn down process group waits for ranks that are gone.
    os._exit(0)


class _Rank:
    def __init__(self, runner: Runner, block_size: int) -> None:
        self._runner = runner
        self._seq = 0
        self._tokens = [3 + (at * 37 + at * at) % 311 for at in range(PROMPT)]

    def generate(self, slot: int, *, computed: int, blocks: list[int]) -> list[dict[str, object]]:
        """Return what each step sampled: id, logprob and the likeliest logprobs."""
        row = NewRow(
            slot=slot,
            request_id=f"doctor-{slot}",
            choice=0,
            sampler=_greedy(),
            tokens=self._tokens,
            prompt_len=PROMPT,
            num_computed=computed,
            chunk_len=PROMPT - computed,
            block_table=blocks,
            sample=True,
            prompt_logprobs=-1,
            grammar="",
            rope_alpha=1.0,
        )
        steps = [self._run([row], [])]
        steps += [self._run([], [KnownRow(slot, 1, [], True)]) for _ in range(NEW_TOKENS - 1)]
        return [_step(result) for result in steps if result is not None]

    def _run(self, new: list[NewRow], known: list[KnownRow]) -> StepResult | None:
        self._seq += 1
        plan = StepPlan(PROTOCOL_VERSION, 1, self._seq, new, known, [], [])
        return self._runner.run(plan, time.perf_counter())


def _greedy() -> SamplerSpec:
    return SamplerSpec(
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=0,
        min_tokens=0,
        logprobs=TOP,
        stop_ids=[],
        bias_ids=[],
        bias_values=[],
        allowed_ids=[],
    )


def _step(result: StepResult) -> dict[str, object]:
    found = result.logprobs[0]
    return {"id": result.ids[0], "logprob": found.logprob, "top": list(found.top_logprobs)}


if __name__ == "__main__":
    main()
