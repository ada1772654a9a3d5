"""Digests: the bits by which two executions of a step are compared."""

from __future__ import annotations

import struct

import pytest
import torch

from mtactors.kernels import Operations, info, load
from mtactors.kernels.native import CpuOperations
from mtactors.wire.messages import DIGEST_BYTES, StepResult
from mtactors.worker.runner import Runner
from mtactors.worker.sampler import Sampler
from tests.worker.conftest import RunnerFactory
from tests.worker.plans import Plans, known_row, new_row

BUILDS = [*(f"cpu-{isa}" for isa in info().runnable), "reference"]


def _operations(name: str) -> Operations:
    return load("cpu", name) if name == "reference" else CpuOperations(name.removeprefix("cpu-"))


# Widths below, at and beyond the pieces in which the kernels add.
@pytest.mark.parametrize("sampleable", [1, 63, 300, 512, 1461])
@pytest.mark.parametrize("build", BUILDS)
def test_they_hold_logit_maximum_and_logsumexp(build: str, sampleable: int) -> None:
    logits = torch.randn(3, sampleable + 20) * 5
    logits[1] -= 40.0
    logits[:, sampleable:] = 99.0  # no id stands there
    ids = torch.tensor([0, sampleable - 1, sampleable // 2], dtype=torch.int32)
    sampler = Sampler(_operations(build), torch.device("cpu"), 8, sampleable + 20, sampleable)
    data = sampler.digests(logits, ids)
    assert len(data) == 3 * DIGEST_BYTES
    scores = logits[:, :sampleable]
    for row, (logit, largest, total) in enumerate(struct.iter_unpack("<3f", data)):
        assert logit == float(logits[row, ids[row]])
        assert largest == float(scores[row].max())
        # A few units in the last place of values up to 60.
        assert total == pytest.approx(float(scores[row].double().logsumexp(0)), abs=2e-5)


def _digests(result: StepResult | None) -> list[bytes]:
    assert result is not None
    data = result.digests
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def _alone(runner: Runner, tokens: list[int]) -> list[bytes]:
    """Return the digests of a row that is computed alone, prompt and three more tokens."""
    plans = Plans()
    found = _digests(runner.run(plans.next(new_row(0, tokens, [0, 1])), 0.0))
    for _ in range(3):
        found += _digests(runner.run(plans.next(known_row(0)), 0.0))
    return found


def test_a_rows_digests_do_not_depend_on_its_company(make_runner: RunnerFactory) -> None:
    options = {"digests": True, "kernels": "auto", "dtype": "bfloat16"}
    prompts = [[5, 6, 7], [9] * 20, [1, 2]]
    alone = [_alone(make_runner(**options), prompt) for prompt in prompts]
    runner, plans = make_runner(**options), Plans()
    # The second prompt in two chunks, the third a step later than the others.
    first = new_row(0, prompts[0], [0, 1])
    second = new_row(1, prompts[1], [2, 3], chunk=12)
    third = new_row(2, prompts[2], [4, 5])
    one = _digests(runner.run(plans.next(first, second), 0.0))
    assert one == [alone[0][0]]  # only what samples has one
    two = _digests(runner.run(plans.next(third, known_row(0), known_row(1, 8)), 0.0))
    assert two == [alone[2][0], alone[0][1], alone[1][0]]
    three = _digests(runner.run(plans.next(known_row(1), known_row(2), known_row(0)), 0.0))
    assert three == [alone[1][1], alone[2][1], alone[0][2]]


def test_there_are_none_unless_they_are_asked_for(make_runner: RunnerFactory) -> None:
    assert _alone(make_runner(), [5, 6, 7]) == []
