"""A generation's answer in OpenAI's formats, completion and chat, whole or streamed.

Law: pure values. Format: https://platform.openai.com/docs/api-reference (completions, chat).
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.engine.types import TokenLogprob

Piece = dict[str, Any]


@dataclass(slots=True)
class ChoiceAnswer:
    """One choice as far as it is generated."""

    text: str = ""
    reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Format(ABC):
    """The JSON of one answer: `kind` names the object of a whole one, `chunk_kind` that of a streamed piece."""

    def __init__(self, prefix: str, kind: str, chunk_kind: str, model: str) -> None:
        created = int(time.time())
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": created, "model": model}
        self._chunk_head = {**self._head, "object": chunk_kind}

    def whole(self, answers: Sequence[ChoiceAnswer], usage: dict[str, int], *, logprobs: bool) -> Piece:
        """Return the whole answer; `logprobs`: the request asked for them."""
        choices = [
            {
                "index": index,
                **self._show_whole(answer.text),
                "logprobs": self._show_logprobs(index, answer.logprobs) if logprobs else None,
                "finish_reason": answer.reason,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage}

    @abstractmethod
    def opening(self, choices: int, /) -> Iterator[Piece]: ...

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> Piece:
        shown = self._show_logprobs(index, logprobs) if logprobs else None
        return self._show_choice(index, self._show_delta(text), shown, None)

    def ending(self, index: int, reason: str) -> Piece:
        return self._show_choice(index, self._show_delta(None), None, reason)

    def usage(self, usage: dict[str, int]) -> Piece:
        return {**self._chunk_head, "choices": [], "usage": usage}

    def _show_choice(self, index: int, delta: Piece, logprobs: Piece | None, reason: str | None) -> Piece:
        choice = {"index": index, **delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._chunk_head, "choices": [choice]}

    @abstractmethod
    def _show_whole(self, text: str) -> Piece: ...

    @abstractmethod
    def _show_delta(self, text: str | None) -> Piece: ...

    @abstractmethod
    def _show_logprobs(self, index: int, tokens: Iterable[TokenLogprob], /) -> Piece: ...


class CompletionFormat(Format):
    """`text_completion`, whole and in pieces."""

    def __init__(self, model: str) -> None:
        super().__init__("cmpl", "text_completion", "text_completion", model)
        self._offsets: dict[int, int] = {}

    def opening(self, _choices: int) -> Iterator[Piece]:
        """Return no piece: a completion's stream begins with its text."""
        return iter(())

    def _show_whole(self, text: str) -> Piece:
        return {"text": text}

    def _show_delta(self, text: str | None) -> Piece:
        return {"text": text or ""}

    def _show_logprobs(self, index: int, tokens: Iterable[TokenLogprob]) -> Piece:
        shown: Piece = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            offset = self._offsets.get(index, 0)
            self._offsets[index] = offset + len(token.text)
            shown["tokens"].append(token.text)
            shown["token_logprobs"].append(token.logprob)
            shown["top_logprobs"].append(dict(token.top))
            shown["text_offset"].append(offset)
        return shown


class ChatFormat(Format):
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, model: str) -> None:
        super().__init__("chatcmpl", "chat.completion", "chat.completion.chunk", model)

    def opening(self, choices: int) -> Iterator[Piece]:
        """Yield each choice's first piece, which names its role."""
        for index in range(choices):
            yield self._show_choice(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def _show_whole(self, text: str) -> Piece:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _show_delta(self, text: str | None) -> Piece:
        return {"delta": {} if text is None else {"content": text}}

    def _show_logprobs(self, _index: int, tokens: Iterable[TokenLogprob]) -> Piece:
        shown = [
            {**_chat_token(one.text, one.logprob), "top_logprobs": [_chat_token(*likely) for likely in one.top]}
            for one in tokens
        ]
        return {"content": shown, "refusal": None}


def _chat_token(text: str, logprob: float) -> Piece:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
