"""The errors of the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class EngineError(Exception):
    """Base of every error that this package raises."""


class ModelLoadError(EngineError):
    """A model could not be loaded; the message is one line and ends with the remedy."""


class InvalidRequest(EngineError, ValueError):  # noqa: N818 - a public name
    """A request was refused before it was queued: a field has an invalid value."""

    def __init__(self, field: str, value: object, expected: str, message: str = "") -> None:
        self.field = field
        self.value = value
        self.expected = expected
        usual = f"{shortened(value)} is not valid; expected {expected}"
        super().__init__(f"{field}: {message or usual}")


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room in a sequence's context for a new token."""

    def __init__(self, prompt_tokens: int, ctx_size: int, field: str = "prompt") -> None:
        self.prompt_tokens = prompt_tokens
        self.ctx_size = ctx_size
        super().__init__(
            field,
            f"{prompt_tokens} tokens",
            f"at most {ctx_size - 1} tokens",
            # The words by which clients of llama-server, OpenAI and Anthropic recognize this.
            f"prompt is too long: {prompt_tokens} tokens > {ctx_size - 1} maximum; it exceeds the "
            f"available context size: this model's maximum context length is {ctx_size} tokens, "
            "one of them for the answer",
        )


class InputTooLong(InvalidRequest):
    """An input to embed or rank has more tokens than the model can read."""

    def __init__(self, field: str, tokens: int, longest: int, trained: int) -> None:
        remedy = "shorten it"
        if longest < trained:
            remedy += f", or raise --ctx-size (the model was trained for {trained})"
        message = f"the input is too large: {tokens} tokens; at most {longest} fit; {remedy}"
        super().__init__(field, f"{tokens} tokens", f"at most {longest} tokens", message)


class Unsupported(EngineError):  # noqa: N818 - a public name
    """The loaded model does not support this; the message says what it supports."""


class TooIntricate(EngineError):  # noqa: N818 - a public name
    """A constraint could be compiled, but following it exceeds the limits of one request."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the constraint is too complex ({reason}); simplify it")


class ConstraintPending(EngineError):  # noqa: N818 - a public name
    """A constraint is being compiled: ask again when `settled` is done.

    leave: to be called by a request that will not ask again.
    """

    def __init__(self, settled: Future[Any], leave: Callable[[], object] = lambda: None) -> None:
        self.settled = settled
        self.leave = leave
        super().__init__("the constraint is being compiled; ask again")


class CompilerUnavailable(EngineError):  # noqa: N818 - a public name
    """The process that compiles constraints could not be started; the message says why."""


class QueueFull(EngineError):  # noqa: N818 - a public name
    """The maximum number of requests, or of commands, is waiting; retry_after is in seconds."""

    def __init__(self, waiting: int, retry_after: int, what: str = "requests") -> None:
        self.waiting = waiting
        self.retry_after = retry_after
        super().__init__(f"the queue is full ({waiting} {what} wait); try again in {retry_after} s")


class DeadlineExceeded(EngineError):  # noqa: N818 - a public name
    """The request's deadline passed; text generated before it can still be taken."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        super().__init__(f"the deadline of {deadline:g} s passed")


class EngineClosed(EngineError):  # noqa: N818 - a public name
    """The engine was closed, before or while the request ran."""

    def __init__(self, message: str = "the engine is closed") -> None:
        super().__init__(message)


class NotEnabled(EngineError):  # noqa: N818 - a public name
    """The feature is switched off; the message names the option."""


def described(error: BaseException) -> str:
    """An error's message, or its class name if it has none, such as a MemoryError."""
    return str(error) or type(error).__name__


def shortened(value: object) -> str:
    """A value shortened for an error message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
