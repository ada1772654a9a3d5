"""Every exception that mtactors raises on purpose.

    MtactorsError                  base; str(error) is one line that a user can act on
    ├── UsageError                 the caller asked for something impossible; exit code 2
    │   ├── ConfigError            an engine argument: names field, value and allowed range
    │   ├── RequestError           a request: names the field in `param`; HTTP 400
    │   │   └── PromptTooLongError
    │   ├── ModelError             the model argument or its files
    │   │   ├── ModelNotFoundError     no such directory, file, or hub name
    │   │   └── CheckpointError        files missing, altered, or of another layout
    │   └── JournalError           a journal that cannot be written or replayed here
    ├── WireError                  a frame that is not a valid message
    ├── ChannelError               the other end of a channel is gone or does not read
    ├── QueueFullError             admission refused, try later; HTTP 429
    ├── EngineUnavailableError     loading, draining or beyond repair; HTTP 503
    ├── RequestQuarantinedError    the request killed its workers each time; HTTP 500
    └── EngineDeadError            the worker group died with the request open; HTTP 500
        └── WorkerStartError       a worker failed before it was ready; exit code 1

It knows nothing about HTTP bodies or terminals: `entrypoints` renders these.
"""

from __future__ import annotations


class MtactorsError(Exception):
    """Base of all errors raised on purpose; its text is one line that says what to do."""


class UsageError(MtactorsError):
    """The caller asked for something that cannot be done as asked."""


class ConfigError(UsageError):
    """An engine argument is wrong.

    Args:
        field: the argument's name as the user typed it, or would.
        message: what is wrong, with the value and the allowed range.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class RequestError(UsageError):
    """A request is wrong; `param` names the offending field in OpenAI's spelling, or is None."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestError):
    """The prompt leaves no room for a token within `max_model_len`."""


class ModelError(UsageError):
    """Something is wrong with the model argument or the files behind it."""


class ModelNotFoundError(ModelError):
    """The model argument names no directory, file or reachable hub repository."""


class CheckpointError(ModelError):
    """Files of a checkpoint are missing, altered or of an unknown layout."""


class JournalError(UsageError):
    """A directory is no journal, or one that cannot be written or replayed here."""


class WireError(MtactorsError):
    """A frame is not a valid message of this protocol version."""


class ChannelError(MtactorsError):
    """The other end of a channel is gone or does not read, or the channel cannot be made."""


class QueueFullError(MtactorsError):
    """The bounded queue is full; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailableError(MtactorsError):
    """The engine takes no requests: loading, draining or beyond repair; `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestQuarantinedError(MtactorsError):
    """The workers died of this request each time that they computed it alone."""


class EngineDeadError(MtactorsError):
    """The worker group is gone and this request cannot be finished."""


class WorkerStartError(EngineDeadError):
    """A worker failed, or died, before it reported Ready."""
