"""The import rule, and what no source of the project may contain.

One direction, one dict: who may import whom. Everything torch-free is proved so twice, by reading
the sources and by importing them in a fresh interpreter.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys

import pytest

from tests.source_tree import (
    PACKAGES,
    ROOT,
    TORCH_NAMES,
    TORCH_UNITS,
    Import,
    Module,
    modules,
    python_files,
)

# unit -> units that it may import (itself always). A new folder or top-level module needs a row.
ALLOWED: dict[str, set[str]] = {
    "mtactors": set(),
    "errors": set(),
    "envs": {"errors"},
    "families": {"errors"},
    "plan": {"errors", "families"},
    "structured_outputs": {"errors"},
    "sampling_params": {"errors", "structured_outputs"},
    "outputs": {"errors"},
    "config": {"errors", "envs", "families"},
    "generation_defaults": {"errors", "sampling_params"},
    "engine_args": {"errors", "envs", "families", "config", "generation_defaults"},
    "tokenizers": {"errors", "families"},
    "pull": {"errors", "envs", "families", "config", "tokenizers"},
    "hub": {"errors", "envs", "config", "pull"},
}
_BASE = set(ALLOWED) - {"mtactors"}
ALLOWED["pull.__main__"] = _BASE
ALLOWED |= {
    "wire": {"errors", "envs", "config", "sampling_params", "outputs"},
    "journal": {"errors", "wire"},
    "front": {*_BASE, "wire", "journal"},
    "replay": {*_BASE, "wire", "journal", "front"},
    "entrypoints": {*_BASE, "wire", "journal", "front", "replay"},
    "bench": {*_BASE, "front", "entrypoints"},
    "kernels": {"errors", "config", "envs"},
    "layers": {"errors", "config", "families", "kernels"},
    "models": {"errors", "config", "families", "kernels", "layers"},
}
ALLOWED["bench.__main__"] = {*ALLOWED["bench"], "bench"}
ALLOWED["perf_test"] = ALLOWED["bench.__main__"]
ALLOWED["checkpoint"] = {*ALLOWED["models"], "models", "envs", "tokenizers", "pull"}
ALLOWED["convert"] = {*ALLOWED["checkpoint"], "checkpoint"}
ALLOWED["convert_weight"] = {*ALLOWED["convert"], "convert", "hub"}
ALLOWED["inspect"] = {*ALLOWED["checkpoint"], "checkpoint"}
ALLOWED["worker"] = {*ALLOWED["checkpoint"], "checkpoint", "wire"}
ALLOWED["doctor"] = {*ALLOWED["worker"], "worker"}
ALLOWED["doctor.__main__"] = {*ALLOWED["doctor"], "doctor"}

# Where a device may be called by its name (help texts and docstrings are not matched).
DEVICE_NAMES = {"musa", "cuda"}
DEVICE_PLACES = ("mtactors/worker/device.py", "mtactors/worker/comm.py", "mtactors/config.py")
DEVICE_FOLDERS = ("kernels/", "mtactors/doctor/")

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec", "compile"}
UNSAFE_METHODS = {"send_pyobj", "recv_pyobj", "create_subprocess_shell"}


def _units(item: Import) -> set[str]:
    parts = item.name.split(".")
    if parts[0] != "mtactors":
        return set()
    if len(parts) > 1:
        return {parts[1]}
    # `from mtactors import x` names a unit or one of the package's own names.
    return {item.member} if item.member in ALLOWED else {"mtactors"}


def _crossings() -> list[str]:
    wrong = []
    for module in modules():
        if module.name == "mtactors":  # its lazy exports are seen by type checkers only
            continue
        allowed = {*ALLOWED.get(module.unit, set()), module.unit}
        wrong += [
            f"{module.place}:{item.line}: {module.unit} may not import {unit}"
            for item in module.imports
            for unit in _units(item) - allowed
            if unit != "mtactors"
        ]
    return wrong


def test_every_unit_has_a_row() -> None:
    assert {module.unit for module in modules()} - set(ALLOWED) == set()


def test_the_rows_allow_one_direction_only() -> None:
    order = list(graphlib.TopologicalSorter(ALLOWED).static_order())
    assert order.index("front") < order.index("entrypoints")
    assert "worker" not in ALLOWED["front"] | ALLOWED["entrypoints"]
    assert "front" not in ALLOWED["worker"] | ALLOWED["checkpoint"]
    torch_free = set(ALLOWED) - TORCH_UNITS
    assert {unit for unit in torch_free if ALLOWED[unit] & TORCH_UNITS} == set()


def test_units_import_only_what_their_row_names() -> None:
    wrong = _crossings()
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute_and_never_of_the_source_folders() -> None:
    bare = {"kernels", "entrypoints", "tests", "examples", "benchmarks"}
    wrong = [
        f"{module.place}:{item.line}: {item.name}"
        for module in modules()
        for item in module.imports
        if item.name.startswith(".") or item.name.split(".")[0] in bare
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_is_named_only_where_it_is_needed() -> None:
    wrong = [
        f"{module.place}:{item.line}: {item.name}"
        for module in modules()
        if module.unit not in TORCH_UNITS
        for item in module.imports
        if item.name.split(".")[0] in TORCH_NAMES
    ]
    assert not wrong, "\n".join(wrong)


def _imported_at_start(module: Module, names: set[str]) -> set[str]:
    found = set()
    for item in module.imports:
        if not item.at_module_level:
            continue
        inner = f"{item.name}.{item.member}"
        target = inner if inner in names else item.name
        # A package's own names, taken by one of its modules, are a cycle; the package is not.
        if target in names and target != module.name:
            found.add(target)
    return found


def test_no_module_imports_itself_in_a_circle() -> None:
    names = {module.name for module in modules()}
    graph = {module.name: _imported_at_start(module, names) for module in modules()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def _fresh(code: str) -> str:
    """Run code in a new interpreter, in the worst place: the root is cwd and on PYTHONPATH."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_front_and_entrypoints_never_load_torch() -> None:
    names = [module.name for module in modules() if module.unit not in TORCH_UNITS]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    loaded = set({sorted(TORCH_NAMES)!r}) & sys.modules.keys()
    assert not loaded, (name, loaded)
