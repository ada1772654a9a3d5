"""The sockets between the front and its workers: `FrontChannel` (ROUTER), `WorkerChannel` (DEALER).

Both speak messages, never bytes, with one exception: the front encodes a message once and sends
the same frame to every rank. A frame that is no valid message, or comes from a stranger, is
logged, counted and dropped. They know nothing of epochs' meaning, sequence numbers or credit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import zmq

from mtactors.errors import ChannelError, WireError
from mtactors.wire.codec import MAX_FRAME_BYTES, decode_for_front, decode_for_worker, encode
from mtactors.wire.messages import FrontMessage, WorkerMessage

logger = logging.getLogger(__name__)

# Credit keeps at most two plans unanswered; beside them a Configure or a Shutdown may wait.
_HIGH_WATER_MARK = 8
_FRAMES_PER_WAKEUP = 64
# A plain number: arithmetic with its flag type takes microseconds.
_READABLE = int(zmq.POLLIN)
_SEND_TIMEOUT_MS = 10_000
_LINGER_MS = 2_000
#: Longest file name of a Unix socket that every supported system takes, in bytes.
MAX_SOCKET_PATH = 100


def worker_identity(epoch: int, rank: int) -> bytes:
    """Return the name under which a worker connects."""
    return b"worker-%d-%d" % (epoch, rank)


class FrontChannel:
    """The front's end of an epoch: one socket, all ranks.

    Must be made and used on the event loop that receives. `on_message(rank, message)` is called
    on that loop for each valid message, in order per rank; it must not block or raise.

    Args:
        path: the socket file to bind, in a directory that only this user can enter.
        epoch: workers of any other epoch are strangers.
        world_size: ranks 0 .. world_size-1 are known.
        on_message: takes each message.

    Attributes:
        dropped: frames that were thrown away.
    """

    def __init__(
        self,
        path: Path,
        epoch: int,
        world_size: int,
        on_message: Callable[[int, WorkerMessage], None],
    ) -> None:
        self._ranks = {worker_identity(epoch, rank): rank for rank in range(world_size)}
        self._identities = {rank: identity for identity, rank in self._ranks.items()}
        self._on_message = on_message
        self._path = path
        self.address = f"ipc://{path}"
        self.dropped = 0
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.Handle | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # A plain ROUTER throws away what it cannot route; a mandatory one says so.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(self.address)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise ChannelError(f"cannot bind {path}: {error}") from error
        self._descriptor = cast(int, self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self._receive)

    def send(self, rank: int, frame: bytes) -> None:
        """Send an encoded message to a rank; never waits.

        Raises:
            ChannelError: the rank is not connected, or has stopped reading.
        """
        try:
            self._socket.send_multipart((self._identities[rank], frame), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            why = "does not read" if error.errno == zmq.EAGAIN else "is not connected"
            raise ChannelError(f"worker rank {rank} {why}") from error
        self._receive_later()

    def broadcast(self, frame: bytes) -> None:
        """Send the same frame to every rank.

        Raises:
            ChannelError: a rank is not connected, or has stopped reading.
        """
        for rank in self._identities:
            self.send(rank, frame)

    def unlink(self) -> None:
        """Remove the socket file; connections stay, nobody else can connect."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Drop the connections and the socket file. Closing twice is allowed."""
        if self._socket.closed:
            return
        self._loop.remove_reader(self._descriptor)
        if self._again is not None:
            self._again.cancel()
        self._socket.close()
        self._context.term()
        self.unlink()

    def _receive_later(self) -> None:
        # The descriptor signals changes only, and any call into the socket may swallow one: look
        # again after each send, and after each receive that left something behind.
        if self._again is None:
            self._again = self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for _ in range(_FRAMES_PER_WAKEUP):
            if self._socket.closed:  # by on_message
                return
            # Asked, because an exception each time that nothing is there costs more.
            if not cast(int, self._socket.getsockopt(zmq.EVENTS)) & _READABLE:
                return
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(parts)
        self._receive_later()

    def _take(self, parts: list[bytes]) -> None:
        rank = self._ranks.get(parts[0])
        if rank is None:
            self._drop("a stranger", f"sent {len(parts) - 1} parts as {parts[0][:32]!r}")
        elif len(parts) != 2:
            self._drop(f"worker rank {rank}", f"sent a message of {len(parts) - 1} parts")
        else:
            try:
                message = decode_for_front(parts[1])
            except WireError as error:
                self._drop(f"worker rank {rank}", str(error))
            else:
                self._on_message(rank, message)

    def _drop(self, sender: str, reason: str) -> None:
        self.dropped += 1
        _log_drop(self.dropped, sender, reason)


class WorkerChannel:
    """A worker's end: blocking, one thread.

    Args:
        address: as `FrontChannel.address`.
        epoch: this worker's epoch.
        rank: this worker's rank.

    Attributes:
        dropped: frames that were thrown away.
    """

    def __init__(self, address: str, epoch: int, rank: int) -> None:
        self.dropped = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, worker_identity(epoch, rank))
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.SNDTIMEO, _SEND_TIMEOUT_MS)
        # A WorkerFailed must get out although the process is about to exit.
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.connect(address)

    def send(self, message: WorkerMessage) -> None:
        """Send a message to the front.

        Raises:
            ChannelError: the front has not taken messages for ten seconds.
            WireError: the message cannot be encoded.
        """
        frame = encode(message)
        try:
            self._socket.send(frame)
        except zmq.Again as error:
            raise ChannelError("the front does not read") from error

    def recv(self, timeout: float | None = None) -> FrontMessage | None:
        """Wait for the next message; None when `timeout` seconds have passed without one."""
        milliseconds = None if timeout is None else int(timeout * 1000)
        while (parts := self._take(milliseconds)) is not None:
            try:
                if len(parts) != 1:
                    raise WireError(f"a message of {len(parts)} parts")
                return decode_for_worker(parts[0])
            except WireError as error:
                self.dropped += 1
                _log_drop(self.dropped, "the front", str(error))
        return None

    def _take(self, milliseconds: int | None) -> list[bytes] | None:
        """Return the parts of the next message; None when none has come in time."""
        try:  # mostly it is there: it came while a step ran
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            came = self._socket.poll(milliseconds)
        return self._socket.recv_multipart() if came else None

    def close(self) -> None:
        """Send what is still unsent, for two seconds at most, and disconnect."""
        self._socket.close()
        self._context.term()


def _log_drop(count: int, sender: str, reason: str) -> None:
    if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: a storm must not fill the disk
        logger.warning("dropped frame %d: %s: %s", count, sender, reason)
