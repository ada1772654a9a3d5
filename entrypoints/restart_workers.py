"""`mtactors restart-workers`: a running server replaces its workers, and no request fails."""

from __future__ import annotations

import click

from mtactors.entrypoints.flags import CONTEXT_SETTINGS
from mtactors.entrypoints.running_server import RunningServer, server_options

_PATH = "/admin/restart_workers"
_TIMEOUT = 1200.0  # seconds: large weights take their time


@click.command(name="restart-workers", context_settings=CONTEXT_SETTINGS)
@server_options
def restart_workers(url: str, api_key: str | None) -> None:
    """Replace the workers of a running server; open requests go on.

    For a reset of the driver, or weights that have changed on disk.
    """
    parts = RunningServer(url, api_key).post(_PATH, _TIMEOUT)["parts"]
    listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
    click.echo(f"workers replaced in {sum(parts.values()):.2f} s: {listed}")
