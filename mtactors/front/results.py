"""Whether a result can be an answer to its plan: what a worker says is believed only then.

A result that is refused has changed nothing, so the group that sent it can be replaced and every
row goes on. Knows nothing of what follows from a result.
"""

from __future__ import annotations

from collections.abc import Sequence

from mtactors.errors import WireError
from mtactors.front.request import Row
from mtactors.wire.messages import PromptLogprobs, StepResult, TokenLogprobs


def check_ids(result: StepResult, vocabulary: int) -> None:
    """Verify that every id is one of the vocabulary, or -1 where nothing was sampled.

    Raises:
        WireError: it is not.
    """
    if max(result.ids, default=-1) >= vocabulary:
        raise WireError(f"step {result.seq} sampled an id that is not below {vocabulary}")
    entries: list[TokenLogprobs | PromptLogprobs] = [*result.logprobs, *result.prompt_logprobs]
    for entry in entries:
        ids = entry.top_ids
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise WireError(
                f"step {result.seq} has logprobs of ids that are not below {vocabulary}"
            )


def check_logprobs(result: StepResult, rows: Sequence[Row]) -> None:
    """Verify that logprobs are there for the rows that want them, and fit.

    Args:
        rows: of the plan, in its order, as many as there are ids.

    Raises:
        WireError: they do not.
    """
    ids = result.ids
    wanted = [i for i, row in enumerate(rows) if row.family.sampler.logprobs >= 0 and ids[i] >= 0]
    if sorted(entry.row for entry in result.logprobs) != wanted:
        raise WireError(f"step {result.seq} has logprobs of rows that want none, or lacks some")
    for entry in result.logprobs:
        _require_pairs(result.seq, entry)
    for piece in result.prompt_logprobs:
        _require_pairs(result.seq, piece)
        count = len(piece.logprobs)
        if (
            not 0 <= piece.row < len(rows)
            or piece.start < 1
            or piece.start + count > rows[piece.row].prompt_len
            or len(piece.ranks) != count
        ):
            raise WireError(
                f"step {result.seq} has logprobs of a prompt's tokens that are not there"
            )


def _require_pairs(seq: int, entry: TokenLogprobs | PromptLogprobs) -> None:
    if len(entry.top_ids) != len(entry.top_logprobs):
        raise WireError(f"step {seq} has logprobs without ids, or ids without logprobs")
