"""Which build of mtactors' kernels a machine without more than some instruction set would choose.

The fastest build need not be the one that needs most: some CPUs do products of bf16 more slowly
than others that AVX-512 has. So the order is mtactors' own on this CPU, asked of another process
because it loads torch, whose threads and memory have no place beside what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import cast

from benchmarks.peers.process import own_environment

#: The variable that forces a build.
VARIABLE = "MTACTORS_CPU_ISA"
#: Builds by what they need of a CPU, each all that those before it need.
NEEDS = ("portable", "avx2", "avx512", "avx512bf16", "amx")
_ASK = "import json; from mtactors.kernels import native; print(json.dumps(native.info().runnable))"
_SECONDS = 120.0


class BuildsError(Exception):
    """mtactors cannot say which builds run here; says why in one line."""


def runnable() -> list[str]:
    """Return the builds that this CPU runs, slowest first.

    Raises:
        BuildsError: mtactors or torch cannot be loaded.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _ASK],
            env=own_environment() | {VARIABLE: ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildsError(f"which builds run here: no answer in {_SECONDS:g} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise BuildsError(f"which builds run here: {said[-1]}")
    return cast(list[str], json.loads(done.stdout))


def fastest_within(isa: str, builds: Sequence[str]) -> str:
    """Return the fastest build that needs no more than `isa`, one of `NEEDS`.

    Args:
        builds: those that run here, slowest first; the portable one is always among them.
    """
    allowed = NEEDS[: NEEDS.index(isa) + 1]
    return [build for build in builds if build in allowed][-1]
