"""What an engine tells its journal of the worker groups; see `mtactors.journal`.

Knows nothing of what is in plans and results.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from pathlib import Path

from mtactors.config import EngineConfig
from mtactors.errors import ConfigError, JournalError
from mtactors.front.worker_group import GroupReady, configuration
from mtactors.journal.build import build_name
from mtactors.journal.records import GroupFacts
from mtactors.journal.writer import Journal
from mtactors.wire.messages import StepPlan, StepResult


class GroupJournal:
    """A journal, with what stays the same from group to group."""

    def __init__(self, journal: Journal, config: EngineConfig) -> None:
        self._journal = journal
        self._config = config
        self._run = secrets.token_hex(4)

    def plan(self, plan: StepPlan, frame: bytes) -> None:
        """Record a plan that is about to be sent as `frame`."""
        self._journal.plan(plan, frame)

    def result(self, result: StepResult) -> None:
        """Record the result of the oldest plan that has none."""
        self._journal.result(result)

    def close(self) -> None:
        """Record nothing more. May be repeated."""
        self._journal.close()

    def begin(self, group: GroupReady) -> None:
        """Record that a group begins."""
        if not self._journal.stopped:
            self._journal.begin(self._describe(group))

    def _describe(self, group: GroupReady) -> GroupFacts:
        first, model = group.ready[0], self._config.model
        configure = replace(
            configuration(self._config, group.epoch, 0, Path()),
            model_dir=str(model.directory.resolve()),
            tokenizer_dir=str(model.tokenizer_directory.resolve()),
        )
        return GroupFacts(
            run=self._run,
            epoch=group.epoch,
            created=time.time(),
            build=build_name(),
            prompts=self._config.journal.prompts,
            configure=configure,
            kernels=tuple(ready.kernels for ready in group.ready),
            devices=tuple(ready.device_name for ready in group.ready),
            num_blocks=first.num_blocks,
            kv_bytes=first.kv_bytes,
        )


def open_journal(config: EngineConfig) -> GroupJournal | None:
    """Open the journal that a configuration asks for, if it does.

    Raises:
        ConfigError: it cannot be written.
    """
    wanted = config.journal
    if wanted.directory is None:
        return None
    try:
        journal = Journal(wanted.directory, wanted.max_bytes, prompts=wanted.prompts)
    except JournalError as error:
        raise ConfigError("journal", str(error)) from error
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError("journal", f"{wanted.directory} cannot be written: {reason}") from error
    return GroupJournal(journal, config)
