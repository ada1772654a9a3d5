"""A device that computes wrongly does not become ready."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mtactors import kernels
from mtactors.errors import WorkerStartError
from mtactors.wire.channel import WorkerChannel
from mtactors.wire.messages import Hello
from mtactors.worker import startup
from mtactors.worker.main import Worker
from tests.kernels.test_golden import Broken, last_column
from tests.worker.fronts import HandFront
from tests.worker.plans import configure


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention whose last dimension is off."""
    ops = Broken("paged_attention", last_column)
    monkeypatch.setattr(kernels, "load", lambda device, name="auto": ops)


@pytest.mark.usefixtures("broken")
def test_the_wrong_operation_and_the_remedy_are_named(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(str(tiny_model), str(tmp_path))
    with pytest.raises(WorkerStartError) as caught:
        startup.prepare(config, lambda phase, seconds: None)
    said = str(caught.value)
    assert "computes wrongly: paged_attention is off by 0.2" in said
    assert "mtactors doctor --device cpu" in said
    assert "\n" not in said


@pytest.mark.usefixtures("broken")
def test_the_check_can_be_left_out(tiny_model: Path, tmp_path: Path) -> None:
    phases: list[str] = []
    config = replace(configure(str(tiny_model), str(tmp_path)), golden_check=False)
    startup.prepare(config, lambda phase, seconds: phases.append(phase))
    assert phases == ["load", "kv"]


@pytest.mark.usefixtures("broken")
async def test_the_front_hears_of_it_as_a_fault(tiny_model: Path, tmp_path: Path) -> None:
    async with HandFront(tmp_path) as front:

        def live() -> None:
            channel = WorkerChannel(front.channel.address, front.epoch, 0)
            worker = Worker(channel, front.epoch, 0)
            try:
                worker.run()
            except WorkerStartError as error:
                worker.report_failure(error)
            channel.close()

        task = asyncio.create_task(asyncio.to_thread(live))
        await front.receive(Hello)
        front.send(configure(str(tiny_model), str(tmp_path)))
        failed = await front.failure()
        assert (failed.kind, failed.seq) == ("fault", 0)
        assert "computes wrongly: paged_attention" in failed.message
        await task
