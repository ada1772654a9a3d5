"""Every operation of the fake cards: the CPU's, over the same bytes."""

# What this imitates is written in C++, or not typed.
# mypy: disable-error-code="no-untyped-call,no-any-return,attr-defined"
from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torch_musa import memory

_HOST = torch.device("cpu")
# What torch may make of F.linear.
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear")
_libraries: list[torch.library.Library] = []


# Torch would make an empty result for these and let it grow, which these tensors cannot.
_GROWING = ("arange", "arange.start", "arange.start_step", "logsumexp")


def register() -> None:
    """Take over every operation that nobody else has for this device."""
    every = torch.library.Library("_", "IMPL")
    every.fallback(_run, "PrivateUse1")
    some = torch.library.Library("aten", "IMPL")
    some.impl("_copy_from", _copy, "PrivateUse1")
    for name in _GROWING:
        base, _, overload = name.partition(".")
        made = getattr(getattr(torch.ops.aten, base), overload or "default")
        some.impl(name, _factory(made), "PrivateUse1")
    _libraries.extend((every, some))


def _factory(operation: Any) -> Any:
    return lambda *args, **kwargs: _run(operation, *args, **kwargs)


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    host = [memory.on_host(t) if t.device.type == "musa" else t for t in (source, target)]
    host[1].copy_(host[0])
    return target


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    args = _wrapped_numbers(operation, args)
    _check_devices(operation, [*args, *kwargs.values()])
    hosts = _Hosts()
    host_args, host_kwargs = pytree.tree_map(hosts.to_host, (args, kwargs))
    result = operation(*host_args, **host_kwargs)
    if str(operation._schema.name) in _PRODUCTS and _is_broken("matmul"):
        result[..., -1] += 1
    if "aten::empty" in str(operation._schema.name) and result.is_floating_point():
        result.fill_(float("nan"))  # what nobody has written must not be read
    return pytree.tree_map(hosts.to_card, result)


class _Hosts:
    """The host's view of what one operation is given, and the way back."""

    def __init__(self) -> None:
        self._index = 0
        self._given: list[tuple[Tensor, Tensor]] = []

    def to_host(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            self._index = value.index or 0
            return _HOST
        if not isinstance(value, Tensor) or value.device.type != "musa":
            return value
        self._index = value.device.index or 0
        host = memory.on_host(value)
        self._given.append((host, value))
        return host

    def to_card(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return value
        for host, card in self._given:
            if value is host:
                return card
            theirs = host.untyped_storage().data_ptr()
            if theirs and value.untyped_storage().data_ptr() == theirs:
                return _view(card, value)
        return memory.new_on_card(value, self._index)


def _view(card: Tensor, value: Tensor) -> Tensor:
    """Return of a card's tensor the view that `value` is of its host's."""
    if value.dtype is not card.dtype:
        raise NotImplementedError("views of another dtype")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    view: Tensor = torch.ops.aten.as_strided.default.redispatch(
        keys, card, value.shape, value.stride(), value.storage_offset()
    )
    return view


def _wrapped_numbers(operation: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with tensors where the schema has them and a number came."""
    wanted = operation._schema.arguments
    return tuple(
        torch.tensor(value)
        if isinstance(value, (bool, int, float)) and str(argument.type) == "Tensor"
        else value
        for value, argument in zip(args, wanted, strict=False)
    )


def _check_devices(operation: Any, values: list[Any]) -> None:
    """Refuse what a card refuses: only a number of no dimension may come from the host."""
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    if any(leaf.device.type != "musa" and leaf.dim() for leaf in tensors):
        raise RuntimeError(
            f"{operation}: Expected all tensors to be on the same device, but found at least two "
            "devices, musa:0 and cpu!"
        )


def _is_broken(part: str) -> bool:
    return part in os.environ.get("FAKE_MUSA_BROKEN", "")
