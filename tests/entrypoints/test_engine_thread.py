"""The end of an engine's thread: whoever comes late gets an error or nothing, never waits."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mtactors.engine_args import EngineArgs
from mtactors.entrypoints import engine_thread
from mtactors.entrypoints.engine_thread import EngineThread
from mtactors.errors import ConfigError, EngineDeadError


class QuietEngine:
    """Stands where the engine does; only its end is of interest here."""

    async def stop(self) -> None:
        """Take a moment, so that others can come late."""
        await asyncio.sleep(0.02)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EngineThread:
    async def launch(*args: object, **options: object) -> QuietEngine:
        return QuietEngine()

    monkeypatch.setattr(engine_thread, "launch", launch)
    return EngineThread(EngineArgs(model="none"))


class LateShutdown(EngineThread):
    """Its thread still lives when its loop is closed and `shutdown` is called."""

    def _run(self) -> None:
        super()._run()
        time.sleep(0.2)

    def shutdown(self) -> None:
        """Come after the loop is gone."""
        while not self._loop.is_closed():
            time.sleep(0.001)
        assert self.alive
        super().shutdown()


def test_a_failed_start_is_told_when_the_loop_is_gone_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def launch(*args: object, **options: object) -> None:
        raise ConfigError("model", "no such model")

    monkeypatch.setattr(engine_thread, "launch", launch)
    with pytest.raises(ConfigError, match="no such model"):
        LateShutdown(EngineArgs(model="none"))


def test_shutdown_from_many_threads_at_once(engine: EngineThread) -> None:
    failures: list[BaseException] = []

    def stop() -> None:
        try:
            for _ in range(200):
                engine.shutdown()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures and not engine.alive


def test_calls_that_meet_the_end_do_not_wait_for_ever(engine: EngineThread) -> None:
    outcomes: list[str] = []

    def call() -> None:
        try:
            while True:
                engine.call(lambda: None)
        except EngineDeadError as error:
            outcomes.append(str(error))

    async def forever() -> None:
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            engine.wait(forever())
        except EngineDeadError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=target, daemon=True) for target in (call, call, wait)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    engine.shutdown()
    for thread in threads:
        thread.join(10)
    assert len(outcomes) == 3, "a caller still waits for an engine that is gone"
    with pytest.raises(EngineDeadError, match="has been shut down"):
        engine.call(lambda: None)
