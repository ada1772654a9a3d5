"""Builds the MUSA kernels with mcc, as an installation from source does, to check them.

The flags are those of kernels/musa/build.cmake. Knows nothing of what the kernels compute.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from mtactors import kernels
from mtactors.doctor.host import toolkit_home
from mtactors.doctor.report import Check

LIBRARY = "libmtactors_musa.so"


def build_library(directory: Path) -> tuple[Check, Path | None]:
    """Compile and link into `directory`; return what came of it, and the library."""
    sources = sorted((Path(kernels.__file__).parent / "musa").glob("*.mu"))
    if not sources:
        remedy = "unpack the source, and run the doctor of an editable installation of it"
        return Check("build", "failed", "this installation has no sources", remedy), None
    home = toolkit_home()
    if home is None or not (home / "bin/mcc").exists():
        remedy = "install the MUSA toolkit, or say where it is with MUSA_HOME"
        return Check("build", "failed", "no mcc is found", remedy), None
    archs = os.environ.get("MTACTORS_MUSA_ARCHS") or "22,31"
    offload = [f"--offload-arch=mp_{arch}" for arch in archs.replace(";", ",").split(",")]
    mcc, objects = str(home / "bin/mcc"), []
    include = [f"-I{sources[0].parent.parent}", f"-I{sources[0].parent}", f"-I{home}/include"]
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    for source in sources:
        target = directory / f"{source.name}.o"
        command = [mcc, *flags, *offload, *include, "-c", str(source), "-o", str(target)]
        problem = _run(command)
        if problem:
            return _failed(source.name, problem), None
        objects.append(str(target))
    library = directory / LIBRARY
    lib = home / ("lib64" if (home / "lib64").is_dir() else "lib")
    link = ["-shared", "-fPIC", *offload, "-o", str(library), *objects, f"-L{lib}", "-lmusart"]
    problem = _run([mcc, *link, f"-Wl,-rpath,{lib}"])
    if problem:
        return _failed(LIBRARY, problem), None
    return Check("build", "ok", f"{len(sources)} files for {archs} with {mcc}"), library


def _failed(what: str, problem: str) -> Check:
    remedy = "serve with --kernels reference, and report what mcc said with its version"
    return Check("build", "failed", f"mcc failed on {what}: {problem}", remedy)


def _run(command: list[str]) -> str:
    """Return the first error of a command, "" if it succeeded."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return ""
    lines = (run.stderr + run.stdout).splitlines()
    errors = [line.strip() for line in lines if "error" in line] or [f"code {run.returncode}"]
    return errors[0]
