"""`mtactors replay`: a recorded run is computed again, and the first difference is named.

Needs torch only in the workers that it starts.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import datetime
from pathlib import Path

import click

from mtactors.entrypoints.flags import CONTEXT_SETTINGS
from mtactors.errors import JournalError
from mtactors.journal.build import build_name
from mtactors.journal.reader import Run, read_runs
from mtactors.replay.execution import Report, replay

_EVERY = 1.0  # seconds between two looks at the progress


@click.command(name="replay", context_settings=CONTEXT_SETTINGS)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--run", "name", default=None, help="Which run; default: the one begun last.")
@click.option(
    "--segments",
    type=click.IntRange(1),
    default=None,
    help="So many segments, the newest; default: all.",
)
@click.option(
    "--model", type=click.Path(path_type=Path), default=None, help="Where the model is now."
)
@click.option("--any-build", is_flag=True, help="Compare although other code wrote the journal.")
def replay_command(
    directory: Path, name: str | None, segments: int | None, model: Path | None, any_build: bool
) -> int:
    """Execute the journal in DIRECTORY again and compare ids and digests.

    The exit code is 0 when they are equal, 1 when they are not, 2 when they cannot be compared.
    """
    runs = read_runs(directory)
    run = _choose(directory, runs, name)
    build = build_name()
    if run.first.build != build and not any_build:
        raise JournalError(
            f"another build wrote the journal ({run.first.build}), this one is {build}: bits are "
            "comparable within one build; --any-build compares all the same"
        )
    began = time.monotonic()
    progress = _Progress()
    report = asyncio.run(replay(run, newest=segments or 0, model=model, on_step=progress.show))
    progress.clear()
    what = (
        f"run {run.name}: {report.steps} steps with {report.tokens} tokens, of {report.epochs} "
        f"worker group(s), in {time.monotonic() - began:.1f} s"
    )
    if report.problem:
        click.echo(f"{what} are equal; then it differs:\n{report.problem}")
        return 1
    more = f"; {report.unanswered} more without a recorded answer ran" if report.unanswered else ""
    click.echo(f"{what}: ids and digests are equal{more}")
    return 0


def _choose(directory: Path, runs: list[Run], name: str | None) -> Run:
    if name is None:
        if len(runs) > 1:
            click.echo(f"{directory} holds {len(runs)} runs, --run takes one:", err=True)
            for run in runs:
                begun = datetime.fromtimestamp(run.first.created).isoformat(" ", "seconds")
                count = len(run.paths)
                click.echo(f"  {run.name}  from {begun}, {count} segment(s)", err=True)
        return runs[-1]
    for run in runs:
        if run.name == name:
            return run
    known = ", ".join(run.name for run in runs)
    raise JournalError(f"{directory} holds no run {name!r}; there are: {known}")


class _Progress:
    """A line on the terminal that tells how far it is; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._shown = time.monotonic() if sys.stderr.isatty() else float("inf")

    def show(self, report: Report) -> None:
        """Show where it is, now and then."""
        if time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            click.echo(f"\r{report.steps} steps, {report.tokens} tokens", nl=False, err=True)

    def clear(self) -> None:
        """Give the line back."""
        if sys.stderr.isatty():
            click.echo("\r\033[K", nl=False, err=True)
