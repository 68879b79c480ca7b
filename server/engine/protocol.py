"""The interface of an inference engine: submit a request, stream its events, cancel it, ask for its capacity.

Law: values and one interface, no implementation. `server.api` and `server.lifecycle` use an engine through this module
only, so that another engine can replace `server.engine.engine` without a change there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
PreparedT = TypeVar("PreparedT")
PreparedT_co = TypeVar("PreparedT_co", covariant=True)
EventT_co = TypeVar("EventT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The number of requests that wait for the model, and of those in it."""

    waiting: int
    running: int


class Submission(Protocol[PreparedT_co, EventT_co]):
    """One submitted request."""

    @property
    def request(self) -> PreparedT_co:
        """The request in tokens."""

    def stream(self) -> AsyncGenerator[EventT_co, None]:
        """Stream the events in order; raises the `HoldfastError` with which the request failed."""


class InferenceEngine(Protocol[RequestT_contra, PreparedT, EventT_co]):
    """A loaded model that works on many requests at once. Call it from the event loop, except `join`."""

    @property
    def alive_at(self) -> float:
        """The monotonic time in seconds of the last step that succeeded."""

    def submit(self, request: RequestT_contra) -> AbstractAsyncContextManager[Submission[PreparedT, EventT_co]]:
        """Submit `request` for as long as the block runs; leaving the block early cancels it. Raises `InvalidRequest`,
        and `Transient`: `overloaded` where the queue is full, `closed` after `close`."""

    def submit_prepared(self, prepared: PreparedT) -> AbstractContextManager[Submission[PreparedT, EventT_co]]:
        """Submit a request in tokens, as `submit` does, without the queue of texts that wait for the tokenizer."""

    def capacity(self) -> EngineLoad:
        """Count the requests that wait and run at this moment."""

    def close(self) -> None:
        """Cancel every request and accept no more. Returns at once."""

    def join(self) -> None:
        """Block until the engine has released the model; call it after `close`, from a thread."""
