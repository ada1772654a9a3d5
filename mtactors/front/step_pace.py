"""When the plan behind the running one is sent: late, so that whoever comes meanwhile is in it.

A worker must find its next plan waiting, and a plan that waits takes in nobody. Knows nothing of
what is in a plan; the clock is the caller's.
"""

from __future__ import annotations

import math

# A plan's way to the worker and the way of the result before it to the front, some tenths of a
# millisecond each; the rest is for steps that are shorter than all of late.
_MARGIN = 0.001
_TICK = 0.001  # event loops count milliseconds: who waits for a moment may come that much too early
_GROWTH = 1.02  # of the shortest time with each step: it is forgotten after some tens
_FORGET = 0.9
_LULL = 5.0


class StepPace:
    """How long steps of a kind take at least and how late their sender is, both of late.

    Steps whose numbers of tokens have equally many binary digits are of one kind. Whatever is
    unknown or late moves the moment forward, at most to now. To wait costs the front one more
    wake-up in each step, so it is done only while requests come that find a step running.
    """

    def __init__(self) -> None:
        self._shortest: dict[int, float] = {}
        self._lateness = 0.0
        self._came = -math.inf
        self._moment: float | None = None  # that is waited for

    def came(self, now: float) -> None:
        """Note that a request came while a step was running."""
        self._came = now

    def wait(self, started: float, tokens: int, now: float) -> float | None:
        """Return until when to wait with the plan behind a step; None: send it.

        Args:
            started: when the step began.
            tokens: of the step.
        """
        if started - self._came <= _LULL:
            shortest = self._shortest.get(tokens.bit_length(), 0.0)
            moment = started + shortest - _MARGIN - self._lateness
            if moment - now >= _TICK:
                self._moment = moment
                return moment
        self._stop_waiting(now)
        return None

    def answered(self, tokens: int, seconds: float, now: float) -> None:
        """Note that a step of so many tokens has ended, and how long it took."""
        self._stop_waiting(now)
        self._lateness *= _FORGET
        kind = tokens.bit_length()
        before = self._shortest.get(kind, seconds)
        self._shortest[kind] = min(seconds, before * _GROWTH)

    def _stop_waiting(self, now: float) -> None:
        if self._moment is not None:
            self._lateness = max(self._lateness, now - self._moment)
            self._moment = None
