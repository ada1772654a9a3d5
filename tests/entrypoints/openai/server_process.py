"""A server over fake workers as a process of its own; imports little, as the command does.

`command` starts it; it says on stderr where it listens.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from mtactors.entrypoints.openai.server import PhaseCallback, run_server
from mtactors.entrypoints.openai.service import ServerOptions
from mtactors.entrypoints.serve import bind
from mtactors.front.engine import Engine
from mtactors.front.supervisor import Supervisor
from tests.entrypoints.openai.engines import chat_tokenizer
from tests.fake_worker import Fault, Script, in_processes
from tests.front.engine_configs import small_config
from tests.source_tree import ROOT

# Importing mtactors drops the source tree from the path: it is put back for tests.*.
_START = """
import sys
import mtactors
sys.path.append(sys.argv[1])
from tests.entrypoints.openai.server_process import serve
serve(*sys.argv[2:])
"""


def command(
    script: dict[str, Any], options: dict[str, Any], config: dict[str, Any] | None = None
) -> list[str]:
    """Return the command line of a server.

    Args:
        script: fields of the workers' `Script`.
        options: fields of `ServerOptions`.
        config: arguments of `small_config`; default: no worker is replaced.
    """
    given = (script, options, config or {"workers": {"max_restarts": 0}})
    return [sys.executable, "-c", _START, str(ROOT), *map(json.dumps, given)]


def serve(script_text: str, options_text: str, config_text: str) -> None:
    """Serve until a signal."""
    logging.basicConfig(level=logging.INFO)
    values = json.loads(script_text)
    values["faults"] = tuple(Fault(**fault) for fault in values.get("faults", ()))
    listener = bind("127.0.0.1", 0)
    print(f"listening on {listener.getsockname()[1]}", file=sys.stderr, flush=True)

    async def launch(on_phase: PhaseCallback) -> Engine:
        config = small_config(**json.loads(config_text))
        launcher = in_processes(Script(**values))
        supervisor = Supervisor(config, on_phase=on_phase, launcher=launcher)
        engine = Engine(config, chat_tokenizer(), supervisor=supervisor)
        await engine.start()
        return engine

    def tell(phase: str, seconds: float) -> None:
        if phase == "serving":
            port = listener.getsockname()[1]
            print(f"serving http://127.0.0.1:{port}/v1", file=sys.stderr, flush=True)

    options = ServerOptions(**{"served_names": ("fake",), **json.loads(options_text)})
    run_server(listener, options, launch, tell)
