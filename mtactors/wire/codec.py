"""Messages as msgpack frames and back: `encode`, `decode_for_front`, `decode_for_worker`.

A frame is one msgpack array: the tag of `_TAGS`, then the fields of the message in order; a
message inside a message is an array of its fields. The functions that do this are derived from
the dataclass fields once, at import. Knows nothing of sockets, epochs or what messages mean.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

import msgpack  # type: ignore[import-untyped]  # it ships no types

from mtactors.errors import WireError
from mtactors.wire.messages import (
    PROTOCOL_VERSION,
    BlockCopy,
    Configure,
    FrontMessage,
    Hello,
    KnownRow,
    Message,
    NewRow,
    Progress,
    PromptLogprobs,
    Ready,
    SamplerSpec,
    Shutdown,
    StepPlan,
    StepResult,
    TokenLogprobs,
    WorkerFailed,
    WorkerMessage,
)

MAX_FRAME_BYTES = 1 << 28  # 128 rows of 131,072 tokens are 64 MiB
_MAX_TEXT_BYTES = 1 << 22
_MAX_ITEMS = 1 << 16
_INT64_MAX = (1 << 63) - 1
_PRIMITIVES = (int, float, bool, str, bytes)

#: What may be a frame. A tag is never given to another message.
_TAGS: dict[int, type[Message]] = {
    1: Hello,
    2: Configure,
    3: Progress,
    4: Ready,
    5: WorkerFailed,
    6: StepPlan,
    7: StepResult,
    8: Shutdown,
}
#: What occurs inside of those, in the order of dependence.
_PARTS = (SamplerSpec, NewRow, KnownRow, BlockCopy, TokenLogprobs, PromptLogprobs)

_FOR_WORKER = (StepPlan, Configure, Shutdown)
_FOR_FRONT = (StepResult, Hello, Progress, Ready, WorkerFailed)


class _Kept(threading.local):
    """A thread's packer: a new one would ask the system for 256 KiB each time."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer(use_bin_type=True)


_kept = _Kept()

_M = TypeVar("_M")
#: type on the wire, conversion when packing, conversion when unpacking
_FieldCodec = tuple[type, Callable[[Any], Any] | None, Callable[[Any], Any] | None]


def encode(message: Message) -> bytes:
    """Encode a message as one frame.

    Raises:
        WireError: a field holds what its type cannot carry, or the frame would be too large.
    """
    kind = type(message)
    try:
        body = _PACK[kind](message)
        frame = _kept.packer.pack([_TAG_OF[kind], *body])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise WireError(f"{kind.__name__} cannot be encoded: {error}") from error
    if len(frame) > MAX_FRAME_BYTES:
        raise WireError(f"{kind.__name__} of {len(frame)} bytes is above {MAX_FRAME_BYTES}")
    return cast(bytes, frame)


def decode_for_front(frame: bytes) -> WorkerMessage:
    """Decode a frame that a worker sent.

    Raises:
        WireError: it is anything else than a valid message from a worker.
    """
    return cast(WorkerMessage, _decode(frame, _FOR_FRONT))


def decode_for_worker(frame: bytes) -> FrontMessage:
    """Decode a frame that the front sent.

    Raises:
        WireError: it is anything else than a valid message from the front.
    """
    return cast(FrontMessage, _decode(frame, _FOR_WORKER))


def _decode(frame: bytes, allowed: tuple[type[Message], ...]) -> Message:
    body = _unpack_frame(frame)
    if type(body) is not tuple or not body or type(body[0]) is not int:
        raise WireError("a frame must be an array that begins with a tag")
    kind = _TAGS.get(body[0])
    if kind is None:
        raise WireError(f"unknown tag {body[0]}")
    if kind not in allowed:
        raise WireError(f"{kind.__name__} travels in the other direction")
    values = body[1:]
    if kind in _VERSIONED and values and values[0] != PROTOCOL_VERSION:
        raise WireError(
            f"{kind.__name__} of protocol version {values[0]!r}, this side speaks "
            f"{PROTOCOL_VERSION}"
        )
    return cast(Message, _UNPACK[kind](values))


def _unpack_frame(frame: bytes) -> object:
    if len(frame) > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(frame)} bytes is above {MAX_FRAME_BYTES}")
    try:
        return cast(
            object,
            msgpack.unpackb(
                frame,
                raw=False,
                use_list=False,
                strict_map_key=True,
                max_str_len=_MAX_TEXT_BYTES,
                max_bin_len=MAX_FRAME_BYTES,
                max_array_len=_MAX_ITEMS,
                max_map_len=0,
                max_ext_len=0,
            ),
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"a frame is not msgpack: {error or type(error).__name__}") from error


