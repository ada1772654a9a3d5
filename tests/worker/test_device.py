from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mtactors.errors import ConfigError
from mtactors.worker import device


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_cpu_is_always_there() -> None:
    cpu = device.open_device("cpu", 5)
    assert device.unavailable("cpu") is None
    assert cpu.kind == "cpu"
    assert cpu.name
    assert cpu.torch_device == torch.device("cpu")
    memory = cpu.memory()
    assert memory.shared
    assert 0 < memory.free <= memory.total
    cpu.synchronize()
    assert cpu.capability is None
    assert cpu.stream == 0


def test_moments_on_the_cpu_are_in_order() -> None:
    cpu = device.open_device("cpu")
    first = cpu.record()
    assert cpu.peak_of(lambda: None) is None
    last = cpu.record()
    last.synchronize()
    assert first.milliseconds_until(last) >= 0


@pytest.mark.usefixtures("threads")
def test_threads_are_set_as_asked_or_from_the_host() -> None:
    cpu = device.open_device("cpu")
    assert cpu.set_threads(3, 1) == 3
    assert torch.get_num_threads() == 3
    chosen = cpu.set_threads(0, 1)
    assert 1 <= chosen <= len(os.sched_getaffinity(0))
    assert cpu.set_threads(0, 1000) == 1


def test_seeding_repeats_torchs_numbers() -> None:
    cpu = device.open_device("cpu")
    cpu.seed(3)
    first = torch.rand(4)
    cpu.seed(3)
    assert torch.equal(first, torch.rand(4))


def test_an_absent_device_says_why() -> None:
    if device.unavailable("musa") is None:
        pytest.skip("a MUSA device is here")
    with pytest.raises(ConfigError, match=r"torch_musa is not installed.*no card.*--device cpu"):
        device.open_device("musa")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_torch_without_cuda_says_so() -> None:
    with pytest.raises(ConfigError, match="cuda is not available: this torch was built without it"):
        device.open_device("cuda")


def test_an_unknown_device_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="cpu, musa, cuda"):
        device.open_device("tpu")
