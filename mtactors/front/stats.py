"""Facts about a running engine: `EngineStats`, `EngineObserver`, and the line logged of them.

Knows nothing of metric names or exporters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from mtactors.front.block_pool import Ledger
from mtactors.outputs import FinishReason

logger = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A running worker.

    Args:
        step: the last one that it began, 0 before the first.
        seconds: that it has been in that step; None between steps.
    """

    rank: int
    pid: int
    step: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at one moment; totals count from the engine's start.

    Args:
        running: choices that hold a slot.
        waiting: unfinished choices that hold none.
        queued: requests of which nothing was ever computed.
        in_flight: unanswered step plans.
        kv: blocks of the KV cache.
        prompt_tokens: of all finished and open requests that were admitted.
        generation_tokens: sampled and handed out.
        finished: requests by the reason that ended their first choice.
        prefix_queries, prefix_hits: prompt tokens looked up and found in the prefix cache.
        preemptions: choices that lost their slot to older ones.
        steps: results applied.
        epoch: number of the worker group.
        restarts: replacements of the worker group.
        suspects: choices that are computed alone because the workers died of one of them.
        workers: of the running group, by rank.
    """

    running: int
    waiting: int
    queued: int
    in_flight: int
    kv: Ledger
    prompt_tokens: int
    generation_tokens: int
    finished: dict[FinishReason, int]
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    steps: int
    epoch: int
    restarts: int = 0
    suspects: int = 0
    workers: tuple[WorkerFacts, ...] = ()

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that is referenced by choices, 0 to 1."""
        return self.kv.used / self.kv.total if self.kv.total else 0.0


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A request that has ended; times in seconds, None for what never happened."""

    request_id: str
    reason: FinishReason
    prompt_tokens: int
    generation_tokens: int
    cached_tokens: int
    choices: int
    max_tokens: int
    queued_seconds: float | None
    first_token_seconds: float | None
    total_seconds: float


class EngineObserver:
    """What wants to know of single events; override what matters. Called on the engine's loop."""

    def on_first_token(self, seconds: float) -> None:
        """Hear that a request got its first token, `seconds` after its arrival."""

    def on_next_token(self, seconds: float) -> None:
        """Hear that a request got another token, `seconds` after the one before."""

    def on_finished(self, request: FinishedRequest) -> None:
        """Hear that a request has ended, aborted ones included."""

    def on_step(self, rows: int, tokens: int, seconds: float) -> None:
        """Hear that a step was answered."""


@dataclass(slots=True)
class Totals:
    """What the engine itself counts."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    finished: dict[FinishReason, int] = field(default_factory=dict)

    def count_end(self, reason: FinishReason) -> None:
        """Count a request that has ended."""
        self.finished[reason] = self.finished.get(reason, 0) + 1


def stats_line(before: EngineStats, now: EngineStats, seconds: float) -> str | None:
    """Return one line about the `seconds` between two moments; None when nothing happened."""
    if now.steps == before.steps and not (now.running or now.waiting):
        return None
    prompt = (now.prompt_tokens - before.prompt_tokens) / seconds
    generated = (now.generation_tokens - before.generation_tokens) / seconds
    line = (
        f"running {now.running}, waiting {now.waiting}; prompt {prompt:.1f} tokens/s, generation "
        f"{generated:.1f} tokens/s; KV cache {now.kv_usage:.1%}"
    )
    queries = now.prefix_queries - before.prefix_queries
    if queries:
        line += f", prefix hits {(now.prefix_hits - before.prefix_hits) / queries:.1%}"
    preemptions = now.preemptions - before.preemptions
    return line + (f"; preemptions {preemptions}" if preemptions else "")


class StatsLog:
    """Logs a line every ten seconds, if there is anything to say.

    Args:
        read: returns the facts of the moment.
    """

    def __init__(self, read: Callable[[], EngineStats]) -> None:
        self._read = read
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._wait(self._read())

    def stop(self) -> None:
        """Say no more. May be repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, before: EngineStats) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LOG_SECONDS, self._log, before)

    def _log(self, before: EngineStats) -> None:
        now = self._read()
        line = stats_line(before, now, _LOG_SECONDS)
        if line is not None:
            logger.info("%s", line)
        self._wait(now)
