"""The environment variables that mtactors reads, and those it sets for processes it starts.

Knows nothing of command lines or of what the processes do.
"""

from __future__ import annotations

import os

#: An OpenMP thread that spins between two operations takes the core from another rank, or from
#: the front. These are read once, when the OpenMP library loads.
_NO_SPINNING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}

#: Else `import torch` imports every installed device extension, wanted or not, and fails with it.
#: A worker whose device needs one imports it by name.
_NO_EXTENSIONS = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def worker_environment(cpu_threads: int) -> dict[str, str]:
    """Return the environment of a worker process; what the user has set wins.

    Args:
        cpu_threads: 0 leaves the number of OpenMP threads to the worker.
    """
    environment = {**_NO_SPINNING, **os.environ, **_NO_EXTENSIONS, "PYTHONUNBUFFERED": "1"}
    if cpu_threads:
        environment["OMP_NUM_THREADS"] = str(cpu_threads)
    return environment


def keep_extensions_out() -> None:
    """Keep torch's device extensions out of this process and those that it becomes."""
    os.environ.update(_NO_EXTENSIONS)


def api_keys() -> tuple[str, ...]:
    """Return the server's API keys: MTACTORS_API_KEY, if it is set."""
    key = os.environ.get("MTACTORS_API_KEY")
    return () if key is None else (key,)


def api_key_file() -> str | None:
    """Return where more of the server's API keys are: MTACTORS_API_KEY_FILE, if it is set."""
    return os.environ.get("MTACTORS_API_KEY_FILE")


TEST_FAULT = "MTACTORS_TEST_FAULT"


def test_fault() -> str:
    """Return how workers are to fail, for tests alone: see `mtactors.worker.faults`."""
    return os.environ.get(TEST_FAULT, "")
