"""Turn prompts into token ids, and generated ids into text as they arrive.

Law: a tokenizer keeps settings between calls, so prompts have a tokenizer of their own, used by one thread. Nothing is
truncated: a prompt that does not fit is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from server.engine.types import ChatRequest, InvalidRequest, Prompt

# Enough for a tokenizer to know, from the prompt's end, whether the next token begins with a space.
_CONTEXT_TOKENS = 6
CUT_TOKENS = 256  # a cut text can have more tokens than its part of the whole text: its last word is cut
CHARACTERS_A_TOKEN = 8  # most texts have fewer, so a text that fits is seldom encoded twice
_REPLACEMENT = "\ufffd"  # decoded from an incomplete UTF-8 sequence
_UNFINISHED = 3  # tokens at the end that may begin a character, which has four bytes at most
_MOST_PENDING = 32  # tokens; a character with its combining characters has far fewer
NO_LIMIT = 10**9  # tokenizers without a limit report 10^30


class Tokens:
    """A model's tokenizer and its limits. `context` is the most tokens of one sequence: the model's `positions`, else
    the tokenizer's limit, None for none."""

    def __init__(self, tokenizer: Any, config: Any, positions: int | None) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self.vocabulary = int(config.vocab_size)
        limit = tokenizer.model_max_length if positions is None else positions
        self._own_context: int | None = limit if limit < NO_LIMIT else None
        self.context = self._own_context
        self.padding_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def limit(self, tokens: int) -> None:
        """Bound the context to `tokens`, for which the KV cache has memory."""
        self.context = tokens if self._own_context is None else min(self._own_context, tokens)

    def check_ids(self, ids: Iterable[int], param: str) -> None:
        """Raise `InvalidRequest` where the parameter `param` names an unknown token."""
        wrong = next((token for token in ids if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(f"{param}: expected token ids from 0 to {self.vocabulary - 1}, found {wrong}", param)

    def encode(self, prompt: Prompt, param: str, *, room: int = 0) -> list[int]:
        """Return the token ids of one prompt, with `room` tokens left in the context; raises `InvalidRequest`."""
        if isinstance(prompt, str):
            ids = self._encode_text(prompt, param, special=True)
            if not ids and self._tokenizer.bos_token_id is not None:
                ids = [self._tokenizer.bos_token_id]
        else:
            ids = list(prompt)
        return self._check_length(ids, param, room)

    def encode_chat(self, request: ChatRequest, *, room: int) -> list[int]:
        """Return the token ids of a conversation, written by the chat template; raises `InvalidRequest`."""
        if not self.has_chat_template:
            raise InvalidRequest(
                "messages: this model's tokenizer has no chat template, so how a conversation is written is not "
                "known: use /v1/completions, or publish the model with its chat_template.jinja",
                "messages",
                "no_chat_template",
            )
        from jinja2 import TemplateError  # used for chats alone

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(request.messages), add_generation_prompt=True, tokenize=False, **request.template
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {error}", "messages") from error
        # The template writes the special tokens itself.
        return self._check_length(self._encode_text(text, "messages", special=False), "messages", room)

    def _encode_text(self, text: str, param: str, *, special: bool) -> list[int]:
        """Encode a text. One far longer than the context is encoded only until that is certain: others wait for it."""
        if self.context is not None:
            _, certain = bound(self._tokenizer, text, self.context)
            if certain is not None:
                raise too_long(self.context, f"more than {certain} in the input", param)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def _check_length(self, ids: list[int], param: str, room: int) -> list[int]:
        if not ids:
            raise InvalidRequest(f"{param}: expected at least one token, found none", param)
        self.check_ids(ids, param)
        if self.context is not None and len(ids) + room > self.context:
            asked = f"{len(ids)} in the input" + (f" and {room} to generate" if room else "")
            raise too_long(self.context, asked, param)
        return ids


def bound(tokenizer: Any, text: str, limit: int, side: str = "right") -> tuple[str, int | None]:
    """Return as much of a text far longer than `limit` tokens as decides about its tokens when it is cut at `side`: the
    rest would keep other requests waiting. With it the number of tokens that the text certainly has more of, None where
    all of the text is returned."""
    certain = limit + CUT_TOKENS
    part = certain * CHARACTERS_A_TOKEN
    while part < len(text):
        piece = text[-part:] if side == "left" else text[:part]
        if len(tokenizer.encode(piece, add_special_tokens=False)) > certain:
            return piece, certain
        part *= 2
    return text, None


def too_long(context: int, asked: str, param: str) -> InvalidRequest:
    """Return the refusal of a request with more tokens than the context has."""
    return InvalidRequest(
        f"this model's maximum context length is {context} tokens, the request has {asked}",
        param,
        "context_length_exceeded",
    )


class GrowingText:
    """Generated tokens as text, released once it can no longer change; never beyond a stop text."""

    def __init__(self, tokenizer: Any, prompt: list[int], stops: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids = prompt[-_CONTEXT_TOKENS:]
        self._prefix = 0  # where decoding begins
        self._read = len(self._ids)  # where text not yet taken begins
        self._pending = ""  # decoded text that may begin a stop text
        self.stopped = False

    @property
    def released(self) -> bool:
        """Whether the text of every pushed token is released."""
        return not self._pending and self._read == len(self._ids)

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now final, often empty."""
        self._ids.append(token)
        return self._release(self._decoded(complete=False))

    def finish(self) -> str:
        """Return the text that was held back."""
        text = self._release(self._decoded(complete=True))
        if not self.stopped:
            text, self._pending = text + self._pending, ""
        return text

    def _decoded(self, *, complete: bool) -> str:
        """Return the text after what was taken; waits for the rest of a character's tokens unless `complete`."""
        before = self._decode(self._ids[self._prefix : self._read])
        text = self._decode(self._ids[self._prefix :])
        if len(text) > len(before) and (complete or not text.endswith(_REPLACEMENT)):
            self._prefix, self._read = self._read, len(self._ids)
            return text[len(before) :]
        return self._decode_incomplete(before) if len(self._ids) - self._read > _MOST_PENDING else ""

    def _decode_incomplete(self, before: str) -> str:
        """Decode tokens that gave no text for long as they are: each further token would decode all of them again."""
        if not self._decode(self._ids[self._read :]):  # special tokens, which are not shown
            del self._ids[self._read :]
            return ""
        end = len(self._ids) - _UNFINISHED
        text = self._decode(self._ids[self._prefix : end])
        self._prefix, self._read = self._read, end
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._pending += text
        found = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain, self._pending = self._pending[: min(found)], ""
            return certain
        cut = len(self._pending) - self._count_held_back()
        certain, self._pending = self._pending[:cut], self._pending[cut:]
        return certain

    def _count_held_back(self) -> int:
        """Return how many characters at the end may begin a stop text."""
        longest = max((min(len(stop) - 1, len(self._pending)) for stop in self._stops), default=0)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stops):
                return length
        return 0
