"""How the library of MUSA kernels is built: where mcc is looked for, what it is told, what is said.

mcc itself never runs here: a script of its name writes down its arguments and makes empty files.
That the sources are accepted by the real one is not proved by anything in this repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtactors.doctor.build import build_library
from tests.source_tree import ROOT

SOURCES = sorted(path.name for path in (ROOT / "kernels" / "musa").glob("*.mu"))
TOOLS = Path(sys.executable).parent
PROJECT = """
cmake_minimum_required(VERSION 3.18...4.0)
project(check NONE)
include({build})
"""
# A call is one write: the build runs several at once.
MCC = r"""#!/bin/sh
[ "$1" = --version ] && { echo "mcc version 4.3.0"; echo "more"; exit 0; }
line=$(printf '%s|' "$@")
printf '%s\n' "$line" >> "LOG"
THEN
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""


@dataclass(frozen=True)
class Outcome:
    """What CMake did with a tree; `said` is its line about MUSA, `report` the installed one."""

    returncode: int
    output: str
    said: list[str]
    report: str
    commands: list[list[str]]
    installed: set[str]


@dataclass(frozen=True)
class Builder:
    """Builds copies of the sources in a directory of its own."""

    directory: Path

    @property
    def kernels(self) -> Path:
        """The copies."""
        return self.directory / "kernels"

    @property
    def home(self) -> Path:
        """A toolkit's place."""
        return self.directory / "toolkit"

    def add_mcc(self, then: str = "", home: Path | None = None, lib: str = "lib") -> None:
        """Put the script where a toolkit has mcc."""
        mcc = (home or self.home) / "bin" / "mcc"
        mcc.parent.mkdir(parents=True)
        (mcc.parent.parent / lib).mkdir()
        mcc.write_text(MCC.replace("LOG", str(self.directory / "mcc.log")).replace("THEN", then))
        mcc.chmod(0o755)

    def run(self, **environment: str) -> Outcome:
        """Configure, build and install with these variables and no others of MUSA's."""
        tree, build = self.directory / "tree", self.directory / "build"
        if not tree.exists():
            tree.mkdir()
            shutil.copytree(ROOT / "kernels" / "musa", self.kernels / "musa")
            shutil.copy(ROOT / "kernels" / "abi.h", self.kernels)
            cmake_file = self.kernels / "musa" / "build.cmake"
            (tree / "CMakeLists.txt").write_text(PROJECT.format(build=cmake_file))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MUSA_", "MTACTORS_"))}
        clean["PATH"] = f"{TOOLS}:{clean['PATH']}"
        output, returncode = "", 0
        for command in (
            ["cmake", "-G", "Ninja", "-S", str(tree), "-B", str(build)],
            ["cmake", "--build", str(build)],
            ["cmake", "--install", str(build), "--prefix", str(self.directory / "out")],
        ):
            run = subprocess.run(
                command, env={**clean, **environment}, capture_output=True, text=True, check=False
            )
            output += run.stdout + run.stderr
            returncode = run.returncode
            if returncode:
                break
        log = self.directory / "mcc.log"
        lines = log.read_text().splitlines() if log.exists() else []
        out = self.directory / "out" / "mtactors" / "kernels"
        report = out / "musa-build.txt"
        return Outcome(
            returncode=returncode,
            output=output,
            said=[line for line in output.splitlines() if line.startswith("-- MUSA kernels: ")],
            report=report.read_text() if report.exists() else "",
            commands=[line.split("|")[:-1] for line in lines],
            installed={path.name for path in out.glob("*")},
        )


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def no_real_toolkit() -> None:
    if Path("/usr/local/musa/bin/mcc").exists():
        pytest.skip("a MUSA toolkit is installed where it is looked for last")


def test_without_mcc_only_the_cpu_is_built_for(builder: Builder) -> None:
    no_real_toolkit()
    done = builder.run(MUSA_HOME=str(builder.home))
    places = f"{builder.home}, /usr/local/musa (MUSA_HOME names the toolkit)"
    assert done.returncode == 0, done.output
    assert done.said == [f"-- MUSA kernels: not built: no bin/mcc in {places}"]
    assert done.report == f"not built: no bin/mcc in {places}\n"
    assert done.installed == {"musa-build.txt"}


