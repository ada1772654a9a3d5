"""What is in a segment: records, one after the other, each read without the ones before.

A segment is the line `MAGIC` and then records: the length of the payload (uint32, little-endian),
the kind (one byte), the payload. GROUP is a JSON object that describes the worker group, the
others are frames of `wire.codec`:

    GROUP   a group begins; the journal's own first record as well
    ROWS    a plan whose new rows are all that hold a slot after the plan of its number
    PLAN    as it was sent
    RESULT  as it came, without logprobs

ROWS follows each GROUP. A process that is killed may leave half a record at the end. Knows nothing
of which files there are.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from mtactors.errors import JournalError, WireError
from mtactors.wire.codec import decode_for_worker, encode
from mtactors.wire.messages import Configure

MAGIC = b"mtactors journal 1\n"
_HEAD = struct.Struct("<IB")


class Kind(IntEnum):
    """What a record holds."""

    GROUP = 1
    ROWS = 2
    PLAN = 3
    RESULT = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `place` says where it was found, for people."""

    kind: Kind
    payload: bytes
    place: str


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A worker group and how it was started: all that it takes to start one like it.

    Args:
        run: of the front; the same in all segments that one engine writes.
        created: seconds since 1970.
        build: as `build_name`.
        prompts: whether token ids are recorded; they are zeros otherwise.
        configure: as rank 0 was told.
        kernels: implementation and instruction set, by rank.
        num_blocks: blocks of the KV cache. `kv_bytes`: what they take on a rank.
    """

    run: str
    epoch: int
    created: float
    build: str
    prompts: bool
    configure: Configure
    kernels: tuple[str, ...]
    devices: tuple[str, ...]
    num_blocks: int
    kv_bytes: int

    def encode(self) -> bytes:
        """Return the payload of a GROUP record."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> GroupFacts:
        """Read the payload of a GROUP record.

        Raises:
            ValueError: it is none of this version.
        """
        values = _fields(cls, json.loads(payload))
        for name in ("kernels", "devices"):
            values[name] = tuple(map(str, values[name]))
        configure = Configure(**_fields(Configure, values["configure"]))
        try:
            values["configure"] = decode_for_worker(encode(configure))  # which checks the types
        except WireError as error:
            raise ValueError(str(error)) from error
        for name in ("num_blocks", "kv_bytes", "epoch"):
            if not isinstance(values[name], int) or values[name] < 1:
                raise ValueError(f"{name} is {values[name]!r}")
        return cls(**values)


def pack(kind: Kind, payload: bytes) -> bytes:
    """Return a record."""
    return _HEAD.pack(len(payload), kind) + payload


def read_records(path: Path) -> Iterator[Record]:
    """Yield the whole records of a segment; half a record at its end is left out.

    Raises:
        JournalError: the file cannot be read, is no segment, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}") from error
    if not data.startswith(MAGIC):
        if MAGIC.startswith(data):  # killed as it was made
            return
        raise JournalError(f"{path} is no segment of a journal, or one of another version")
    at = len(MAGIC)
    while at + _HEAD.size <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        place = f"{path.name}, byte {at}"
        if kind not in Kind.__members__.values():
            raise JournalError(f"the journal is damaged: no record begins at {place}")
        at += _HEAD.size
        if at + length > len(data):
            return
        yield Record(Kind(kind), data[at : at + length], place)
        at += length


def _fields(kind: type, values: object) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"no {kind.__name__} of this version")
    return values
