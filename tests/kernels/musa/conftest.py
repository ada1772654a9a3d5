"""Fixtures of the device kernels' tests: the installed library for the host, and its emulator.

Where torch finds an NVIDIA GPU and nvcc is installed, the tests that do not watch the emulator run
on that as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mtactors import kernels
from mtactors.kernels import device
from mtactors.kernels.device import DeviceOperations
from tests.kernels.musa.elsewhere import Elsewhere, build_for_gpu
from tests.kernels.musa.emulated import Emulator

NOT_INSTALLED = "device kernels for the host are only in an installation by `make install`"


#: "gpu" where the kernels can run on one.
GPU = ["gpu"] if torch.cuda.is_available() and shutil.which("nvcc") else []


@pytest.fixture(scope="session")
def gpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The device kernels, compiled for the GPU by nvcc."""
    return build_for_gpu(tmp_path_factory.mktemp("nvidia") / "libmtactors_nvidia.so")


@pytest.fixture(params=["emulated", *GPU])
def ops(request: pytest.FixtureRequest) -> DeviceOperations:
    """The operations of the emulated kernels; in another run, of a GPU."""
    if request.param == "gpu":
        if "emulator" in request.fixturenames:
            pytest.skip("watches the emulator")
        return Elsewhere(request.getfixturevalue("gpu_library"), "cuda")
    if device.installed_library("emulated-musa") is None:
        pytest.skip(NOT_INSTALLED)
    made = kernels.load("cpu", "emulated-musa")
    assert isinstance(made, DeviceOperations)
    return made


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """The emulator that `ops` runs in; afterwards launches run as they do by default."""
    path = device.installed_library("emulated-musa")
    if path is None:
        pytest.skip(NOT_INSTALLED)
    opened = Emulator(path)
    yield opened
    opened.configure()
