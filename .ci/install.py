"""Create .venv and install mtactors into it, editable; a second run does only what changed.

Runs on the standard library of whatever Python it is started with. Knows nothing of what mtactors
does. A requirement that the machine lacks ends in one line that says what to do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "mtactors-install.json"
OLDEST, NEWEST = (3, 10), (3, 13)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_SECONDS = 5
BUILD_TOOLS = ("cmake", "nanobind", "ninja", "scikit-build-core")
# What in the environment changes the native code.
BUILD_VARIABLES = (
    "CXX",
    "CXXFLAGS",
    "CMAKE_ARGS",
    "MUSA_HOME",
    "MUSA_PATH",
    "MTACTORS_MUSA_ARCHS",
)
FIRST_START = """
import click, httpx, hypothesis, mtactors.kernels, openai, prometheus_client, prompt_toolkit
import pydantic, pytest, rich.progress, safetensors.torch, starlette.applications, torch.distributed
import uvicorn, uvloop, zmq.asyncio
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
"""
# Tables of pyproject.toml that change nothing in an installed environment.
CHECK_TABLES = ("tool.ruff", "tool.mypy", "tool.pytest")


class InstallError(Exception):
    """Something is missing; the message is the one line to print."""


def say(line: str) -> None:
    """Print one line of progress."""
    print(f"make install: {line}", flush=True)


def pip_command(*args: str) -> list[str]:
    """Return the command line that runs the environment's pip."""
    return [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *args, "--no-compile"]


def pip_finds(*args: str) -> bool:
    """Run pip silently; return whether it succeeded."""
    run = subprocess.run(pip_command(*args), cwd=ROOT, check=False, capture_output=True)
    return run.returncode == 0


def pip(*args: str) -> None:
    """Run pip, which prints its errors only.

    Raises:
        InstallError: pip failed.
    """
    if subprocess.run(pip_command(*args), cwd=ROOT, check=False).returncode:
        raise InstallError("pip failed, its message is above; run `make install` again after")


def check_python() -> None:
    """Refuse a Python that mtactors does not run on.

    Raises:
        InstallError: it is older than OLDEST or newer than NEWEST.
    """
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    found = [
        f"python3.{minor}"
        for minor in range(NEWEST[1], OLDEST[1] - 1, -1)
        if shutil.which(f"python3.{minor}")
    ]
    raise InstallError(
        f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}, mtactors needs "
        f"3.10 to 3.13: "
        + (f"`make install PYTHON={found[0]}`" if found else "install one and name it in PYTHON=")
    )


def check_compiler() -> None:
    """Compile one line of C++17 that includes Python.h.

    Raises:
        InstallError: there is no C++ compiler, it is too old, or Python's headers are missing.
    """
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    chosen = os.environ.get("CXX")
    names = [chosen] if chosen else ["c++", "g++", "clang++"]
    compiler = next((name for name in names if shutil.which(name.split()[0])), None)
    if compiler is None:
        raise InstallError(
            f"no C++ compiler: CXX={chosen} is not there"
            if chosen
            else "no C++ compiler (c++, g++ or clang++): `sudo apt install g++`, or set CXX"
        )
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise InstallError(
            f"Python's headers are missing ({include}/Python.h): "
            f"`sudo apt install python{version}-dev`"
        )
    check = subprocess.run(
        [*compiler.split(), "-std=c++17", "-fsyntax-only", f"-I{include}", "-x", "c++", "-"],
        input="#include <Python.h>\n#include <optional>\nstd::optional<int> ok;\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if check.returncode:
        reason = next(iter(check.stderr.strip().splitlines()), "no message")
        raise InstallError(f"{compiler} cannot compile C++17 with Python.h: {reason}")


def make_venv() -> None:
    """Create .venv, or keep the one that is there if it is whole and of this Python version.

    Raises:
        InstallError: the venv module is missing, or .venv is something else.
    """
    want = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if VENV.exists():
        if not (VENV / "pyvenv.cfg").is_file():
            raise InstallError(f"{VENV} is not a virtual environment: move it away")
        probe = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
        have = ""
        if VENV_PYTHON.exists():
            command = [str(VENV_PYTHON), "-c", probe]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            have = answer.stdout.strip()
        if have == want:
            return
        say(f"replacing .venv ({'Python ' + have if have else 'incomplete'}) by Python {want}")
        shutil.rmtree(VENV)
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError as error:
        raise InstallError(
            f"Python's {error.name} module is missing: `sudo apt install python{want}-venv`"
        ) from error
    say(f"creating .venv with Python {want}")
    venv.create(VENV, with_pip=True, symlinks=True)


def installed_torch() -> str | None:
    """Return the version of torch in .venv, None if there is none."""
    for info in VENV.glob("lib/python*/site-packages/torch-*.dist-info"):
        return info.name[len("torch-") : -len(".dist-info")]
    return None


def pinned_torch() -> str:
    """Return the version of torch that constraints.txt names."""
    pin = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pin is None:
        raise InstallError("constraints.txt does not pin torch")
    return pin.group(1)


def index_answers(url: str) -> bool:
    """Say whether an index sends an answer within CPU_INDEX_SECONDS."""
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=CPU_INDEX_SECONDS):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def install_torch() -> None:
    """Install the pinned torch: a CPU build if one can be had, else the one of the default index.

    Raises:
        InstallError: there is none for this Python.
    """
    version = pinned_torch()
    have = installed_torch()
    if have is not None and have.split("+")[0] == version:
        return
    common = ("install", "-qq", "-c", "constraints.txt")
    say(f"torch {version}, CPU build, from what pip sees")
    if pip_finds(*common, f"torch=={version}+cpu"):
        return
    if index_answers(CPU_INDEX):
        say(f"torch {version}, CPU build, from {CPU_INDEX} (about 200 MB)")
        if pip_finds(*common, "--extra-index-url", CPU_INDEX, f"torch=={version}+cpu"):
            return
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    say(
        f"no CPU build of torch {version} for {python} in sight: downloading the default one, "
        "on x86-64 about 2.7 GB with its CUDA libraries"
    )
    quiet = () if sys.stdout.isatty() else ("-qq",)
    command = pip_command("install", *quiet, "-c", "constraints.txt", f"torch=={version}")
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise InstallError(
            f"pip could not install torch {version} for {python}, its message is above: choose "
            "another Python (PYTHON=python3.11), or show pip a wheel (PIP_FIND_LINKS=DIR)"
        )


