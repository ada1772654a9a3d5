"""mtactors, driven as `LLM` drives it: on the engine's own loop, every output read."""

from __future__ import annotations

import asyncio
import itertools
import time

import mtactors
from benchmarks.peers.protocol import Options, Recording, Workload
from mtactors import EngineArgs, SamplingParams
from mtactors.entrypoints.engine_thread import EngineThread


class Engine:
    """mtactors."""

    def start(self, options: Options) -> dict[str, object]:
        """Start front and worker."""
        self._numbers = itertools.count()
        args = EngineArgs(
            model=options.model,
            dtype=options.dtype,
            device="cpu",
            cpu_threads=options.threads,
            kv_cache_memory_bytes=options.kv_bytes,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_streams,
            disable_log_stats=True,
        )
        phases: dict[str, float] = {}
        self._thread = EngineThread(args, lambda phase, seconds: phases.update({phase: seconds}))
        group = self._thread.engine.group
        kernels = group.ready[0].kernels if group else "unknown"
        return {
            "version": mtactors.__version__,
            "kernels": kernels,
            "isa": kernels.removeprefix("cpu-"),
            "phases": phases,
        }

    def generate(self, workload: Workload) -> Recording:
        """Run a workload."""
        return self._thread.wait(self._run(workload))

    def stop(self) -> None:
        """Stop front and worker."""
        self._thread.shutdown()

    async def _run(self, workload: Workload) -> Recording:
        recording = Recording(events=[[] for _ in workload.prompts])
        begun = time.perf_counter()
        streams = [
            self._thread.engine.submit(
                f"compare-{next(self._numbers)}",
                prompt,
                SamplingParams(temperature=0, max_tokens=count, ignore_eos=True),
            )
            for prompt, count in zip(workload.prompts, workload.max_tokens, strict=True)
        ]

        async def read(index: int) -> None:
            done = 0
            async for output in streams[index]:
                ids = output.outputs[0].token_ids
                if len(ids) > done:
                    recording.events[index].append((time.perf_counter() - begun, len(ids) - done))
                    done = len(ids)
            if index == 0:
                recording.ids = output.outputs[0].token_ids

        await asyncio.gather(*(read(index) for index in range(len(streams))))
        return recording


ADAPTER = Engine
