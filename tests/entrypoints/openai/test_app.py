"""Health, keys, ids, models, metrics and the ledger, on the application itself and over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import mtactors
from mtactors.entrypoints.openai.app import build_app
from mtactors.entrypoints.openai.service import ServerOptions, Service
from mtactors.errors import EngineDeadError
from tests.entrypoints.openai.engines import start_engine
from tests.entrypoints.openai.servers import LoopbackServer, running_server
from tests.fake_worker import Script

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
GUARDED = ("/v1/models", "/v1/models/fake", "/version", "/metrics", "/debug/ledger", "/nowhere")


def client_of(service: Service, host: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(service), client=(host, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_a_server_that_loads_says_so() -> None:
    service = Service(ServerOptions(("fake",)))
    service.note_phase("model", 0.5)
    async with client_of(service) as http:
        health = await http.get("/health")
        assert health.status_code == 503
        assert health.headers["retry-after"]
        assert (health.json()["status"], health.json()["done"]) == ("loading", {"model": 0.5})
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "loading")
        for answer in (
            await http.post("/v1/chat/completions", json=CHAT),
            await http.post("/v1/completions", json={"prompt": "x"}),
            await http.get("/v1/models"),
            await http.get("/debug/ledger"),
        ):
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert "loading" in answer.json()["error"]["message"]
        assert (await http.get("/version")).json() == {"version": mtactors.__version__}
        assert "mtactors:build_info" in (await http.get("/metrics")).text


async def test_a_server_that_drains_takes_nothing(tmp_path: Path) -> None:
    service = Service(ServerOptions(("fake",)))
    engine = await start_engine(tmp_path)
    await service.serve(engine)
    async with client_of(service) as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/ready")).json() == {"ready": True}
        service.draining = True
        assert (await http.get("/health")).json() == {"status": "draining"}
        for path in ("/health", "/ready"):
            assert (await http.get(path)).status_code == 503
        answer = await http.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "shutting down" in answer.json()["error"]["message"]
        service.failure = EngineDeadError("worker rank 0 was killed")
        assert (await http.get("/health")).json() == {"status": "dead"}
        assert (await http.get("/ready")).json()["error"] == "worker rank 0 was killed"
        answer = await http.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503
        assert "worker rank 0 was killed" in answer.json()["error"]["message"]
    await engine.stop()
    service.close()


@pytest.mark.parametrize(
    "host, headers, status",
    [
        ("127.0.0.1", {}, 503), ("127.8.9.1", {}, 503), ("::1", {}, 503),
        ("::ffff:127.0.0.1", {}, 503), ("10.0.0.7", {}, 403), ("fe80::1%eth0", {}, 403),
        ("::ffff:10.0.0.7", {}, 403), ("testclient", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"Forwarded": "x"}, 403),
    ],
)  # fmt: skip
async def test_without_keys_only_this_machine_sees_the_ledger(
    host: str, headers: dict[str, str], status: int
) -> None:
    async with client_of(Service(ServerOptions(("fake",))), host) as http:
        answer = await http.get("/debug/ledger", headers=headers)
    assert answer.status_code == status  # 503: let in, but nothing is loaded


async def test_with_keys_the_ledger_is_for_who_has_one() -> None:
    service = Service(ServerOptions(("fake",), api_keys=("k1", "k2")))
    async with client_of(service, "10.0.0.7") as http:
        assert (await http.get("/debug/ledger")).status_code == 401
        answer = await http.get("/debug/ledger", headers={"Authorization": "Bearer k2"})
        assert answer.status_code == 503


@pytest.mark.parametrize(
    "header, let_in",
    [
        ("Bearer k1", True), ("bearer k2", True), ("Bearer  k1 ", True), ("Bearer k3", False),
        ("Bearer", False), ("Bearer ", False), ("k1", False), ("Basic k1", False), ("", False),
        ("Bearer k1k2", False), ("Bearer K1", False), ("Bearer \xff", False),
    ],
)  # fmt: skip
async def test_any_key_opens_every_route(header: str, let_in: bool) -> None:
    service = Service(ServerOptions(("fake",), api_keys=("k1", "k2")))
    async with client_of(service) as http:
        for path in GUARDED:
            answer = await http.get(path, headers=[(b"authorization", header.encode("latin-1"))])
            assert (answer.status_code != 401) == let_in, path
            if not let_in:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_health_and_the_bare_state_are_open() -> None:
    service = Service(ServerOptions(("fake",), api_keys=("k",)))
    async with client_of(service) as http:
        assert (await http.get("/health")).status_code == 503
        assert (await http.get("/ready")).json() == {"ready": False}
        ready = await http.get("/ready", headers={"Authorization": "Bearer k"})
        assert ready.json()["reason"] == "loading"
        assert (await http.post("/v1/completions", json={})).status_code == 401
    free = Service(ServerOptions(("fake",), api_keys=("k",), open_metrics=True))
    async with client_of(free) as http:
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/version")).status_code == 401


def test_the_openai_client_brings_its_key() -> None:
    with running_server(options={"api_keys": ("secret",)}) as server:
        with server.openai("secret") as api:
            assert [model.id for model in api.models.list()] == ["fake", "other"]
        with server.openai("wrong") as api, pytest.raises(openai.AuthenticationError):
            api.models.list()


def test_models_are_listed_and_shown(api: openai.OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in api.models.list()] == ["fake", "other"]
    assert api.models.retrieve("other").id == "other"
    model = http.get("/v1/models/fake").json()
    assert (model["object"], model["owned_by"], model["max_model_len"]) == (
        "model", "mtactors", 512,
    )  # fmt: skip


def test_a_model_may_have_slashes_in_its_name() -> None:
    with (
        running_server(options={"served_names": ("org/model-1",)}) as server,
        server.openai() as api,
    ):
        assert api.models.retrieve("org/model-1").id == "org/model-1"
        with server.client() as http:
            assert http.get("/v1/models/org/model-1").status_code == 200


def test_request_ids_are_echoed_or_made(http: httpx.Client) -> None:
    for path in ("/health", "/v1/models", "/nowhere"):
        answer = http.get(path, headers={"X-Request-Id": "my-id-1"})
        assert answer.headers["x-request-id"] == "my-id-1"
    made = {http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    answer = http.get("/health", headers={"X-Request-Id": "x" * 500})
    assert answer.headers["x-request-id"] != "x" * 500
    body = {**CHAT, "stream": True}
    answer = http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "my-id-2"})
    assert answer.headers["x-request-id"] == "my-id-2"


def test_a_request_may_name_its_own_id(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, "request_id": "mine"})
    assert answer.json()["id"] == "chatcmpl-mine"


def numbers(text: str) -> dict[str, float]:
    """Return every sample without its model_name label; each must be there once."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            key = sample.name + "".join(f" {k}={v}" for k, v in sorted(labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_metrics_count_what_happened() -> None:
    with running_server() as server, server.client() as http:
        before = numbers(http.get("/metrics").text)
        assert before["mtactors:request_success_total finished_reason=length"] == 0
        body = {"prompt": "The quick brown fox", "max_tokens": 5}
        usage = http.post("/v1/completions", json=body).json()["usage"]
        server.until_idle()
        answer = http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        after = numbers(answer.text)
    assert after["mtactors:request_success_total finished_reason=length"] == 1
    assert after["mtactors:prompt_tokens_total"] == usage["prompt_tokens"]
    assert after["mtactors:generation_tokens_total"] == 5
    assert after["mtactors:num_requests_running"] == 0
    assert after["mtactors:num_requests_waiting"] == 0
    assert after["mtactors:kv_cache_usage_perc"] == 0
    assert after["mtactors:time_to_first_token_seconds_count"] == 1
    assert after["mtactors:inter_token_latency_seconds_count"] == 4
    for name in ("e2e_request_latency", "request_queue_time"):
        assert after[f"mtactors:{name}_seconds_count"] == 1
    assert after["mtactors:request_generation_tokens_sum"] == 5
    assert after["mtactors:cache_config_info block_size=16 num_gpu_blocks=64"] == 1