def _pack_numbers(code: str) -> Callable[[list[Any]], bytes]:
    def pack(values: list[Any]) -> bytes:
        if not values:
            return b""
        numbers = array(code, values)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tobytes()

    return pack


def _unpack_numbers(code: str) -> Callable[[bytes], list[Any]]:
    def unpack(data: bytes) -> list[Any]:
        if not data:
            return []
        if len(data) % 4:
            raise WireError(f"{len(data)} bytes are not a list of 4-byte numbers")
        numbers = array(code)
        numbers.frombytes(data)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()

    return unpack


def _pack_items(kind: type) -> Callable[[list[Any]], list[Any]]:
    pack_item = _PACK[kind]
    return lambda items: [pack_item(item) for item in items]


def _unpack_items(kind: type) -> Callable[[tuple[Any, ...]], list[Any]]:
    unpack_item = _UNPACK[kind]
    return lambda items: [unpack_item(item) for item in items]


def _field_codec(hint: object) -> _FieldCodec:
    if hint is float:
        return float, float, None  # an int where a float belongs is a float
    if hint in _PRIMITIVES:
        return cast(type, hint), None, None
    if get_origin(hint) is Annotated:
        code = {"<i4": "i", "<f4": "f"}[get_args(hint)[1]]
        return bytes, _pack_numbers(code), _unpack_numbers(code)
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        return tuple, _pack_items(item), _unpack_items(item)
    part = cast(type, hint)
    return tuple, _PACK[part], _UNPACK[part]


def _packer(kind: type, codecs: list[_FieldCodec]) -> Callable[[Any], list[Any]]:
    get = attrgetter(*(field.name for field in fields(kind)))
    conversions = [(i, pack) for i, (_, pack, _) in enumerate(codecs) if pack is not None]

    def pack(message: object) -> list[Any]:
        values = list(get(message))
        for i, convert in conversions:
            values[i] = convert(values[i])
        return values

    return pack


def _unpacker(kind: type[_M], codecs: list[_FieldCodec]) -> Callable[[object], _M]:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    types = tuple(wire_type for wire_type, _, _ in codecs)
    conversions = [(i, unpack) for i, (_, _, unpack) in enumerate(codecs) if unpack is not None]
    integers = [i for i, wire_type in enumerate(types) if wire_type is int]
    # itemgetter of one index returns the item itself; the same index twice keeps it a tuple.
    get_integers = itemgetter(*integers, integers[0]) if integers else None

    def unpack(values: object) -> _M:
        if type(values) is not tuple or tuple(map(type, values)) != types:
            _refuse(kind, names, types, values)
        if get_integers is not None and max(get_integers(values)) > _INT64_MAX:
            raise WireError(f"{kind.__name__} has an integer beyond 64 bits")
        arguments = list(values)
        for i, convert in conversions:
            arguments[i] = convert(arguments[i])
        return kind(*arguments)

    return unpack


def _refuse(kind: type, names: list[str], types: tuple[type, ...], values: object) -> NoReturn:
    if type(values) is not tuple or len(values) != len(names):
        got = f"{len(values)} fields" if type(values) is tuple else type(values).__name__
        raise WireError(f"{kind.__name__} has {len(names)} fields, got {got}")
    for name, expected, value in zip(names, types, values, strict=True):
        if type(value) is not expected:
            raise WireError(
                f"{kind.__name__}.{name} is {expected.__name__} on the wire, "
                f"got {type(value).__name__}"
            )
    raise AssertionError("called for a message whose types are right")


_PACK: dict[type, Callable[[Any], list[Any]]] = {}
_UNPACK: dict[type, Callable[[Any], Any]] = {}
for _kind in (*_PARTS, *_TAGS.values()):
    _hints = get_type_hints(_kind, include_extras=True)
    _codecs = [_field_codec(_hints[field.name]) for field in fields(_kind)]
    _PACK[_kind] = _packer(_kind, _codecs)
    _UNPACK[_kind] = _unpacker(_kind, _codecs)
_TAG_OF: dict[type, int] = {kind: tag for tag, kind in _TAGS.items()}
# A Hello of another version must reach the front, which refuses the worker and names both
# versions: its four fields never change.
_VERSIONED = (StepPlan, Configure)
