"""A server that runs already, as operators' commands ask it over HTTP.

Uses the standard library alone: these commands answer at once. Knows nothing of what is asked.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mtactors import envs
from mtactors.errors import ConfigError, EngineUnavailableError

Function = TypeVar("Function", bound=Callable[..., Any])


def server_options(function: Function) -> Function:
    """Add `--url` and `--api-key`, which say what server is meant."""
    key = click.option(
        "--api-key", default=None, help="The server's key. Default: MTACTORS_API_KEY."
    )
    url = click.option(
        "--url",
        default="http://127.0.0.1:8000",
        show_default=True,
        help="The server, without /v1.",
    )
    return url(key(function))


class RunningServer:
    """A server at an address.

    Args:
        url: as users know it, with or without /v1.
        api_key: default: the first one of MTACTORS_API_KEY.

    Attributes:
        url: without /v1.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        keys = (api_key,) if api_key else envs.api_keys()
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        # A proxy has no way to this machine, and the server takes no orders from one.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, timeout: float) -> bytes:
        """Return the body of what is at a path.

        Raises:
            EngineUnavailableError: nobody answers within `timeout` seconds, or with an error.
            ConfigError: this is no server's address.
        """
        return self._ask("GET", path, timeout)

    def post(self, path: str, timeout: float) -> Any:
        """Order something without a body; return the JSON that comes back.

        Raises:
            EngineUnavailableError: nobody answers within `timeout` seconds, or with an error.
            ConfigError: this is no server's address.
        """
        return self.parse(self._ask("POST", path, timeout))

    def parse(self, body: bytes) -> Any:
        """Return what JSON says.

        Raises:
            ConfigError: it is none, so this is no server of ours.
        """
        try:
            return json.loads(body)
        except ValueError:
            raise self._no_server() from None

    def _ask(self, method: str, path: str, timeout: float) -> bytes:
        url = self.url + path
        body = b"" if method == "POST" else None
        try:
            request = urllib.request.Request(url, body, self._headers, method=method)
            with self._opener.open(request, timeout=timeout) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            raise EngineUnavailableError(f"{url}: {_message(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise EngineUnavailableError(f"no server answers at {url}: {reason}") from None
        except ValueError:
            raise self._no_server() from None

    def _no_server(self) -> ConfigError:
        return ConfigError("url", f"{self.url!r} is not the address of a mtactors server")


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
