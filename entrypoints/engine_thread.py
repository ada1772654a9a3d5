"""An engine in a thread of its own with its own uvloop, and a bridge for outputs.

Users' programs block their loop (`input()` inside a coroutine) and build the engine before
`asyncio.run`; the step loop must not notice. Knows nothing of prompts or terminals.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from mtactors.engine_args import EngineArgs
from mtactors.errors import EngineDeadError, MtactorsError
from mtactors.front.engine import Engine
from mtactors.front.launch import launch
from mtactors.outputs import RequestOutput
from mtactors.sampling_params import SamplingParams

T = TypeVar("T")
PhaseCallback = Callable[[str, float], None]

_STOP_MARGIN = 10.0  # seconds beyond the engine's own bounded stop before giving up on the thread


class EngineThread:
    """Owns the thread, the loop and the engine in it.

    Args:
        args: what to run.
        on_phase: called in the engine's thread with (phase, seconds) as start-up goes on.

    Raises:
        MtactorsError: the engine could not start; nothing is left behind.
    """

    def __init__(self, args: EngineArgs, on_phase: PhaseCallback | None = None) -> None:
        self._args = args
        self._on_phase = on_phase
        self._loop = uvloop.new_event_loop()
        self._started: concurrent.futures.Future[Engine] = concurrent.futures.Future()
        self._stopping = asyncio.Event()
        self._posting = threading.Lock()  # held to post to the loop, and to end posting
        self._ended = False  # nothing posted from now on would run
        self._thread = threading.Thread(target=self._run, name="mtactors-engine", daemon=True)
        self._thread.start()
        self._atexit = weakref.WeakMethod(self.shutdown)
        atexit.register(_call_weakly, self._atexit)
        try:
            self.engine = self._started.result()
        except BaseException:
            self.shutdown()
            raise

    @property
    def alive(self) -> bool:
        """Whether the engine's loop still runs."""
        return self._thread.is_alive()

    def call(self, function: Callable[[], T]) -> T:
        """Run a quick function on the engine's loop and return what it returns."""

        async def run() -> T:
            return function()

        return self.wait(run())

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engine's loop and wait for it; Ctrl-C cancels it there."""
        future = self.schedule(coroutine)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise EngineDeadError("the engine was shut down meanwhile") from error
        except BaseException:
            future.cancel()
            raise

    def schedule(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the engine's loop."""
        with self._posting:
            if not self._ended:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise EngineDeadError("the engine has been shut down")

    def stream(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams, **extra: Any
    ) -> AsyncIterator[RequestOutput]:
        """Yield cumulative outputs in the caller's loop; closing the iterator aborts."""
        return _bridge(self, request_id, prompt_token_ids, params, extra)

    def shutdown(self) -> None:
        """Stop engine, workers and thread; idempotent."""
        atexit.unregister(_call_weakly)
        with self._posting:
            if not self._ended:
                self._loop.call_soon_threadsafe(self._stopping.set)
        margin = self._args.shutdown_timeout + _STOP_MARGIN
        if threading.current_thread() is not self._thread:
            self._thread.join(margin)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            with self._posting:
                self._ended = True
            self._loop.run_until_complete(_cancel_others())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _main(self) -> None:
        starting = asyncio.ensure_future(launch(self._args, on_phase=self._on_phase))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        try:
            engine = await starting
        except asyncio.CancelledError:
            self._started.set_exception(EngineDeadError("stopped while starting"))
            return
        except BaseException as error:
            self._started.set_exception(error)
            return
        finally:
            stopping.cancel()
        self._started.set_result(engine)
        try:
            await self._stopping.wait()
        finally:
            await engine.stop()


async def _cancel_others() -> None:
    """End what was posted before posting ended, so that no caller waits for ever."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _bridge(
    thread: EngineThread,
    request_id: str,
    prompt_token_ids: list[int],
    params: SamplingParams,
    extra: dict[str, Any],
) -> AsyncIterator[RequestOutput]:
    """Carry one request's outputs from the engine's loop to the caller's, merging unread ones."""
    loop = asyncio.get_running_loop()
    latest: list[RequestOutput] = []
    fresh = asyncio.Event()

    def publish(output: RequestOutput) -> None:
        latest[:] = [output]
        fresh.set()

    async def pump() -> None:
        stream = thread.engine.submit(request_id, prompt_token_ids, params, **extra)
        try:
            async for output in stream:
                loop.call_soon_threadsafe(publish, output)
        finally:
            await stream.aclose()

    pumping = thread.schedule(pump())
    done = asyncio.wrap_future(pumping)
    done.add_done_callback(lambda _: fresh.set())
    try:
        while True:
            await fresh.wait()
            fresh.clear()
            if latest:
                yield latest.pop()
            elif done.done():
                _raise_outcome(done)
                return
            if done.done():
                fresh.set()
    finally:
        pumping.cancel()


def _raise_outcome(done: asyncio.Future[None]) -> None:
    if done.cancelled():
        raise EngineDeadError("the engine was shut down with the request open")
    error = done.exception()
    if isinstance(error, MtactorsError):
        raise error
    if error is not None:
        raise EngineDeadError(f"the engine failed: {error}") from error


def _call_weakly(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    function = method()
    if function is not None:
        function()