def test_metrics_show_what_runs() -> None:
    slow = Script(step_seconds=0.005)
    with running_server(slow, scheduler={"max_num_seqs": 2}) as server, server.client() as http:
        body = {"prompt": "The quick brown fox", "max_tokens": 400, "n": 3, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            with server.client() as other:
                seen = numbers(other.get("/metrics").text)
        assert seen["mtactors:num_requests_running"] == 2
        assert seen["mtactors:num_requests_waiting"] == 1
        assert 0 < seen["mtactors:kv_cache_usage_perc"] <= 1
        server.until_idle()


def test_each_request_has_a_line_unless_they_are_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mtactors")
    for log_requests in (True, False):
        caplog.clear()
        options = {"log_requests": log_requests}
        with running_server(options=options) as server, server.client() as http:
            http.post("/v1/chat/completions", json=CHAT)
            http.post("/v1/completions", json={"prompt": "x", "n": 0})
        lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("request ")]
        assert len(lines) == (2 if log_requests else 0)
        if log_requests:
            assert "route=chat status=200" in lines[0]
            assert "output=2" in lines[0] and "finish=length" in lines[0] and "ttft=" in lines[0]
            assert "route=completions status=400" in lines[1] and "n must be" in lines[1]


def test_the_ledger_counts_blocks(http: httpx.Client, server: LoopbackServer) -> None:
    server.until_idle()
    ledger = http.get("/debug/ledger").json()
    assert (ledger["used"], ledger["total"]) == (0, 64)
    assert ledger["free"] + ledger["cached"] == ledger["total"]
    assert (ledger["status"], ledger["detail"]) == ("serving", "")
    assert (ledger["running"], ledger["waiting"], ledger["in_flight"]) == (0, 0, 0)
    front, worker = ledger["actors"]
    assert (front["actor"], front["pid"]) == ("front", os.getpid())
    assert front["rss"] > 2**20 and front["cpu_seconds"] > 0
    assert (worker["actor"], worker["step_seconds"]) == ("rank 0", None)


async def test_the_ledger_is_there_to_the_end(tmp_path: Path) -> None:
    service = Service(ServerOptions(("fake",)))
    engine = await start_engine(tmp_path)
    await service.serve(engine)
    async with client_of(service) as http:
        assert [actor["actor"] for actor in (await http.get("/debug/ledger")).json()["actors"]] == [
            "front",
            "rank 0",
        ]
        service.draining = True
        assert (await http.get("/debug/ledger")).json()["status"] == "draining"
        service.failure = EngineDeadError("worker rank 0 was killed")
        await engine.stop()
        ledger = (await http.get("/debug/ledger")).json()
        assert (ledger["status"], ledger["detail"]) == ("dead", "worker rank 0 was killed")
        assert len(ledger["actors"]) == 1
    service.close()
