"""The workers that replay: a group like the recorded one, asked one plan at a time.

Knows nothing of journals' files or of what is compared.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mtactors.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
    WorkerGroupConfig,
)
from mtactors.errors import EngineDeadError, JournalError
from mtactors.families import load_spec
from mtactors.front.supervisor import Mail, Supervisor
from mtactors.front.worker_group import GroupDead
from mtactors.journal.records import GroupFacts
from mtactors.wire.codec import encode
from mtactors.wire.messages import StepPlan, StepResult

_PATIENCE = 600.0  # seconds for a step


class ReplayGroup:
    """One worker group, `async with`.

    Args:
        facts: of the recorded group.
        num_blocks: blocks that its KV cache must hold.
        model: where the model is now; default: where it was.

    Raises:
        ModelError: the model cannot be used as it was.
    """

    def __init__(self, facts: GroupFacts, num_blocks: int, model: Path | None = None) -> None:
        self._config = replay_config(facts, num_blocks, model)
        self._facts = facts
        self._mail: asyncio.Queue[Mail] = asyncio.Queue()

    async def __aenter__(self) -> ReplayGroup:
        """Start the workers.

        Raises:
            JournalError: they compute with other kernels.
            ModelError, WorkerStartError: they do not come up.
        """
        self._supervisor = Supervisor(self._config)
        self._supervisor.deliver = self._mail.put_nowait
        ready = await self._supervisor.start()
        kernels = tuple(each.kernels for each in ready.ready)
        if kernels != self._facts.kernels:
            await self._supervisor.stop("other kernels")
            raise JournalError(
                f"the journal was written with kernels {_listed(self._facts.kernels)}, here they "
                f"are {_listed(kernels)}: bits are comparable on the same instruction set alone"
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the workers."""
        await self._supervisor.stop("the replay is over")

    async def run(self, plan: StepPlan) -> StepResult:
        """Execute a plan.

        Raises:
            EngineDeadError: the workers died of it, or hang.
        """
        self._supervisor.send(encode(plan))
        try:
            mail = await asyncio.wait_for(self._mail.get(), _PATIENCE)
        except asyncio.TimeoutError:
            raise EngineDeadError(f"no answer came within {_PATIENCE:.0f} s") from None
        if isinstance(mail, GroupDead):
            raise EngineDeadError(mail.reason)
        return mail


def replay_config(facts: GroupFacts, num_blocks: int, model: Path | None) -> EngineConfig:
    """Return the configuration of a group like the recorded one, with room for private blocks."""
    told = facts.configure
    directory = model or Path(told.model_dir)
    same_place = model is not None or told.tokenizer_dir == told.model_dir
    block_bytes = facts.kv_bytes // facts.num_blocks
    return EngineConfig(
        model=ModelConfig(
            model=str(directory),
            directory=directory,
            tokenizer_directory=directory if same_place else Path(told.tokenizer_dir),
            served_names=(str(directory),),
            spec=load_spec(directory),
            dtype=told.dtype,
            max_model_len=told.max_model_len,
            reshard=told.reshard,
        ),
        cache=CacheConfig(
            block_size=told.block_size,
            utilization=told.gpu_memory_utilization,
            memory_bytes=max(num_blocks * block_bytes, facts.kv_bytes),
        ),
        scheduler=SchedulerConfig(
            max_num_seqs=told.max_num_seqs, max_num_batched_tokens=told.max_num_batched_tokens
        ),
        workers=WorkerGroupConfig(
            device=told.device,
            tensor_parallel_size=told.world_size,
            cpu_threads=told.cpu_threads,
            kernels=told.kernels,
            digests=True,
        ),
    )


def _listed(kernels: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(kernels))
