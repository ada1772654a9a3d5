"""A model that runs on the device kernels alone, emulated on the CPU: the reference's tokens.

In float32 and float16 each family's attention, rope and norm goes through the kernels; which were
called is counted, and plain torch is kept from helping. Matrix products are torch's on every
device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtactors.entrypoints.llm import LLM
from mtactors.kernels import device
from mtactors.kernels.device import DeviceOperations
from mtactors.kernels.reference import Reference
from mtactors.sampling_params import SamplingParams
from mtactors.wire.messages import SamplerSpec, StepResult
from mtactors.worker.runner import Runner
from tests.kernels.musa.emulated import Emulator
from tests.tiny_models import CONFIGS, make_tiny_model
from tests.worker.plans import GREEDY, Plans, known_row, new_row, sampler

pytestmark = pytest.mark.needs_torch

MakeRunner = Callable[..., Runner]
SHORT = [5, 9, 200, 17, 33]
LONG = [(7 * i * i + 11) % 310 + 3 for i in range(50)]
#: All that bends a row's distribution at once.
DRAWN = sampler(
    temperature=0.9,
    top_k=40,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    seed=(7 << 40) + 5,
    bias_ids=[10, 20],
    bias_values=[1.5, -2.0],
)


class Counting:
    """A backend that counts the calls of its operations."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        if name in self._backend.operations:
            self.calls[name] += 1
        return getattr(self._backend, name)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """Count what libraries opened from now on are called for."""
    made: list[Counting] = []

    def open_counting(*args: Any, **kwargs: Any) -> DeviceOperations:
        ops = original(*args, **kwargs)
        made.append(Counting(ops.backend))
        ops.backend = made[-1]  # type: ignore[assignment]
        return ops

    original = device.open_library
    monkeypatch.setattr(device, "open_library", open_counting)
    return made


@pytest.fixture
def no_reference(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make every operation of plain torch fail from now on."""

    def forbid() -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("plain torch was asked")

        for name in device.OPERATIONS:
            monkeypatch.setattr(Reference, name, refuse)

    return forbid


def run(runner: Runner, spec: SamplerSpec = GREEDY) -> list[StepResult]:
    """Two rows: one from the start, one in chunks beside it, later from a copied block."""
    plans = Plans()
    steps = [
        plans.next(new_row(0, SHORT, [1], spec=spec)),
        plans.next(known_row(0), new_row(1, LONG, [2, 3, 4, 5], chunk=20, spec=spec)),
        plans.next(known_row(0), known_row(1, 30)),
        *(plans.next(known_row(0), known_row(1)) for _ in range(5)),
        plans.next(
            known_row(0),
            new_row(2, LONG, [2, 6, 7, 8], computed=20, spec=spec),
            ended=(1,),
            copies=((3, 6, 4),),
        ),
        *(plans.next(known_row(0), known_row(2)) for _ in range(3)),
    ]
    results = [runner.run(plan, 0.0) for plan in steps]
    return [result for result in results if result is not None]


def ids(results: list[StepResult]) -> list[list[int]]:
    """What each step answered."""
    return [result.ids for result in results]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_operation_is_the_librarys(
    make_runner: MakeRunner,
    counting: list[Counting],
    no_reference: Callable[[], None],
    dtype: str,
) -> None:
    expected = run(make_runner(dtype=dtype))
    runner = make_runner(dtype=dtype, kernels="emulated-musa")
    (library,) = counting
    library.calls.clear()  # the check before a worker is ready
    no_reference()
    assert ids(run(runner)) == ids(expected)
    steps, layers = len(expected), 2
    # Asked once more where there is not enough scratch yet.
    assert 0 <= library.calls.pop("attention") - steps * layers <= 2
    assert 0 <= library.calls.pop("sample") - steps <= 2
    assert library.calls == {
        "embedding": steps,
        "rms_norm": steps * (1 + 2 * layers),
        "rope": steps * layers,
        "kv_write": steps * layers,
        "silu_and_mul": steps * layers,
        "copy_blocks": 1,
    }


@pytest.mark.parametrize("dtype, seed, warp", [("float32", 0, 32), ("float16", 3, 128)])
@pytest.mark.parametrize("family", list(CONFIGS))
def test_greedy_tokens_of_each_family(
    make_runner: MakeRunner, tmp_path: Path, family: str, dtype: str, seed: int, warp: int
) -> None:
    model = make_tiny_model(tmp_path / family, family)
    expected = run(make_runner(model, dtype=dtype))
    runner = make_runner(model, dtype=dtype, kernels="emulated-musa")
    library = device.installed_library("emulated-musa")
    assert library is not None
    with Emulator(library).running(seed, warp, guard=True):
        assert ids(run(runner)) == ids(expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_seeded_tokens_and_logprobs(
    make_runner: MakeRunner, counting: list[Counting], dtype: str
) -> None:
    spec = replace(DRAWN, logprobs=3)
    by_cpu = run(make_runner(dtype=dtype, kernels="cpu"), spec)
    found = run(make_runner(dtype=dtype, kernels="emulated-musa"), spec)
    assert ids(found) == ids(by_cpu)
    assert counting[0].calls["logprobs"] >= len(found)
    assert len({token for result in found for token in result.ids}) > 8  # they are drawn
    near = 1e-4 if dtype == "float32" else 2e-2
    for ours, theirs in zip(found, by_cpu, strict=True):
        assert [one.row for one in ours.logprobs] == [one.row for one in theirs.logprobs]
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=near)
            assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=near)


@pytest.mark.parametrize("ranks, dtype", [(1, "float16"), (2, "float32")])
def test_an_engine_serves_with_the_emulated_kernels(tmp_path: Path, ranks: int, dtype: str) -> None:
    model = str(make_tiny_model(tmp_path / "llama"))
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    drawn = SamplingParams(temperature=1.0, seed=11, max_tokens=8, ignore_eos=True, logprobs=1)
    prompts = ["What is the capital", "0 1 2 3"]
    answers = []
    for name in ("reference", "emulated-musa"):
        with LLM(
            model,
            device="cpu",
            dtype=dtype,
            kernels=name,
            tensor_parallel_size=ranks,
            disable_log_stats=True,
        ) as llm:
            outputs = [llm.generate(prompts, params, use_tqdm=False) for params in (greedy, drawn)]
        answers.append([out.outputs[0].token_ids for some in outputs for out in some])
    assert answers[0] == answers[1]
