"""The build that mtactors would choose without more than an instruction set."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.builds import NEEDS, VARIABLE, BuildsError, fastest_within, runnable
from benchmarks.compare import ISAS

SLOW_DOT_PRODUCTS = ["portable", "avx2", "avx512bf16", "avx512", "amx"]
FAST_DOT_PRODUCTS = ["portable", "avx2", "avx512", "avx512bf16"]


@pytest.mark.parametrize(
    "builds, isa, build",
    [
        (SLOW_DOT_PRODUCTS, "amx", "amx"),
        (SLOW_DOT_PRODUCTS, "avx512bf16", "avx512"),
        (SLOW_DOT_PRODUCTS, "avx512", "avx512"),
        (SLOW_DOT_PRODUCTS, "avx2", "avx2"),
        (FAST_DOT_PRODUCTS, "amx", "avx512bf16"),
        (FAST_DOT_PRODUCTS, "avx512bf16", "avx512bf16"),
        (FAST_DOT_PRODUCTS, "avx512", "avx512"),
        (["portable", "avx2"], "avx512bf16", "avx2"),
        (["portable"], "avx2", "portable"),
    ],
)
def test_the_fastest_that_needs_no_more(builds: list[str], isa: str, build: str) -> None:
    assert fastest_within(isa, builds) == build


def test_every_instruction_set_that_may_be_named_has_a_place() -> None:
    assert set(ISAS) < set(NEEDS)


@pytest.mark.needs_torch
def test_mtactors_is_asked_whatever_build_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtactors.kernels import native

    monkeypatch.setenv(VARIABLE, "sse9")
    builds = runnable()
    monkeypatch.delenv(VARIABLE)
    assert builds == list(native.info().runnable)
    assert set(builds) <= set(NEEDS)


def test_a_python_without_mtactors_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho No module named torch >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BuildsError, match=r"^which builds run here: No module named torch$"):
        runnable()
