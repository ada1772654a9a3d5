"""How long a step may take before the workers count as hung.

Knows nothing of what a step computes; the clock is the caller's.
"""

from __future__ import annotations

from collections import deque

_UNMEASURED_SECONDS = 600.0
_MARGIN = 10.0
_FORGET = 0.9


class StepWatch:
    """Deadlines of the unanswered steps of one group.

    A step's time begins when it is sent or the result before it arrives, whichever is later. It
    ends after `step_timeout`, or ten times what that many tokens took of late if that is more;
    after ten minutes before anything was measured.

    Args:
        step_timeout: seconds.
    """

    def __init__(self, step_timeout: float) -> None:
        self._step_timeout = step_timeout
        self._pending: deque[tuple[int, float, int]] = deque()  # (seq, sent, tokens)
        self._answered = 0.0
        self._seconds_per_token: float | None = None

    @property
    def awaited(self) -> int | None:
        """Sequence number of the step that is awaited; None when there is none."""
        return self._pending[0][0] if self._pending else None

    @property
    def tokens(self) -> int:
        """Number of tokens of the step that is awaited; 0 when there is none."""
        return self._pending[0][2] if self._pending else 0

    @property
    def started(self) -> float | None:
        """When the time of the awaited step began; None when there is none."""
        return max(self._pending[0][1], self._answered) if self._pending else None

    @property
    def deadline(self) -> float | None:
        """When the awaited step is overdue; None when there is none."""
        started = self.started
        if started is None:
            return None
        if self._seconds_per_token is None:
            return started + max(self._step_timeout, _UNMEASURED_SECONDS)
        expected = self._seconds_per_token * self._pending[0][2]
        return started + max(self._step_timeout, _MARGIN * expected)

    def sent(self, seq: int, tokens: int, now: float) -> None:
        """Note that a step of so many tokens was sent."""
        self._pending.append((seq, now, tokens))

    def answered(self, now: float) -> float:
        """Note the result of the awaited step; return the seconds that it took."""
        started = self.started
        assert started is not None
        _, _, tokens = self._pending.popleft()
        self._answered = now
        seconds = now - started
        # The slowest of late: a step of one token costs more per token than a long prompt.
        before = (self._seconds_per_token or 0.0) * _FORGET
        self._seconds_per_token = max(seconds / max(tokens, 1), before)
        return seconds
