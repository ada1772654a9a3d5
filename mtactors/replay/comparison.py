"""What a step said when it was recorded against what it says now: the first row that differs.

Knows nothing of how either came about.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mtactors.errors import JournalError
from mtactors.wire.messages import DIGEST_BYTES, KnownRow, NewRow, StepPlan, StepResult

_NAMES = ("logit", "maximum", "logsumexp")


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one row sampled; `digest` as in `StepResult`."""

    token: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """The first row of a step that is not as it was recorded.

    Args:
        rank: whose result it is; rank 0 answers for its group.
        row: index in the recorded plan, new rows first.
        what: what differs, with both values.
    """

    epoch: int
    seq: int
    rank: int
    row: int
    slot: int
    what: str

    def describe(self, of: str) -> str:
        """Say it in one line; `of` is whose row it is."""
        where = f"step {self.seq} of epoch {self.epoch}, rank {self.rank}, row {self.row}"
        return f"{where} (slot {self.slot}, {of}): {self.what}"


def sampled_rows(plan: StepPlan, result: StepResult) -> dict[int, Sampled]:
    """Return what a plan's rows sampled, by slot.

    Raises:
        JournalError: the result does not fit the plan.
    """
    slots = [row.slot for row in plan.new if row.sample]
    slots += [row.slot for row in plan.known if row.sample]
    ids = [token for token in result.ids if token >= 0]
    fits = len(result.ids) == len(plan.new) + len(plan.known) and len(ids) == len(slots)
    if not fits or len(result.digests) != DIGEST_BYTES * len(ids):
        raise JournalError(
            f"the journal is damaged: the result of step {result.seq} of epoch {result.epoch} "
            "does not fit its plan"
        )
    digests = result.digests
    parts = [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]
    return {
        slot: Sampled(token, digest) for slot, token, digest in zip(slots, ids, parts, strict=True)
    }


def first_difference(
    plan: StepPlan, recorded: StepResult, now: dict[int, Sampled]
) -> Difference | None:
    """Compare a recorded step with what its rows sample now."""
    before = sampled_rows(plan, recorded)
    rows: list[NewRow | KnownRow] = [*plan.new, *plan.known]
    for index, row in enumerate(rows):
        if row.sample and (what := _differs(before[row.slot], now[row.slot])):
            return Difference(plan.epoch, plan.seq, 0, index, row.slot, what)
    return None


def _differs(before: Sampled, now: Sampled) -> str:
    """Say what differs, in one phrase; empty when nothing does."""
    found = []
    if before.token != now.token:
        found.append(f"id {before.token} was recorded, {now.token} came now")
    for index, name in enumerate(_NAMES):
        old, new = (each.digest[4 * index : 4 * index + 4] for each in (before, now))
        if old != new:
            found.append(f"{name} {_shown(old)} was recorded, {_shown(new)} came now")
    return "; ".join(found)


def _shown(bits: bytes) -> str:
    (value,) = struct.unpack("<f", bits)
    return f"{value:.9g} (0x{int.from_bytes(bits, 'little'):08x})"