@pytest.mark.parametrize("variable", ["MUSA_HOME", "MUSA_PATH"])
def test_mcc_compiles_each_source_and_links(builder: Builder, variable: str) -> None:
    builder.add_mcc()
    done = builder.run(**{variable: str(builder.home)})
    assert done.returncode == 0, done.output
    *compiled, linked = done.commands
    assert sorted(Path(line[-3]).name for line in compiled) == SOURCES
    for line in compiled:
        assert line[:7] == [
            *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
            *("--offload-arch=mp_22", "--offload-arch=mp_31"),
        ]
        includes = [builder.kernels, builder.kernels / "musa", builder.home / "include"]
        assert line[7:10] == [f"-I{include}" for include in includes]
        assert line[10] == "-c" and line[12] == "-o" and len(line) == 14
    lib = builder.home / "lib"
    assert linked[0] == "-shared"
    assert linked[-3:] == [f"-L{lib}", "-lmusart", f"-Wl,-rpath,{lib}"]
    assert sorted(word for word in linked if word.endswith(".o")) == sorted(
        line[-1] for line in compiled
    )
    mcc = f"{builder.home}/bin/mcc (mcc version 4.3.0)"
    assert done.said == [f"-- MUSA kernels: built for mp_22, mp_31 with {mcc}"]
    assert done.report == f"built for mp_22, mp_31 with {mcc}\n"
    assert done.installed == {"musa-build.txt", "libmtactors_musa.so"}


def test_the_chips_are_chosen_by_the_environment(builder: Builder) -> None:
    builder.add_mcc(lib="lib64")
    done = builder.run(MUSA_HOME=str(builder.home), MTACTORS_MUSA_ARCHS="31")
    assert done.returncode == 0, done.output
    for line in done.commands:
        assert [word for word in line if "offload" in word] == ["--offload-arch=mp_31"]
    assert f"-L{builder.home}/lib64" in done.commands[-1]
    assert done.report.startswith("built for mp_31 with ")


def test_musa_home_goes_before_musa_path(builder: Builder) -> None:
    other = builder.directory / "other"
    builder.add_mcc()
    builder.add_mcc(home=other)
    done = builder.run(MUSA_PATH=str(builder.home), MUSA_HOME=str(other))
    assert f"with {other}/bin/mcc" in done.report


def test_none_leaves_the_library_out(builder: Builder) -> None:
    builder.add_mcc()
    done = builder.run(MUSA_HOME=str(builder.home), MTACTORS_MUSA_ARCHS="none")
    assert (done.returncode, done.commands) == (0, [])
    assert done.report == "not built: MTACTORS_MUSA_ARCHS=none\n"


@pytest.mark.parametrize("archs", ["mp_22", "2.2", "22 31", ",22"])
def test_chips_in_another_spelling_are_refused(builder: Builder, archs: str) -> None:
    done = builder.run(MTACTORS_MUSA_ARCHS=archs)
    assert done.returncode != 0
    assert f"MTACTORS_MUSA_ARCHS={archs}: name chips as in 22,31, or none" in done.output


def test_where_mcc_fails_nothing_is_installed_and_the_way_out_is_said(builder: Builder) -> None:
    then = 'case "$*" in *rows.mu*) echo "rows.mu:1: no such thing" >&2; exit 3;; esac'
    builder.add_mcc(then=then)
    done = builder.run(MUSA_HOME=str(builder.home))
    assert done.returncode != 0
    assert "rows.mu:1: no such thing" in done.output
    words = " ".join(done.output.split())  # CMake folds lines
    assert "MUSA kernels: mcc failed on rows.mu (3): MTACTORS_MUSA_ARCHS=none installs" in words
    assert done.installed == set()


@pytest.mark.parametrize("header", ["musa/common.muh", "abi.h"])
def test_a_header_that_changes_compiles_the_sources_again(builder: Builder, header: str) -> None:
    builder.add_mcc()
    once = len(SOURCES) + 1
    for expected in (once, once):
        assert len(builder.run(MUSA_HOME=str(builder.home)).commands) == expected
    with (builder.kernels / header).open("a") as file:
        file.write("/* more */")
    assert len(builder.run(MUSA_HOME=str(builder.home)).commands) == 2 * once


def test_the_doctor_builds_as_an_installation_does(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder.add_mcc()
    installed = builder.run(MUSA_HOME=str(builder.home)).commands
    (builder.directory / "mcc.log").unlink()
    monkeypatch.setenv("MUSA_HOME", str(builder.home))
    monkeypatch.delenv("MTACTORS_MUSA_ARCHS", raising=False)
    _, library = build_library(builder.directory)
    assert library is not None
    lines = (builder.directory / "mcc.log").read_text().splitlines()
    doctors = [line.split("|")[:-1] for line in lines]

    def flags(commands: list[list[str]], kernels: Path) -> list[list[str]]:
        return sorted(
            [
                word.replace(str(kernels), "kernels")
                for word in line
                if not word.endswith((".o", ".so"))
            ]
            for line in commands
        )

    assert flags(doctors, ROOT / "kernels") == flags(installed, builder.kernels)
