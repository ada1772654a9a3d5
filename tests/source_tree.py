"""The project's own sources as data for the tests that check rules on them.

Knows nothing of the rules. A module's unit is the name right below mtactors: a folder ("front",
"kernels") or a single file ("config"). A folder's `__main__` is a program of its own that may stand
above its folder: unit "pull.__main__".
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Folders of the tree and the package that each becomes when installed.
PACKAGES = {
    "mtactors": "mtactors",
    "kernels": "mtactors.kernels",
    "entrypoints": "mtactors.entrypoints",
}
# Units that need torch; nothing else may import it.
TORCH_UNITS = frozenset(
    {
        "kernels",
        "layers",
        "models",
        "checkpoint",
        "worker",
        "doctor",
        "doctor.__main__",
        "convert",
        "convert_weight",
        "inspect",
    }
)
TORCH_NAMES = frozenset({"torch", "torch_musa"})


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement, seen from the module that holds it."""

    name: str  # dotted, as far as it names a module for sure
    member: str | None  # what a `from` import takes out of it
    line: int
    at_module_level: bool  # runs when the module is imported: not in a function, not for types only


@dataclass(frozen=True)
class Module:
    """One Python file of the project."""

    name: str  # dotted, as installed
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def unit(self) -> str:
        """What lies right below mtactors; "mtactors" for its __init__."""
        parts = self.name.split(".")
        if parts[-1] == "__main__":
            return ".".join(parts[1:])
        return parts[1] if len(parts) > 1 else parts[0]

    @property
    def place(self) -> str:
        """The path below the root, for messages."""
        return self.path.relative_to(ROOT).as_posix()


def _is_type_checking(test: ast.expr) -> bool:
    name = test.id if isinstance(test, ast.Name) else getattr(test, "attr", "")
    return name == "TYPE_CHECKING"


def _collect(body: list[ast.stmt], at_module_level: bool, found: list[Import]) -> None:
    for node in body:
        if isinstance(node, ast.Import):
            found += [Import(a.name, None, node.lineno, at_module_level) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [Import(module, a.name, node.lineno, at_module_level) for a in node.names]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            _collect(node.body, False, found)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            _collect(node.body, False, found)
            _collect(node.orelse, at_module_level, found)
        else:
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                inner: list[ast.stmt] = getattr(node, field, [])
                if isinstance(inner, list):
                    _collect(inner, at_module_level, found)


def imports_of(tree: ast.Module) -> tuple[Import, ...]:
    """Return every import of a parsed file, those inside functions included."""
    found: list[Import] = []
    _collect(tree.body, True, found)
    return tuple(found)


@lru_cache(maxsize=1)
def modules() -> tuple[Module, ...]:
    """Return every module of the package, in the layout that it has when installed."""
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            name = ".".join(part for part in parts if part != "__init__")
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            found.append(Module(name, path, tree, imports_of(tree)))
    return tuple(found)


def python_files(*folders: str) -> list[Path]:
    """Return the Python files below some folders of the root."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
