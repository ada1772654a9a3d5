"""Opening a library of device kernels and calling it: what is refused, said, handed over.

A library in C that computes nothing stands for the devices' own (fake_library.c); what the
kernels compute is tested in tests/kernels/musa.
"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtactors import kernels
from mtactors.errors import ConfigError
from mtactors.kernels import AttentionBatch, device, reference
from mtactors.kernels.device import DeviceOperations
from tests.source_tree import ROOT

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile the library with definitions, once each."""
    made: dict[tuple[str, ...], Path] = {}

    def compile_with(*definitions: str) -> Path:
        if definitions not in made:
            path = tmp_path_factory.mktemp("library") / "libfake.so"
            source = Path(__file__).with_name("fake_library.c")
            compiler = os.environ.get("CXX", "c++").split()
            subprocess.run(
                [
                    *compiler,
                    *("-x", "c++", "-std=c++17", "-shared", "-fPIC", "-fpermissive"),
                    *(f"-D{definition}" for definition in definitions),
                    f"-I{ROOT / 'kernels'}",
                    str(source),
                    *("-o", str(path)),
                ],
                check=True,
            )
            made[definitions] = path
        return made[definitions]

    return compile_with


class Told:
    """The library's own variables."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.answer = ctypes.c_int.in_dll(library, "answer")
        self.wants = ctypes.c_int64.in_dll(library, "wants")
        self.calls = ctypes.c_int.in_dll(library, "calls")
        self.stream = ctypes.c_void_p.in_dll(library, "stream")
        self.workspace = ctypes.c_void_p.in_dll(library, "workspace")
        self.workspace_bytes = ctypes.c_int64.in_dll(library, "workspace_bytes")


@pytest.fixture
def told(build: Build) -> Iterator[Told]:
    variables = Told(build())
    variables.answer.value = variables.wants.value = variables.calls.value = 0
    yield variables
    variables.answer.value = variables.wants.value = 0


@pytest.fixture
def ops(build: Build, told: Told) -> DeviceOperations:
    return device.open_library(str(build()))


def attend(ops: DeviceOperations) -> None:
    q, cache = torch.zeros(1, 2, 32), torch.zeros(1, 16, 2, 32)
    batch = AttentionBatch(
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.tensor([1], dtype=torch.int32),
        block_tables=torch.tensor([[0]], dtype=torch.int32),
        slot_mapping=torch.tensor([0]),
    )
    ops.paged_attention(q, cache, cache, batch, 1.0)


def test_what_runs_is_told(ops: DeviceOperations, build: Build) -> None:
    assert ops.name == "emulated-musa"
    info = ops.info()
    assert (info.arch, info.warp_size, info.multiprocessors) == (220, 128, 48)
    assert (info.shared_bytes_per_block, info.kind, info.path) == (28672, "emulated", str(build()))
    assert info.own == tuple(device.OPERATIONS) and info.reference == ()
    with pytest.raises(ConfigError, match=r"libfake.so: device 3: the seventh seal \(code 7\)"):
        ops.info(3)


def test_the_operations_are_those_of_the_table() -> None:
    table = {name for name in vars(kernels.Operations) if not name.startswith("_")}
    assert table - {"name", "pack_linear", "linear"} == set(device.OPERATIONS)


def test_an_error_names_operation_shapes_and_text(ops: DeviceOperations, told: Told) -> None:
    told.answer.value = 7
    expected = r"rms_norm of \(2, 8\) float16 failed: the seventh seal \(code 7\)"
    with pytest.raises(RuntimeError, match=expected):
        ops.rms_norm(torch.zeros(2, 8).half(), torch.ones(8).half(), 1e-5)


def test_a_shape_without_a_kernel_is_refused_with_the_way_out(
    ops: DeviceOperations, told: Told, build: Build
) -> None:
    told.answer.value = -1
    way_out = r"silu_and_mul of \(2, 8\) float32: .*--kernels \S*/libfake.so,-silu_and_mul lets"
    with pytest.raises(ConfigError, match=way_out):
        ops.silu_and_mul(torch.zeros(2, 8))
    without = device.open_library(str(build()), off=frozenset({"silu_and_mul"}))
    assert without.silu_and_mul(torch.ones(2, 8)).shape == (2, 4)
    assert told.calls.value == 1
    with pytest.raises(ConfigError, match=r"libfake.so,-embedding,-silu_and_mul lets"):
        without.embedding(torch.zeros(1, dtype=torch.int32), ops.pack_linear(torch.ones(2, 8)))


def test_scratch_is_made_when_it_is_asked_for_and_kept(ops: DeviceOperations, told: Told) -> None:
    attend(ops)
    assert (told.workspace.value, told.workspace_bytes.value) == (None, 0)
    told.wants.value = 1000
    attend(ops)
    first = told.workspace.value
    assert first is not None and first % 256 == 0 and told.workspace_bytes.value >= 1000
    told.wants.value = 500
    attend(ops)
    assert told.workspace.value == first
    told.wants.value = 5000
    attend(ops)
    assert told.workspace_bytes.value >= 5000
    assert told.calls.value == 4  # none was started with too little
    told.wants.value = -1
    with pytest.raises(ConfigError, match="paged_attention"):
        attend(ops)
    assert told.calls.value == 4


def test_kernels_run_in_the_current_queue_of_the_tensors_device(
    build: Build, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "meta" stands for a device: it has tensors everywhere, and nothing reads them here.
    queue = SimpleNamespace(meta_stream=0x1234)
    monkeypatch.setattr(
        torch, "meta", SimpleNamespace(current_stream=lambda device: queue), raising=False
    )
    ops = device.open_library(str(build()), device_type="meta")
    out = ops.rms_norm(torch.zeros(2, 8, device="meta"), torch.ones(8, device="meta"), 1e-5)
    assert out.device.type == "meta" and told.stream.value == 0x1234
    weight = ops.pack_linear(torch.zeros(4, 8, device="meta"))
    rounded = ops.linear(torch.zeros(2, 8, device="meta"), weight, out_dtype=torch.float32)
    assert (rounded.shape, rounded.dtype) == ((2, 4), torch.float32)


def test_tensors_elsewhere_are_refused(ops: DeviceOperations, told: Told) -> None:
    near, far = torch.zeros(2, 8), torch.zeros(2, 8, device="meta")
    with pytest.raises(ValueError, match="on meta, these kernels run on cpu"):
        ops.silu_and_mul(far)
    with pytest.raises(ValueError, match="a norm or bias is on meta, not on cpu"):
        ops.rms_norm(near, torch.zeros(8, device="meta"), 1e-5)
    with pytest.raises(ValueError, match="residual is on meta"):
        ops.add_rms_norm(near, far, torch.zeros(8), 1e-5)
    with pytest.raises(ValueError, match="a weight is on meta"):
        ops.embedding(torch.zeros(1, dtype=torch.int32), reference.PlainLinear(far))
    packed = kernels.load("cpu").pack_linear(near)
    with pytest.raises(TypeError, match="packed by another implementation"):
        ops.embedding(torch.zeros(1, dtype=torch.int32), packed)
    with pytest.raises(ValueError, match="float64 is none of"):
        ops.silu_and_mul(near.double())
    assert told.calls.value == 0


def test_an_operation_that_is_lacking_is_the_references_and_said_once(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mtactors.kernels.device"):
        ops = device.open_library(str(build("LACKS_ROPE")), off=frozenset({"sample"}))
    assert [record.getMessage() for record in caplog.records] == [
        "kernels: rope runs in plain torch, slowly: libfake.so has no kernel for it",
        "kernels: sample runs in plain torch, slowly: it was switched off",
    ]
    assert ops.name == "emulated-musa (reference: rope, sample)"
    assert ops.info().reference == ("rope", "sample")
    assert "rope" not in ops.info().own
    q, rows = torch.randn(1, 1, 8), torch.zeros(1, dtype=torch.int32)
    expected, k, cos_sin = q.clone(), q.clone(), torch.randn(1, 8)
    reference.OPERATIONS.rope(expected, k.clone(), rows, cos_sin, "half")
    ops.rope(q, k, rows, cos_sin, "half")
    assert torch.equal(q, expected) and torch.equal(k, expected)


def test_a_library_of_another_version_is_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"libfake.so cannot be used: .*version 1 .*build it aga"):
        device.open_library(str(build("VERSION=1")))


def test_what_is_no_library_is_refused(tmp_path: Path, build: Build) -> None:
    with pytest.raises(ConfigError, match=r"gone.so cannot be used: .*No such file"):
        device.open_library(str(tmp_path / "gone.so"))
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(ConfigError, match=r"text.so cannot be used"):
        device.open_library(str(tmp_path / "text.so"))
    with pytest.raises(ConfigError, match="no mt_device_abi_version"):
        device.open_library(kernels._native.__file__)
    with pytest.raises(ConfigError, match="a library for 'abacus', not MUSA"):
        device.open_library(str(build('KIND="abacus"')))


def test_a_path_is_loaded_where_its_device_is(build: Build, told: Told) -> None:
    assert kernels.load("cpu", str(build())).name == "emulated-musa"
    nvidia = str(build('KIND="nvidia"'))
    assert kernels.load("cuda", nvidia).name == "nvidia-musa"
    with pytest.raises(ConfigError, match="does not run on the device 'cpu'"):
        kernels.load("cpu", nvidia)
    with pytest.raises(ConfigError, match="does not run on the device 'musa'"):
        kernels.load("musa", "emulated-musa")


def test_auto_takes_what_is_installed(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "_INSTALLED", tmp_path)
    (tmp_path / "musa-build.txt").write_text("not built: no bin/mcc in /opt\n")
    with caplog.at_level(logging.WARNING, "mtactors.kernels.device"):
        assert kernels.load("musa").name == "reference"
    assert "slowly: MUSA kernels not built: no bin/mcc in /opt" in caplog.text
    with pytest.raises(ConfigError, match="the MUSA kernels were not built: no bin/mcc in /opt"):
        kernels.load("musa", "musa")
    with pytest.raises(ConfigError, match="'emulated-musa' is only in an installation by"):
        kernels.load("cpu", "emulated-musa")
    installed = tmp_path / "libmtactors_musa.so"
    installed.write_text("half a library")
    with pytest.raises(ConfigError, match="cannot be used"):  # broken is not the same as absent
        kernels.load("musa")
    installed.unlink()
    installed.symlink_to(build('KIND="musa"'))
    assert kernels.load("musa").name == kernels.load("musa", "musa").name == "musa"
    assert kernels.load("musa", "auto,-rope").name == "musa (reference: rope)"
    assert kernels.load("cuda").name == "reference"


@pytest.mark.parametrize("name", ["musa,rope", "musa,-linear", "musa,", "emulated-musa,-rope,x"])
def test_words_that_name_no_operation_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is none of -embedding, "):
        kernels.load("musa", name)


@pytest.mark.parametrize("name", ["cpu,-rope", "reference,-rope", "auto,-rope"])
def test_only_device_kernels_leave_operations_to_torch(name: str) -> None:
    with pytest.raises(ConfigError, match="only MUSA's kernels leave operations"):
        kernels.load("cpu", name)
