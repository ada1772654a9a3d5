"""Fixtures of the device kernels' tests: the installed library for the host, and its emulator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mtactors import kernels
from mtactors.kernels import device
from mtactors.kernels.device import DeviceOperations
from tests.kernels.musa.emulated import Emulator

NOT_INSTALLED = "device kernels for the host are only in an installation by `make install`"


@pytest.fixture
def ops() -> DeviceOperations:
    """The operations of the emulated kernels."""
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
