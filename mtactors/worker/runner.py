"""Runs step plans: copies, forward pass, sampling, and what to answer.

Holds the network, the KV cache and the slot table, and puts them together in `Runner.run`. Knows
nothing of sockets or processes; the front is known by its plans alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mtactors.kernels import Operations
from mtactors.models.decoder import Decoder
from mtactors.wire.messages import PromptLogprobs, StepPlan, StepResult, TokenLogprobs
from mtactors.worker.batch import Batch, Batches
from mtactors.worker.comm import Group
from mtactors.worker.kv_cache import KvCache
from mtactors.worker.rows import Chunks, Int32s, Int64s, Rows
from mtactors.worker.sampler import Sampler
from mtactors.worker.warm_blocks import WarmBlocks

# Logits of prompt positions are made and used in pieces of at most this size.
LOGITS_BYTES = 32 << 20


class Runner:
    """Executes plans in order, one at a time.

    Args:
        digests: whether results carry digests.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        rows: Rows,
        sampler: Sampler,
        ops: Operations,
        group: Group,
        *,
        digests: bool = False,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._rows = rows
        self._sampler = sampler
        self._ops = ops
        self._group = group
        self._digests = digests
        self._device = decoder.device
        self._on_cpu = decoder.device.type == "cpu"
        self._chooses = decoder.chooses and not digests
        self._in_one_go = decoder.in_one_go(cache.layers) and not digests
        self._batches = Batches(rows, decoder.device)
        # As many as one step of prompts can take.
        self._warm_blocks = WarmBlocks(cache.tensors, -(-rows.max_tokens // rows.block_size))
        self.limit_logits(LOGITS_BYTES)

    def limit_logits(self, num_bytes: int) -> None:
        """Make the logits of prompt positions in pieces of at most `num_bytes`."""
        self._logits_rows = max(1, num_bytes // (4 * self._decoder.spec.vocab_rows))

    def prepare(self) -> bool:
        """Prepare a little for later steps; tell whether there is more to do."""
        self._warm_blocks.use(self._rows.highest_block)
        return self._warm_blocks.prepare()

    def idle(self) -> None:
        """Use the time in which nothing is asked. May be repeated."""
        self._sampler.warm()

    def run(
        self, plan: StepPlan, arrived: float, meanwhile: Callable[[], None] | None = None
    ) -> StepResult | None:
        """Execute a plan; return what it produced on rank 0, None on other ranks.

        Best called in torch's inference mode, which is not entered here for each step.

        Args:
            arrived: time.perf_counter() when the plan was received.
            meanwhile: called when a device has all its work and the host would only wait for it;
                never on a CPU, which has no time to spare.

        Raises:
            WireError: the plan does not fit what is here; nothing has been computed.
        """
        chunks = self._rows.apply(plan)
        for row in plan.new:
            self._sampler.start(
                row.slot, row.choice, row.sampler, row.grammar, f"{row.request_id}/{row.choice}"
            )
        if plan.copies:
            self._copy_blocks(plan)
        ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        prompt_logprobs: list[PromptLogprobs] = []
        digests = b""
        if chunks.slots.size:
            ids, logprobs, prompt_logprobs, digests = self._compute(chunks, meanwhile)
        if self._group.rank:
            return None
        return StepResult(
            epoch=plan.epoch,
            seq=plan.seq,
            ids=ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            microseconds=int((time.perf_counter() - arrived) * 1e6),
            digests=digests,
        )

    def _compute(
        self, chunks: Chunks, meanwhile: Callable[[], None] | None
    ) -> tuple[list[int], list[TokenLogprobs], list[PromptLogprobs], bytes]:
        """Compute the chunks; return an id per row, logprobs, prompt logprobs and digests."""
        batch = self._batches.build(chunks)
        if chunks.decodes:  # and so has all of its prompt behind it
            if self._in_one_go and batch.following and self._sampler.greedy(chunks.slots):
                out, chosen = batch.following
                self._decoder.next_ids(
                    batch.ids, batch.positions, batch.attention, batch.alphas, out
                )
                self._rows.advance(chunks, chosen)
                return chosen.tolist(), [], [], b""
            hidden = self._forward(batch)
            chosen, logprobs, digests = self._sample(
                batch.last_tokens, chunks.slots, hidden, meanwhile
            )
            self._rows.advance(chunks, chosen)
            return chosen.tolist(), logprobs, [], digests
        sampling = np.flatnonzero(chunks.samples)
        prompt_logprobs: list[PromptLogprobs] = []
        if (self._rows.prompt_logprobs[chunks.slots] >= 0).any():
            hidden = self._forward(batch)
            prompt_logprobs = self._prompt_logprobs(chunks, batch, hidden)
            hidden = hidden[self._tensor(batch.last_tokens[sampling])]
        else:
            hidden = self._forward(batch, self._tensor(batch.last_tokens[sampling]))
        chosen, logprobs, digests = self._sample(
            sampling, chunks.slots[sampling], hidden, meanwhile
        )
        self._rows.advance(chunks, chosen)
        ids = np.full(len(chunks.slots), -1, np.int32)
        ids[sampling] = chosen
        return ids.tolist(), logprobs, prompt_logprobs, digests

    def _forward(self, batch: Batch, wanted: Tensor | None = None) -> Tensor:
        """Return the hidden states of the wanted tokens; without `wanted`, of all."""
        return self._decoder.forward(
            batch.ids, batch.positions, batch.attention, self._cache.layers, batch.alphas, wanted
        )

    def _copy_blocks(self, plan: StepPlan) -> None:
        copies = [(copy.source, copy.target, copy.tokens) for copy in plan.copies]
        self._rows.check_copies(copies)
        table = torch.tensor(copies, dtype=torch.int64, device=self._device)
        self._ops.copy_blocks(self._cache.tensors, table)

    def _sample(
        self,
        sampling: Int64s,
        slots: Int64s,
        hidden: Tensor,
        meanwhile: Callable[[], None] | None,
    ) -> tuple[Int32s, list[TokenLogprobs], bytes]:
        """Return ids of the rows that sample, in order, logprobs they asked for, and digests."""
        if not sampling.size:
            return np.empty(0, np.int32), [], b""
        if meanwhile is None or self._on_cpu:
            meanwhile = _nothing
        if self._chooses and self._sampler.greedy(slots):
            # Every rank finds the same ids: nothing is left to broadcast.
            likeliest = self._decoder.likeliest(hidden)
            meanwhile()
            return (likeliest if self._on_cpu else likeliest.cpu()).numpy(), [], b""
        logits = self._decoder.logits(hidden)
        if self._group.rank:
            meanwhile()
            return self._group.broadcast_ids(None, sampling.size).numpy(), [], b""
        chosen = self._sampler.sample(logits, slots, self._rows)
        meanwhile()
        # The other ranks get on with it while rank 0 looks at logprobs.
        ids = self._group.broadcast_ids(chosen, sampling.size)
        logprobs = self._sampler.logprobs(logits, chosen, sampling, slots)
        digests = self._sampler.digests(logits, chosen) if self._digests else b""
        return ids.cpu().numpy(), logprobs, digests

    def _prompt_logprobs(
        self, chunks: Chunks, batch: Batch, hidden: Tensor
    ) -> list[PromptLogprobs]:
        """Return the logprobs of the prompt tokens that the chunks predict.

        Position p predicts the token at p + 1, so a chunk [a, b) is about the prompt's tokens
        [a + 1, b + 1): the first token of a later chunk is told with the chunk before, and the
        prompt's first token never.
        """
        found = []
        wanted = self._rows.prompt_logprobs[chunks.slots]
        for row in np.flatnonzero(wanted >= 0).tolist():
            start, length = int(chunks.starts[row]) + 1, int(chunks.lengths[row])
            targets = self._rows.prompt(int(chunks.slots[row]))[start : start + length]
            first = int(batch.last_tokens[row]) + 1 - length
            result = PromptLogprobs(row, start, [], [], [], [])
            for at in range(0, targets.size, self._logits_rows):
                piece = targets[at : at + self._logits_rows]
                logits = self._decoder.logits(hidden[first + at : first + at + piece.size])
                if self._group.rank == 0:
                    self._sampler.add_prompt_logprobs(result, logits, piece, int(wanted[row]))
            if targets.size:
                found.append(result)
        return found

    def _tensor(self, tokens: Int64s) -> Tensor:
        return torch.from_numpy(tokens).to(self._device)


def _nothing() -> None:
    pass
