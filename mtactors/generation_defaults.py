"""What a checkpoint's generation_config.json says about sampling, for requests that leave it open.

Knows nothing of requests or engines.
"""

from __future__ import annotations

import json
from pathlib import Path

from mtactors.errors import ConfigError, RequestError
from mtactors.sampling_params import SamplingParams

_FIELD = "generation_config"
_FILE = "generation_config.json"
# Name in the file -> name in a request.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_new_tokens": "max_tokens",
}


def read_generation_defaults(source: str, directory: Path) -> dict[str, float]:
    """Return the sampling parameters that hold for requests that do not name them.

    Args:
        source: "auto" reads the checkpoint's, "vllm" none at all; else a directory with the file.
        directory: the checkpoint's.

    Raises:
        ConfigError: the file is not there, cannot be read, or has a value out of range.
    """
    if source == "vllm":
        return {}
    path = (directory if source == "auto" else Path(source).expanduser()) / _FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if source == "auto":
            return {}
        raise ConfigError(_FIELD, f"there is no {path}; auto, vllm or a directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(_FIELD, f"{path} cannot be read: {error}") from None
    return _check(_parse(text, path), path)


def _parse(text: str, path: Path) -> dict[str, float]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(_FIELD, f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(_FIELD, f"{path} is not a JSON object")
    return {name: content[key] for key, name in _NAMES.items() if content.get(key) is not None}


def _check(found: dict[str, float], path: Path) -> dict[str, float]:
    try:
        SamplingParams(**found)  # type: ignore[arg-type]  # whatever it is, it is checked here
    except RequestError as error:
        text = f"{path}: {error}; --generation-config vllm leaves the file out"
        raise ConfigError(_FIELD, text) from None
    return found
