"""One request's state: what was asked, the rows that compute its choices, what a step changed.

Knows nothing of plans, of the wire, or of which block holds which token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mtactors.outputs import FinishReason
from mtactors.sampling_params import SamplingParams
from mtactors.wire.messages import PromptLogprobs, SamplerSpec, TokenLogprobs

_ENOUGH = (1 << 31) - 1  # more than any vocabulary or context has, and it fits the wire


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a client asked for, resolved: nothing here changes while it runs.

    Args:
        arrival: seconds, on the caller's clock; the scheduler only carries it.
        seed: already drawn when the client gave none.
        stop_ids: sampling one of these ends a choice (EOS left out with `ignore_eos`).
        max_tokens: output tokens per choice, already bounded by the model's length.
        priority: lower goes first.
        rope_alpha: NTK scaling chosen from the prompt, 1.0 for none.
        bad_words: ids that must not come in this order.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival: float
    seed: int
    stop_ids: frozenset[int]
    max_tokens: int
    priority: int = 0
    cache_salt: str | None = None
    rope_alpha: float = 1.0
    grammar: str = ""
    bad_words: tuple[tuple[int, ...], ...] = ()

    def sampler_spec(self) -> SamplerSpec:
        """Build what the workers need to choose this request's tokens."""
        params = self.params
        bias = params.logit_bias or {}
        return SamplerSpec(
            temperature=0.0 if params.greedy else params.temperature,
            top_k=min(params.top_k, _ENOUGH),
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=self.seed,
            min_tokens=min(params.min_tokens, _ENOUGH),
            logprobs=-1 if params.logprobs is None else params.logprobs,
            stop_ids=sorted(self.stop_ids),
            bias_ids=list(bias),
            bias_values=list(bias.values()),
            allowed_ids=list(params.allowed_token_ids or ()),
            bad_ids=[token for word in self.bad_words for token in word],
            bad_lengths=[len(word) for word in self.bad_words],
        )


class RowState(Enum):
    """Where a row is between arrival and end.

    SIBLING waits for the first choice's prompt, WAITING is in the queue, RUNNING holds a slot,
    PREEMPTED lost its slot and waits for its results in flight, ENDED takes no more tokens.
    """

    SIBLING = "sibling"
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Row:
    """One choice of a request. Positions count from 0 over prompt and output together.

    [0, computed)        in the cache: the results that computed them have been applied
    [computed, planned)  in flight
    [planned, target)    tokens known, or being sampled in flight, and not planned yet
    [0, stop_at)         all that will ever be computed: the last token's own position is not

    Args:
        key: (priority, number, choice): the total order in which rows are served.
        limit: most output tokens.
        chain: digests of the prefix cache: root, then one for each full block of known tokens.
        blocks: block table; `room` is the number of positions that it covers.
        in_flight: unanswered plans that name this row.
        registered: leading blocks that the prefix cache has seen.
        checkpoint: when `computed` reaches it there is something to register or to tell.
        prompt_known: the prompt was computed once and its logprobs were handed over.
        prompt_logprobs: pieces gathered until the prompt is computed.
        cached_tokens: prompt tokens reused at the first admission; -1 before it.
    """

    family: Family
    request: Request
    choice: int
    key: tuple[int, int, int]
    prompt_len: int
    limit: int
    stop_at: int
    chain: list[bytes]
    output_ids: list[int] = field(default_factory=list)
    state: RowState = RowState.WAITING
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    room: int = 0
    computed: int = 0
    planned: int = 0
    target: int = 0
    in_flight: int = 0
    registered: int = 0
    checkpoint: int = 0
    prompt_known: bool = False
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    cached_tokens: int = -1

    @property
    def id(self) -> tuple[str, int]:
        """Request id and choice: what it is called outside of the scheduler."""
        return self.request.request_id, self.choice

    @property
    def num_tokens(self) -> int:
        """Number of tokens whose ids are known."""
        return self.prompt_len + len(self.output_ids)

    @property
    def exhausted(self) -> bool:
        """Whether all that it will ever compute is planned: it ends by its results in flight."""
        return self.planned >= self.stop_at

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt logprobs are still owed; the first choice speaks for all."""
        asked = self.request.params.prompt_logprobs is not None
        return asked and self.choice == 0 and not self.prompt_known

    def tokens(self) -> list[int]:
        """Return all known tokens, prompt and output, not to be changed."""
        if not self.output_ids:
            return self.request.prompt_token_ids
        return self.request.prompt_token_ids + self.output_ids

    def tokens_between(self, start: int, end: int) -> tuple[int, ...]:
        """Return the known tokens at positions [start, end)."""
        prompt, length = self.request.prompt_token_ids, self.prompt_len
        if end <= length:
            return tuple(prompt[start:end])
        if start >= length:
            return tuple(self.output_ids[start - length : end - length])
        return tuple(prompt[start:] + self.output_ids[: end - length])

    def restart(self) -> None:
        """Forget slot, blocks and progress; what was sampled stays."""
        self.slot = -1
        self.blocks = []
        self.room = self.computed = self.planned = self.in_flight = self.registered = 0
        self.target = self.num_tokens
        self.prompt_logprobs = []


@dataclass(slots=True, eq=False)
class Family:
    """The rows of one request, and what its siblings wait for.

    Args:
        parent: the row whose prompt the siblings in state SIBLING wait for; None once it is
            computed, or when nobody waits.
        unadmitted: siblings that never held a slot, in order of their choice.
        hold: blocks of the computed prompt, one reference each, kept for the unadmitted.
        open: rows that have not ended.
        admitted: whether any row ever held a slot.
    """

    request: Request
    sampler: SamplerSpec
    rows: list[Row] = field(default_factory=list)
    parent: Row | None = None
    unadmitted: list[Row] = field(default_factory=list)
    hold: list[int] = field(default_factory=list)
    open: int = 0
    admitted: bool = False


def open_family(request: Request, number: int, limit: int, root: bytes) -> Family:
    """Make the rows of a request: the first waits in the queue, its siblings for its prompt.

    Args:
        number: counts requests in order of arrival.
        limit: output tokens of a choice.
        root: where the chain of digests starts.
    """
    family = Family(request, request.sampler_spec())
    prompt_len = len(request.prompt_token_ids)
    for choice in range(request.params.n):
        row = Row(
            family=family,
            request=request,
            choice=choice,
            key=(request.priority, number, choice),
            prompt_len=prompt_len,
            limit=limit,
            stop_at=prompt_len + max(limit - 1, 0),
            chain=[root],
            target=prompt_len,
        )
        family.rows.append(row)
    family.open = len(family.rows)
    family.parent = family.rows[0]
    family.unadmitted = family.rows[1:]
    for sibling in family.unadmitted:
        sibling.state = RowState.SIBLING
    return family


@dataclass(slots=True)
class RowUpdate:
    """What one result changed for one choice; a choice gets exactly one with a finish reason.

    Args:
        token_ids: new ones, at most one per step.
        logprobs: parallel to `token_ids`, empty unless asked for.
        prompt_logprobs: all pieces in order, once, with the update that ends the prompt.
        stop_reason: the stop token id that ended it; None for EOS and for length.
        num_cached_tokens: prompt tokens that the choice reused instead of computing.
    """

    request: Request
    choice: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[PromptLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | None
    num_cached_tokens: int
