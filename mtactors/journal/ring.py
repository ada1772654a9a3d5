"""The files of a journal: `segment-<number>` in a directory, the oldest of which make room.

What is appended is handed to the system at once, unbuffered: it outlives this process, however it
ends, but not the machine. Knows nothing of what is in a segment but how it begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path

from mtactors.errors import JournalError
from mtactors.journal.records import MAGIC

_NAME = re.compile(r"segment-(\d{8,})")
_LOCK = "lock"
_PARTS = 8


def segments(directory: Path) -> dict[int, Path]:
    """Return the segments of a journal by number, in order.

    Raises:
        OSError: the directory cannot be read.
    """
    found = {}
    for name in os.listdir(directory):
        if match := _NAME.fullmatch(name):
            found[int(match[1])] = directory / name
    return dict(sorted(found.items()))


class Ring:
    """Writes one segment after another.

    A segment is full at an eighth of `max_bytes`, or when it has doubled since it was opened if
    that is more. Old segments go as long as there are more than two and they take more than
    `max_bytes`, with room for the one being written; those of earlier runs go first.

    Args:
        directory: is made, for this user only.

    Raises:
        JournalError: another process writes there.
        OSError: it cannot be used.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._max_bytes = max_bytes
        self._file = -1
        self._lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = segments(directory)
            self._sizes = {number: path.stat().st_size for number, path in found.items()}
        except BlockingIOError as error:
            os.close(self._lock)
            raise JournalError(f"{directory} is the journal of another engine that runs") from error
        except BaseException:
            os.close(self._lock)
            raise
        self._number = max(self._sizes, default=0)
        self._opened_at = 0

    @property
    def full(self) -> bool:
        """Whether the next segment is due."""
        if self._file < 0:
            return True
        grown = self._sizes[self._number] - self._opened_at
        return grown >= max(self._max_bytes // _PARTS, self._opened_at)

    def open_segment(self, opening: bytes) -> None:
        """Begin the next segment, with what it opens with, and remove the oldest ones.

        Raises:
            OSError: the disk does not take it; close the ring then.
        """
        self._close_file()
        self._number += 1
        path = self._directory / f"segment-{self._number:08d}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._sizes[self._number] = 0
        self.append(MAGIC + opening)
        self._opened_at = self._sizes[self._number]
        room = self._max_bytes - self._max_bytes // _PARTS
        while len(self._sizes) > 2 and sum(self._sizes.values()) > room:
            oldest = min(self._sizes)
            with contextlib.suppress(FileNotFoundError):
                (self._directory / f"segment-{oldest:08d}").unlink()
            del self._sizes[oldest]

    def append(self, data: bytes) -> None:
        """Append whole records to the segment.

        Raises:
            OSError: the disk does not take them; none of their bytes are left.
        """
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:] if written else data)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._sizes[self._number])
            raise
        self._sizes[self._number] += written

    def close(self) -> None:
        """Close the segment and let others have the directory. May be repeated."""
        self._close_file()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
