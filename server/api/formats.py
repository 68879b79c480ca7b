"""A generation's answer in OpenAI's formats, completion and chat, whole or streamed.

Law: pure values. Format: https://platform.openai.com/docs/api-reference (completions, chat).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.engine.types import TokenLogprob

Piece = dict[str, Any]


@dataclass(slots=True)
class ChoiceAnswer:
    """One choice as far as it is generated."""

    text: str = ""
    reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Format(Protocol):
    """The JSON of one answer. `logprobs` None: the request did not ask for them."""

    def whole(self, answers: Sequence[ChoiceAnswer], usage: dict[str, int], *, logprobs: bool) -> Piece: ...

    def opening(self, choices: int, /) -> Iterator[Piece]: ...

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> Piece: ...

    def ending(self, index: int, reason: str) -> Piece: ...

    def usage(self, usage: dict[str, int]) -> Piece: ...


class CompletionFormat:
    """`text_completion`."""

    def __init__(self, model: str) -> None:
        self._head = _head("cmpl", "text_completion", model)
        self._offsets: dict[int, int] = {}

    def whole(self, answers: Sequence[ChoiceAnswer], usage: dict[str, int], *, logprobs: bool) -> Piece:
        choices = [
            {
                "index": index,
                "text": answer.text,
                "logprobs": self._logprobs(index, answer.logprobs) if logprobs else None,
                "finish_reason": answer.reason,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage}

    def opening(self, _choices: int) -> Iterator[Piece]:
        """Return no piece: a completion's stream begins with its text."""
        return iter(())

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> Piece:
        shown = self._logprobs(index, logprobs) if logprobs else None
        return self._choice({"index": index, "text": text, "logprobs": shown, "finish_reason": None})

    def ending(self, index: int, reason: str) -> Piece:
        return self._choice({"index": index, "text": "", "logprobs": None, "finish_reason": reason})

    def usage(self, usage: dict[str, int]) -> Piece:
        return {**self._head, "choices": [], "usage": usage}

    def _choice(self, choice: Piece) -> Piece:
        return {**self._head, "choices": [choice]}

    def _logprobs(self, index: int, tokens: Iterable[TokenLogprob]) -> Piece:
        shown: Piece = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            offset = self._offsets.get(index, 0)
            self._offsets[index] = offset + len(token.text)
            shown["tokens"].append(token.text)
            shown["token_logprobs"].append(token.logprob)
            shown["top_logprobs"].append(dict(token.top))
            shown["text_offset"].append(offset)
        return shown


class ChatFormat:
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, model: str) -> None:
        self._head = _head("chatcmpl", "chat.completion", model)
        self._chunk = {**self._head, "object": "chat.completion.chunk"}

    def whole(self, answers: Sequence[ChoiceAnswer], usage: dict[str, int], *, logprobs: bool) -> Piece:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": _chat_logprobs(answer.logprobs) if logprobs else None,
                "finish_reason": answer.reason,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage}

    def opening(self, choices: int) -> Iterator[Piece]:
        """Yield each choice's first piece, which names its role."""
        for index in range(choices):
            yield self._choice(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> Piece:
        return self._choice(index, {"content": text}, _chat_logprobs(logprobs) if logprobs else None, None)

    def ending(self, index: int, reason: str) -> Piece:
        return self._choice(index, {}, None, reason)

    def usage(self, usage: dict[str, int]) -> Piece:
        return {**self._chunk, "choices": [], "usage": usage}

    def _choice(self, index: int, delta: Piece, logprobs: Piece | None, reason: str | None) -> Piece:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._chunk, "choices": [choice]}


def _head(prefix: str, kind: str, model: str) -> Piece:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _chat_logprobs(tokens: Iterable[TokenLogprob]) -> Piece:
    shown = [
        {**_chat_token(one.text, one.logprob), "top_logprobs": [_chat_token(text, value) for text, value in one.top]}
        for one in tokens
    ]
    return {"content": shown, "refusal": None}


def _chat_token(text: str, logprob: float) -> Piece:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
