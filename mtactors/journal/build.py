"""Which code computes: the name of a build, for comparing one process with another.

Reads files only: nothing of what it names is imported.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import mtactors

#: The packages whose code decides about the bits of a result.
_COMPUTING = ("kernels", "layers", "models", "checkpoint", "families", "worker")
_SUFFIXES = (".py", ".so")


def build_name() -> str:
    """Return version, torch's version and a digest of all code that computes."""
    digest = hashlib.sha256()
    for unit in _COMPUTING:
        for name, path in sorted(_files(f"mtactors.{unit}")):
            data = path.read_bytes()
            digest.update(f"{unit}/{name}:{len(data)}\n".encode())
            digest.update(data)
    return f"{mtactors.__version__}, torch {_torch_version()}, code {digest.hexdigest()[:16]}"


def _files(package: str) -> list[tuple[str, Path]]:
    """Return the files of a package by their names in it; it may lie in several places."""
    spec = find_spec(package)
    places = [] if spec is None else spec.submodule_search_locations or []
    return [
        (path.relative_to(place).as_posix(), path)
        for place in map(Path, places)
        for path in place.rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
    ]


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"