def digest(texts: list[bytes]) -> str:
    """Return a short digest of some texts, each with its length."""
    state = hashlib.sha256()
    for text in texts:
        state.update(b"%d:" % len(text))
        state.update(text)
    return state.hexdigest()[:16]


def install_tables(pyproject: str) -> str:
    """Return the tables of pyproject.toml on which the environment depends."""
    tables = re.split(r"(?m)^(?=\[)", pyproject)
    return "".join(
        table for table in tables if not re.match(rf"\[+({'|'.join(CHECK_TABLES)})[.\]]", table)
    )


def musa_homes() -> list[str]:
    """Return where kernels/musa/build.cmake looks for the MUSA toolkit."""
    named = [os.environ.get(name, "") for name in ("MUSA_HOME", "MUSA_PATH")]
    return [home for home in named if home] + ["/usr/local/musa"]


def keys() -> dict[str, str]:
    """Return what the environment was made from: one key for packages, one for native code."""
    native = [ROOT / "CMakeLists.txt"]
    for pattern in ("*.cpp", "*.h", "*.mu", "*.muh", "*.cmake"):
        native += sorted((ROOT / "kernels").rglob(pattern))
    tables = install_tables((ROOT / "pyproject.toml").read_text()).encode()
    return {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "root": str(ROOT),
        "packages": digest([tables, (ROOT / "constraints.txt").read_bytes()]),
        "native": digest(
            [os.fsencode(path.relative_to(ROOT)) + b"\0" + path.read_bytes() for path in native]
            + [os.environ.get(name, "").encode() for name in BUILD_VARIABLES]
            + [bytes([(Path(home) / "bin" / "mcc").exists()]) for home in musa_homes()]
        ),
    }


def read_stamp() -> dict[str, str]:
    """Return the keys of the last complete run; empty if there was none."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def first_start() -> None:
    """Import what a start of mtactors and its tests import, so that the bytecode is there.

    pip would compile all 13,000 files on one core, which takes longer than the rest.

    Raises:
        InstallError: one of them cannot be imported.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [str(VENV_PYTHON), "-c", FIRST_START]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise InstallError(f"what was installed does not start: {run.stderr.splitlines()[-1]}")


def keep_source_tree_off_path() -> None:
    """Leave only the import hook in the editable install's .pth file.

    It also names the checkout and its parent folder, and then `import kernels` finds ours wherever
    transformers looks for the Hub's package of that name. The hook does not need them.
    """
    for pth in VENV.glob("lib/python*/site-packages/_editable_skbc_mtactors.pth"):
        lines = [line for line in pth.read_text().splitlines() if line.startswith("import ")]
        pth.write_text("\n".join([*lines, ""]))


def say_what_was_built() -> None:
    """Print whether there are kernels for MUSA, and why not."""
    for report in VENV.glob("lib/python*/site-packages/mtactors/kernels/musa-build.txt"):
        say(f"MUSA kernels {report.read_text().strip()}")


def install() -> None:
    """Bring .venv to the state that the tree asks for.

    Raises:
        InstallError: something is missing.
    """
    check_python()
    want, have = keys(), read_stamp()
    module = list(VENV.glob("lib/python*/site-packages/mtactors/kernels/_native.*.so"))
    if have == want and module and VENV_PYTHON.exists():
        return
    began = time.monotonic()
    check_compiler()
    make_venv()
    editable = ("install", "-qq", "-c", "constraints.txt", "--no-build-isolation")
    if module and {**have, "native": ""} == {**want, "native": ""}:
        say("the native module")
        pip(*editable, "--no-deps", "-e", ".")
    else:
        STAMP.unlink(missing_ok=True)
        install_torch()
        say("build tools")
        pip("install", "-qq", "-c", "constraints.txt", *BUILD_TOOLS)
        say("mtactors and what it needs")
        pip(*editable, "-e", ".[dev]")
        say("first start, to compile Python files")
        first_start()
    keep_source_tree_off_path()
    say_what_was_built()
    STAMP.write_text(json.dumps(want))
    say(f"done in {time.monotonic() - began:.0f} s, torch {installed_torch()}")


def main() -> int:
    """Install, one at a time; return the exit code."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    try:
        with (build / "install.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("waiting for another `make install` in this tree")
                fcntl.flock(lock, fcntl.LOCK_EX)
            install()
    except InstallError as error:
        print(f"make install: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