assert not [name for name in sys.modules if name.startswith("mtactors.worker")]
"""
    _fresh(code)


def test_the_tokenizer_library_does_not_take_our_kernels_for_the_hubs() -> None:
    code = """
import mtactors, sys
from transformers import PreTrainedTokenizerFast
assert "torch" not in sys.modules, "torch"
assert "kernels" not in sys.modules, sys.modules["kernels"]
try:
    import kernels
except ImportError:
    print("none")
"""
    assert _fresh(code) == "none"


def _device_names(module: Module) -> list[str]:
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.split(":")[0]
        elif isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Import):
            name = next((a.name for a in node.names if a.name == "torch_musa"), "")
            name = "musa" if name else ""
        else:
            continue
        if name in DEVICE_NAMES:
            wrong.append(f"{module.place}:{node.lineno}: {name}")
    return wrong


def test_devices_are_named_behind_the_device_seam_only() -> None:
    wrong = []
    for module in modules():
        if module.place not in DEVICE_PLACES and not module.place.startswith(DEVICE_FOLDERS):
            wrong += _device_names(module)
    assert not wrong, "\n".join(wrong)


def _keyword(call: ast.Call, name: str) -> object:
    for item in call.keywords:
        if item.arg == name and isinstance(item.value, ast.Constant):
            value: object = item.value.value
            return value
    return None


def _unsafe(call: ast.Call) -> str | None:
    function = call.func
    called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    owner = function.value if isinstance(function, ast.Attribute) else None
    if called in UNSAFE_BUILTINS and owner is None:
        return called
    if called in UNSAFE_METHODS:
        return called
    of_torch = isinstance(owner, ast.Name) and owner.id == "torch"
    if called == "load" and of_torch and _keyword(call, "weights_only") is not True:
        return "torch.load without weights_only=True"
    for name in ("allow_pickle", "trust_remote_code", "shell"):
        if _keyword(call, name) is True:
            return f"{name}=True"
    return None


def _unsafe_modules(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # What torch.load raises on a damaged file is pickle's; its name is harmless.
            found += [a.name for a in node.names if a.name != "pickle" or a.asname]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        elif isinstance(node, ast.Attribute) and node.attr != "UnpicklingError":
            found += [node.value.id] if isinstance(node.value, ast.Name) else []
    return [name for name in found if name.split(".")[0] in UNSAFE_MODULES]


def test_nothing_unpickles_or_evaluates() -> None:
    wrong = []
    for path in python_files(*PACKAGES, "examples", "benchmarks", ".ci"):
        place = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrong += [f"{place}: {name}" for name in _unsafe_modules(tree)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (what := _unsafe(node)):
                wrong.append(f"{place}:{node.lineno}: {what}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.loads(data)",
        "from pickle import loads",
        "import pickle as p",
        "import marshal",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "socket.recv_pyobj()",
    ],
)
def test_the_check_sees_what_is_unsafe(line: str) -> None:
    tree = ast.parse(line)
    calls = [_unsafe(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert _unsafe_modules(tree) or any(calls)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; problem = pickle.UnpicklingError",
        "model.eval()",
        "re.compile(text)",
        "torch.load(path, weights_only=True)",
        "subprocess.run([program, argument])",
    ],
)
def test_the_check_lets_pass_what_is_safe(line: str) -> None:
    tree = ast.parse(line)
    calls = [_unsafe(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not _unsafe_modules(tree) and not any(calls)
