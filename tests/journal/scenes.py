"""Made-up plans and results that fit each other, as an engine would record them."""

from __future__ import annotations

from dataclasses import dataclass, field

from mtactors.journal.records import GroupFacts
from mtactors.wire.messages import DIGEST_BYTES, StepPlan, StepResult
from tests.worker.plans import configure


def group(epoch: int = 1, run: str = "abcd", *, prompts: bool = True) -> GroupFacts:
    """Return the facts of a group that never was."""
    return GroupFacts(
        run=run,
        epoch=epoch,
        created=1e9,
        build="0",
        prompts=prompts,
        configure=configure("/model", "/run", epoch=epoch),
        kernels=("cpu",),
        devices=("none",),
        num_blocks=64,
        kv_bytes=1 << 20,
    )


def result_of(plan: StepPlan, token: int = 7) -> StepResult:
    """Return a result in which each row that samples gets `token` plus its slot."""
    rows = [(row.slot, row.sample) for row in plan.new]
    rows += [(row.slot, row.sample) for row in plan.known]
    ids = [token + slot if sample else -1 for slot, sample in rows]
    digests = b"".join(bytes([slot]) * DIGEST_BYTES for slot, sample in rows if sample)
    return StepResult(plan.epoch, plan.seq, ids, [], [], 5, digests)


@dataclass
class Truth:
    """What the workers' slots hold, kept by a simpler rule than the journal's: full copies.

    `rows`: slot to (request id, tokens, positions computed).
    """

    rows: dict[int, tuple[str, list[int], int]] = field(default_factory=dict)

    def apply(self, plan: StepPlan, result: StepResult) -> None:
        """Note an answered plan."""
        for slot in plan.ended:
            self.rows.pop(slot, None)
        ids = list(result.ids)
        for new in plan.new:
            got = [token] if (token := ids.pop(0)) >= 0 else []
            computed = new.num_computed + new.chunk_len
            self.rows[new.slot] = (new.request_id, [*new.tokens, *got], computed)
        for known in plan.known:
            name, tokens, computed = self.rows[known.slot]
            got = [token] if (token := ids.pop(0)) >= 0 else []
            self.rows[known.slot] = (name, tokens + got, computed + known.chunk_len)

    def opens(self, rows: StepPlan) -> None:
        """Take over what a segment opens with."""
        self.rows = {
            row.slot: (row.request_id, list(row.tokens), row.num_computed) for row in rows.new
        }
