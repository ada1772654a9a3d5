"""Build the native code with every C++ compiler found on this machine, and test each build.

Those on the PATH that are new enough, or those that are named: gcc as g++-N, clang as clang++-N.
Each build has an environment below build/compilers that borrows the packages of the one that runs
this. A warning fails as an error does. Arguments with a slash go to pytest. Knows nothing of the
sources.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "compilers"
OLDEST = {"g++": 11, "clang++": 14}
TESTS = ("tests/kernels", "tests/models/test_native_decoder.py")
_NAME = re.compile(r"(g\+\+|clang\+\+)(-\d+)?")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its path, `g++` or `clang++`, and its version."""

    path: str
    kind: str
    version: str

    @property
    def new_enough(self) -> bool:
        """Whether mtactors promises to build with it."""
        return int(self.version.split(".")[0]) >= OLDEST[self.kind]

    @property
    def label(self) -> str:
        """Name it in a line of print and in a path."""
        return f"{self.kind}-{self.version}"


def find_compilers(folders: list[str]) -> list[Compiler]:
    """Return each compiler in `folders` once, under whichever names it goes."""
    found: dict[Path, Compiler] = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("*++*")):
            name = _NAME.fullmatch(path.name)
            if name is None or not os.access(path, os.X_OK):
                continue
            command = [str(path), "-dumpfullversion", "-dumpversion"]
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            version = told.stdout.split("\n")[0].strip()
            if told.returncode == 0 and re.fullmatch(r"\d+(\.\d+)*", version):
                found.setdefault(path.resolve(), Compiler(str(path), name[1], version))
    return sorted(
        found.values(), key=lambda one: (one.kind, [int(n) for n in one.version.split(".")])
    )


def environment(compiler: Compiler) -> str:
    """Make the environment of a build, or keep the one that is there; return its Python."""
    home = HOME / compiler.label
    if not (home / "pyvenv.cfg").is_file():
        venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    lender = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "zz_borrowed.pth").write_text("".join(f"{path}\n" for path in lender))
    return str(home / "bin" / "python")


def build(compiler: Compiler, python: str) -> str:
    """Build from nothing and install, editable; return what went wrong, if anything did."""
    log, folder = HOME / f"{compiler.label}.log", HOME / compiler.label / "native"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    install = ["install", "-v", "--no-deps", "--no-build-isolation", "--no-compile"]
    settings = ["-C", f"build-dir={folder}", "-C", "cmake.args=--fresh", "-e", "."]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [*pip, *install, *settings],
            cwd=ROOT,
            env={**os.environ, "CXX": compiler.path, "PATH": tools},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = [line.strip() for line in lines if re.search(r"\b(warning|error):", line)]
    print(f"{compiler.label}: built in {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode or wrong:
        return f"{wrong[0] if wrong else 'the build failed'} (see {log.relative_to(ROOT)})"
    for pth in (
        Path(python).parents[1].glob("lib/python*/site-packages/_editable_skbc_mtactors.pth")
    ):
        kept = [line for line in pth.read_text().splitlines() if line.startswith("import ")]
        pth.write_text("\n".join([*kept, ""]))
    return ""


def test(compiler: Compiler, tests: list[str]) -> str:
    """Build with a compiler and test; return what went wrong, if anything did."""
    python = environment(compiler)
    if problem := build(compiler, python):
        return problem
    pytest = str(Path(sys.executable).parent / "pytest")
    done = subprocess.run([python, pytest, "-q", "-n", "0", *tests], cwd=ROOT, check=False)
    return "tests failed" if done.returncode else ""


def main(arguments: list[str]) -> int:
    """Test with each compiler; return the exit code."""
    HOME.mkdir(parents=True, exist_ok=True)
    tests = [argument for argument in arguments if "/" in argument]
    named = {argument for argument in arguments if "/" not in argument}
    found = find_compilers(os.environ.get("PATH", "").split(os.pathsep))
    if named:
        found = [one for one in found if named & {Path(one.path).name, one.label}]
    problems = {}
    tested = [one for one in found if one.new_enough]
    for compiler in tested:
        print(f"== {compiler.label} ({compiler.path})", flush=True)
        problems[compiler.label] = test(compiler, tests or list(TESTS))
    print(f"make test-compilers: tested {', '.join(problems) or 'none: no such compiler found'}")
    failed = {label: problem for label, problem in problems.items() if problem}
    for label, problem in failed.items():
        print(f"make test-compilers: {label}: {problem}", file=sys.stderr)
    return 1 if failed or not tested else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
