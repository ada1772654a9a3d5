"""GET /health, /ready, /version and /debug/ledger: how the server is, for machines and people."""

from __future__ import annotations

import dataclasses
import os
from http import HTTPStatus
from typing import Any

import psutil
from starlette.requests import Request
from starlette.responses import Response

import mtactors
from mtactors.entrypoints.openai.connection import to_json
from mtactors.entrypoints.openai.local import require_local
from mtactors.entrypoints.openai.service import Service
from mtactors.front.engine import Engine

AUTHORIZED = "mtactors.authorized"  # in the scope: the request has a key, or needs none


class HealthRoutes:
    """Tells how the service is."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, request: Request) -> Response:
        """200 while requests are taken or will be again; else 503, loading included."""
        service = self._service
        well = service.status in ("serving", "restarting")
        state: dict[str, Any] = {"status": service.status}
        if service.status == "loading":
            state |= {"seconds": round(service.seconds, 3), "done": _rounded(service.phases)}
        return _answer(state, well)

    async def ready(self, request: Request) -> Response:
        """200 while workers are up. Only who has the key is told why they are not."""
        service = self._service
        ready = service.status == "serving"
        state: dict[str, Any] = {"ready": ready}
        if not ready and request.scope.get(AUTHORIZED, False):
            state |= {"reason": service.status, "done": _rounded(service.phases)}
            if service.failure is not None:
                state["error"] = str(service.failure)
            elif service.engine is not None and service.engine.detail:
                state["detail"] = service.engine.detail
        return _answer(state, ready)

    async def version(self, request: Request) -> Response:
        """Say which mtactors this is."""
        return _answer({"version": mtactors.__version__}, True)

    async def ledger(self, request: Request) -> Response:
        """Say what the engine holds; for this machine alone unless keys are in use.

        The blocks of the KV cache, the choices, the plans in flight, and the processes. Also of
        an engine that drains, or is beyond repair; 503 as long as there is none.
        """
        require_local(self._service, request)
        service = self._service
        engine = service.engine or service.ready_engine()
        return _answer({**_state(service, engine), **_books(engine)}, True)


def _state(service: Service, engine: Engine) -> dict[str, Any]:
    failure = service.failure or (engine.failed.result() if engine.failed.done() else None)
    return {
        "status": service.status,
        "detail": str(failure) if failure is not None else engine.detail,
        "seconds": round(service.seconds, 3),
    }


def _books(engine: Engine) -> dict[str, Any]:
    stats = engine.stats()
    books = dataclasses.asdict(stats.kv)
    for name in ("running", "waiting", "queued", "suspects", "in_flight", "epoch", "restarts"):
        books[name] = getattr(stats, name)
    front = {"actor": "front", **_process(os.getpid())}
    workers = [
        {"actor": f"rank {worker.rank}", **_process(worker.pid)}
        | {"step": worker.step, "step_seconds": worker.seconds}
        for worker in stats.workers
    ]
    return {**books, "actors": [front, *workers]}


def _process(pid: int) -> dict[str, Any]:
    """Say what a process takes: resident bytes, seconds of CPU; null when it has ended."""
    facts: dict[str, Any] = {"pid": pid, "rss": None, "cpu_seconds": None}
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            facts["rss"] = process.memory_info().rss
            facts["cpu_seconds"] = round(times.user + times.system, 2)
    except (psutil.Error, ValueError):
        pass  # it ended a moment ago, or was never a process of its own
    return facts


def _answer(state: dict[str, Any], well: bool) -> Response:
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    headers = {"Cache-Control": "no-store"} | ({} if well else {"Retry-After": "5"})
    return Response(to_json(state), status, headers, "application/json")


def _rounded(phases: dict[str, float]) -> dict[str, float]:
    return {phase: round(seconds, 3) for phase, seconds in phases.items()}
