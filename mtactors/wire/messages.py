"""Every message that crosses between the front and a worker, and nothing else.

Each docstring begins with its direction. A message is plain data; `wire.codec` turns it into
msgpack and back, `wire.channel` carries it. Neither side imports the other: what they share is
here. `Ints` travel as little-endian int32 bytes, `Floats` as little-endian float32 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

PROTOCOL_VERSION = 1
DIGEST_BYTES = 12

Ints = Annotated[list[int], "<i4"]
Floats = Annotated[list[float], "<f4"]


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """front -> worker, inside NewRow: how the tokens of one row are chosen.

    `temperature` 0 is greedy. `top_k` 0 is off, `top_p` 1 is off, `min_p` 0 is off. The random
    number of a token is keyed by (seed, choice, absolute output position). While fewer than
    `min_tokens` output tokens exist, `stop_ids` (EOS included) cannot be sampled.
    `allowed_ids` empty means all. `bad_ids` are the words that must not come, one after the other,
    each of as many ids as `bad_lengths` says. `logprobs`: -1 none, 0 the sampled token's, n the
    n likeliest.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    min_tokens: int
    logprobs: int
    stop_ids: Ints
    bias_ids: Ints
    bias_values: Floats
    allowed_ids: Ints
    bad_ids: Ints = field(default_factory=list)
    bad_lengths: Ints = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NewRow:
    """front -> worker: a row that takes a slot: a new request, a resumed or a preempted one.

    `tokens`: all tokens so far, prompt and output. `prompt_len`: length of the original prompt,
    so output position = len(tokens) - prompt_len. Positions below `num_computed` are already in
    the blocks (cache hit). This step computes positions num_computed .. num_computed+chunk_len-1;
    `sample` is true when that reaches the last token. `block_table` covers at least the chunk.
    `prompt_logprobs` as in SamplerSpec.logprobs; `grammar` is empty or a grammar in llguidance's
    JSON form, which the output must follow from its first token.
    """

    slot: int
    request_id: str
    choice: int
    sampler: SamplerSpec
    tokens: Ints
    prompt_len: int
    num_computed: int
    chunk_len: int
    block_table: Ints
    sample: bool
    prompt_logprobs: int
    grammar: str
    rope_alpha: float


@dataclass(frozen=True, slots=True)
class KnownRow:
    """front -> worker: the next chunk of a row that holds its slot.

    A row that has all its tokens computed decodes: chunk_len 1, input = the last id sampled for
    this slot, which the front may not know yet. `new_blocks` are appended to its block table.
    """

    slot: int
    chunk_len: int
    new_blocks: Ints
    sample: bool


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """front -> worker: copy the first `tokens` positions of block `source` to `target`."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """front -> worker: one step. Applied in the order ended, copies, new and known.

    `seq` counts from 1 within an epoch without gaps. A slot in `ended` may be reused by `new` in
    the same plan. Copies come from earlier plans' blocks, are disjoint, and no block is source
    and target at once.
    """

    version: int
    epoch: int
    seq: int
    new: list[NewRow]
    known: list[KnownRow]
    ended: Ints
    copies: list[BlockCopy]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """worker -> front, inside StepResult: logprobs of a row's sampled token.

    `row` indexes the plan's rows (new, then known). `top_*` hold the n likeliest ids in order.
    """

    row: int
    logprob: float
    rank: int
    top_ids: Ints
    top_logprobs: Floats


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """worker -> front, inside StepResult: logprobs of the prompt tokens that a chunk predicted.

    Entry j is about the token at position `start` + j; `logprobs` and `ranks` are its own,
    `top_ids[j*n : (j+1)*n]` the n likeliest at that position.
    """

    row: int
    start: int
    logprobs: Floats
    ranks: Ints
    top_ids: Ints
    top_logprobs: Floats


@dataclass(frozen=True, slots=True)
class StepResult:
    """worker (rank 0) -> front: what a plan produced.

    `ids`: one per row of the plan in its order (new, then known), -1 where nothing was sampled.
    `microseconds`: from the plan's arrival at the worker to this result. `digests` is empty
    unless it was configured; then it has `DIGEST_BYTES` for each row that sampled, in order: as
    little-endian float32 the id's raw logit, and of all raw logits the maximum and the logsumexp.
    """

    epoch: int
    seq: int
    ids: Ints
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[PromptLogprobs]
    microseconds: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """worker -> front: first message of a worker; the front refuses another version."""

    version: int
    epoch: int
    rank: int
    pid: int


@dataclass(frozen=True, slots=True)
class Configure:
    """front -> worker: answer to Hello: what to load and how.

    `dtype` is resolved ("bfloat16", "float16", "float32"). `kv_cache_memory_bytes` 0 means: size
    it from `gpu_memory_utilization`. `cpu_threads` 0 means the default. `run_dir` is the epoch's
    0700 directory for rendezvous files. `kernels`: "auto", or a named implementation. `reshard`:
    whether a checkpoint converted for another number of ranks is cut anew. `tokenizer_dir`: whose
    vocabulary grammars are written in; empty means the model's. `digests`: results carry them.
    `golden_check`: known answers are computed first.
    """

    version: int
    epoch: int
    rank: int
    world_size: int
    model_dir: str
    dtype: str
    device: str
    block_size: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    cpu_threads: int
    run_dir: str
    kernels: str
    reshard: bool = False
    tokenizer_dir: str = ""
    digests: bool = False
    golden_check: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """worker -> front: a start-up phase ended ("import", "load", ...) after `seconds`."""

    epoch: int
    rank: int
    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """worker -> front: weights are loaded, KV cache is there; plans may come.

    `num_blocks` is the same on every rank (the smallest any of them can hold).
    """

    epoch: int
    rank: int
    num_blocks: int
    kv_bytes: int
    weight_bytes: int
    device_name: str
    kernels: str


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """worker -> front: this rank cannot go on and exits; `seq` is 0 before the first plan.

    `kind` is "usage" when the user can mend it (bad checkpoint, no memory), else "fault".
    """

    epoch: int
    rank: int
    seq: int
    kind: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """front -> worker: finish the step in hand and exit 0."""

    epoch: int
    reason: str


FrontMessage = StepPlan | Configure | Shutdown
WorkerMessage = StepResult | Hello | Progress | Ready | WorkerFailed
Message = FrontMessage | WorkerMessage
