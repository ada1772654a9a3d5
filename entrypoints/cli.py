"""The `mtactors` command: which sub-commands there are and where each lives.

Sub-commands are imported when they run, so that `mtactors pull` does not pay for a server.
Commands that need torch run as processes of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

import click

import mtactors
from mtactors.entrypoints.flags import CONTEXT_SETTINGS, run
from mtactors.envs import keep_extensions_out

_COMMANDS = {
    "chat": ("mtactors.entrypoints.chat:chat", "Chat with a model in the terminal."),
    "serve": ("mtactors.entrypoints.serve:serve", "Serve a model over OpenAI's API."),
    "top": ("mtactors.entrypoints.top:top", "Show what a running server does."),
    "restart-workers": (
        "mtactors.entrypoints.restart_workers:restart_workers",
        "Replace the workers of a running server.",
    ),
    "replay": (
        "mtactors.entrypoints.replay:replay_command",
        "Compute a journal again and compare.",
    ),
    "generate": ("mtactors.entrypoints.generate:generate", "Complete prompts and exit."),
    "pull": ("mtactors.entrypoints.cli:pull", "Fetch a model into the cache."),
    "convert": ("mtactors.entrypoints.cli:convert", "Convert a checkpoint for serving."),
    "inspect": ("mtactors.entrypoints.cli:inspect", "Show what a converted directory holds."),
    "doctor": (
        "mtactors.entrypoints.cli:doctor",
        "Check whether this machine can serve, and what is wrong if not.",
    ),
    "plan": ("mtactors.entrypoints.plan:plan", "Tell what memory a model takes."),
    "bench": ("mtactors.entrypoints.cli:bench", "Run the benchmarks."),
}

# Everything, `--help` included, is for the module that is run.
_FORWARDED = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = ", ".join(_COMMANDS)
            raise click.UsageError(f"{args[0]!r} is not a command; there are: {known}") from error


@click.group(cls=_LazyGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(mtactors.__version__, prog_name="mtactors")
def cli() -> None:
    """Serve large language models on Moore Threads (MUSA) GPUs and on any CPU."""


@click.command(context_settings=CONTEXT_SETTINGS)
@click.argument("model")
@click.option("--revision", default=None, help="Branch, tag or commit on the hub.")
def pull(model: str, revision: str | None) -> None:
    """Fetch MODEL (smollm2-135m, a .gguf file or a hub name) into the cache, print where it is."""
    from mtactors.hub import resolve_model

    click.echo(resolve_model(model, revision=revision).directory)


@click.command(context_settings=_FORWARDED)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def convert(arguments: tuple[str, ...]) -> int:
    """Convert a checkpoint for serving."""
    return _run_module("mtactors.convert_weight", "convert", arguments)


@click.command(context_settings=_FORWARDED)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def inspect(arguments: tuple[str, ...]) -> int:
    """Show what a converted directory holds."""
    return _run_module("mtactors.inspect", "inspect", arguments)


@click.command(context_settings=_FORWARDED)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Run the benchmarks."""
    return _run_module("mtactors.bench", "bench", arguments)


@click.command(context_settings=_FORWARDED)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def doctor(arguments: tuple[str, ...]) -> int:
    """Check whether this machine can serve, and what is wrong if not."""
    return _run_module("mtactors.doctor", "doctor", arguments)


def _run_module(module: str, command: str, arguments: tuple[str, ...]) -> int:
    """Become `python -m module`, which may need torch; signals reach it without a detour."""
    if importlib.util.find_spec(module) is None:
        raise click.UsageError(f"{command} is not part of this version of mtactors yet")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def main() -> None:
    """Run the command line."""
    keep_extensions_out()
    run(cli)


if __name__ == "__main__":
    main()
