"""`mtactors top`: what a running server does, looked at again and again in the terminal.

Reads GET /debug/ledger and GET /metrics; knows the engine by their numbers alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mtactors.entrypoints.flags import CONTEXT_SETTINGS
from mtactors.entrypoints.running_server import RunningServer, server_options
from mtactors.errors import ConfigError

_TIMEOUT = 10.0  # seconds: a server that is busy answers within milliseconds
_SAMPLE = re.compile(r'mtactors:(\w+)\{(?:[^}]*finished_reason="(\w+)")?[^}]*\} (\S+)')
_ENDS = ("stop", "length", "abort", "error")


@click.command(context_settings=CONTEXT_SETTINGS)
@server_options
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600.0),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look twice, one interval apart, print, and end.")
def top(url: str, api_key: str | None, interval: float, once: bool) -> None:
    """Show what a running server does: actors, requests, KV blocks, tokens per second."""
    server = RunningServer(url, api_key)
    before = look(server)
    if once:
        time.sleep(interval)
        Console(highlight=False).print(view(server.url, before, look(server)))
        return
    with Live(
        view(server.url, before, before), console=Console(highlight=False), auto_refresh=False
    ) as live:
        follow(server, before, interval, lambda seen: live.update(seen, refresh=True))


def follow(
    server: RunningServer,
    before: Moment,
    interval: float,
    show: Callable[[RenderableType], None],
) -> None:
    """Look and show until somebody interrupts it.

    Raises:
        EngineUnavailableError: the server does not answer any more.
    """
    while True:
        time.sleep(interval)
        now = look(server)
        show(view(server.url, before, now))
        before = now


@dataclass(frozen=True)
class Moment:
    """What a server said at a moment.

    Args:
        seconds: since the server's start.
        ledger: GET /debug/ledger.
        counters: the samples of GET /metrics without a label of their own.
        ends: finished requests by reason.
    """

    seconds: float
    ledger: dict[str, Any]
    counters: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)


def look(server: RunningServer) -> Moment:
    """Ask a server how it is.

    Raises:
        EngineUnavailableError: it does not answer, or wants a key, or has no engine yet.
        ConfigError: what answers is no server of ours.
    """
    ledger = server.parse(server.get("/debug/ledger", _TIMEOUT))
    if not isinstance(ledger, dict) or "actors" not in ledger:
        raise ConfigError("url", f"what answers at {server.url} is no mtactors server")
    counters: dict[str, float] = {}
    ends: dict[str, float] = {}
    for name, reason, value in _SAMPLE.findall(server.get("/metrics", _TIMEOUT).decode()):
        if reason:
            ends[reason] = float(value)
        elif "_bucket" not in name:
            counters[name] = float(value)
    return Moment(ledger["seconds"], ledger, counters, ends)


def view(url: str, before: Moment, now: Moment) -> Group:
    """Return what is shown of two moments."""
    ledger = now.ledger
    state = Text.assemble(
        (f"{url}  ", "bold"), (ledger["status"], "bold green" if _is_well(ledger) else "bold red")
    )
    state.append(f"  up {_duration(now.seconds)}  epoch {ledger['epoch']}")
    state.append(f"  restarts {ledger['restarts']}")
    if ledger["detail"]:
        state.append(f"\n{ledger['detail']}", "red")
    return Group(state, "", _actors(before, now), "", _blocks(ledger), _numbers(before, now))


def _is_well(ledger: dict[str, Any]) -> bool:
    return bool(ledger["status"] == "serving")


def _actors(before: Moment, now: Moment) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("actor", "pid", "cpu", "memory", "doing"):
        table.add_column(name, justify="left" if name in ("actor", "doing") else "right")
    earlier = {(actor["actor"], actor["pid"]): actor for actor in before.ledger["actors"]}
    seconds = now.seconds - before.seconds
    for actor in now.ledger["actors"]:
        known = earlier.get((actor["actor"], actor["pid"]))
        table.add_row(
            actor["actor"],
            str(actor["pid"]),
            _share(known, actor, seconds),
            "-" if actor["rss"] is None else f"{actor['rss'] / 2**20:,.0f} MiB",
            _doing(actor, now.ledger["in_flight"]),
        )
    return table


def _share(known: dict[str, Any] | None, actor: dict[str, Any], seconds: float) -> str:
    """Return the part of a core that an actor took."""
    if known is None or seconds <= 0 or None in (known["cpu_seconds"], actor["cpu_seconds"]):
        return "-"
    return f"{(actor['cpu_seconds'] - known['cpu_seconds']) / seconds:.0%}"


def _doing(actor: dict[str, Any], in_flight: int) -> str:
    if "step" not in actor:
        return f"{in_flight} plan{'s' * (in_flight != 1)} in flight"
    if actor["step_seconds"] is not None:
        return f"in step {actor['step']} for {actor['step_seconds'] * 1e3:,.0f} ms"
    return f"waits after step {actor['step']}" if actor["step"] else "waits for its first step"


def _blocks(ledger: dict[str, Any]) -> Table:
    total = ledger["total"]
    line = Table.grid(padding=(0, 2))
    line.add_row(
        "KV blocks",
        ProgressBar(total=max(total, 1), completed=ledger["used"], width=24),
        f"used {ledger['used']:,}  cached {ledger['cached']:,}  free {ledger['free']:,}  of "
        f"{total:,}",
    )
    return line


def _numbers(before: Moment, now: Moment) -> Table:
    ledger = now.ledger
    suspects = f"  suspects {ledger['suspects']}" if ledger["suspects"] else ""
    prompt, generated = (
        _number(_rate(before, now, f"{name}_tokens_total")) for name in ("prompt", "generation")
    )
    first, following = (
        _mean(before, now, name)
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds")
    )
    ends = "  ".join(f"{reason} {now.ends.get(reason, 0.0):.0f}" for reason in _ENDS)
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "choices",
        f"running {ledger['running']}  waiting {ledger['waiting']} "
        f"(new requests {ledger['queued']}){suspects}",
    )
    table.add_row("tokens/s", f"prompt {prompt}  generated {generated}")
    table.add_row("latency", f"first token {first}  next token {following}")
    table.add_row("ended", ends)
    return table


def _rate(before: Moment, now: Moment, name: str) -> float | None:
    seconds = now.seconds - before.seconds
    if seconds <= 0:
        return None
    return (now.counters.get(name, 0.0) - before.counters.get(name, 0.0)) / seconds


def _mean(before: Moment, now: Moment, name: str) -> str:
    """Return the mean of what was observed between two moments."""
    total, count = (
        now.counters.get(f"{name}_{part}", 0.0) - before.counters.get(f"{name}_{part}", 0.0)
        for part in ("sum", "count")
    )
    return f"{total / count * 1e3:,.1f} ms" if count > 0 else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
