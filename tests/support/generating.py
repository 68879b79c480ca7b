"""A generator in this process: its engine, asked as the API asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from server.engine.engine import ThreadedEngine
from server.engine.generation.generator import TextGenerator
from server.engine.types import (
    CompletionRequest,
    Continuation,
    Delta,
    Finished,
    GenerationEvent,
    GenerationOptions,
    GenerationRequest,
    Limits,
    Sampling,
)

GREEDY = Sampling(temperature=0.0)
Generating = ThreadedEngine[GenerationRequest, Continuation, GenerationEvent]


class Watched:
    """Remembers what it is told of a generator."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def record_wait(self, seconds: float) -> None:
        assert seconds >= 0

    def record_step(self, rows: int, seconds: float) -> None:
        assert seconds >= 0
        self.rows.append(rows)


def limits(batch: int = 8, cache_bytes: int | None = 64 << 20) -> Limits:
    return Limits(body_bytes=1 << 20, queue=64, max_tokens=None, batch=batch, cache_bytes=cache_bytes)


def load(directory: Path, watched: Watched, allowed: Limits) -> TextGenerator:
    """The model of a folder in float32 on the CPU, warmed."""
    generator = TextGenerator.load(directory, "cpu", "float32", allowed, watched)
    generator.warm_up()
    return generator


@contextmanager
def engine(generator: TextGenerator, watched: Watched) -> Iterator[Generating]:
    """An engine for as long as the block runs."""
    running: Generating = ThreadedEngine(generator, 64, watched)
    try:
        yield running
    finally:
        running.close()


def completion(
    prompt: str, max_tokens: int = 12, sampling: Sampling = GREEDY, stop: tuple[str, ...] = (), choices: int = 1
) -> CompletionRequest:
    return CompletionRequest((prompt,), GenerationOptions(None, max_tokens, choices, sampling, stop, False, False))


@asynccontextmanager
async def started(running: Generating, request: GenerationRequest) -> AsyncIterator[AsyncIterator[GenerationEvent]]:
    """A request's events, with its first token there already; leaving early gives it up."""
    async with running.submit(request) as job:
        events = job.stream()
        first = await anext(events)

        async def all_events() -> AsyncIterator[GenerationEvent]:
            yield first
            async for event in events:
                yield event

        yield all_events()


async def read(events: AsyncIterator[GenerationEvent]) -> list[tuple[str, str, int]]:
    """Each choice's text, why it ended, and its number of tokens."""
    texts: dict[int, str] = {}
    ends: dict[int, tuple[str, int]] = {}
    async for event in events:
        match event:
            case Delta(index, text):
                texts[index] = texts.get(index, "") + text
            case Finished(index, reason, tokens):
                assert index not in ends
                ends[index] = (reason, tokens)
    return [(texts.get(index, ""), *ends[index]) for index in sorted(ends)]


async def ask(running: Generating, request: GenerationRequest) -> list[tuple[str, str, int]]:
    async with running.submit(request) as job:
        return await read(job.stream())


def save(model: Any, directory: Path) -> Path:
    """Write a model with weights that tell tokens and positions apart."""
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.save_pretrained(directory)
    return directory
