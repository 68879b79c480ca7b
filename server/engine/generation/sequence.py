"""One choice of one request during generation: its tokens, its sampling state, its text, and whether it is complete.

Law: knows no batch and no tensors. The model's thread adds one token at a time; a preempted sequence is prefilled again
from `ids` and continues unchanged.
"""

from __future__ import annotations

from typing import Any

from server.engine.engine import Job, fail_without_numbers
from server.engine.generation.sampling import Chosen, SamplingState
from server.engine.settings import FolderSettings
from server.engine.tokenizer import GrowingText
from server.engine.types import Continuation, Delta, Finished, GenerationEvent, TokenLogprob

GenerationJob = Job[Continuation, GenerationEvent]


class GenerationSequence:
    """A choice in generation. `ids` are the tokens of the prompt and of the choice."""

    def __init__(self, job: GenerationJob, index: int, tokenizer: Any, settings: FolderSettings, module: Any) -> None:
        asked = job.request
        self.job = job
        self.ids = list(asked.prompts[index])
        constrain = settings.constrain(module, self.ids, asked.sampling, asked.max_tokens[index])
        self.sampling = SamplingState(asked.sampling, index, self.ids, constrain)
        self.adapter = asked.adapter
        self.done = False
        self.admitted = 0  # the number of its admission to the batch
        self._index = index
        self._tokenizer = tokenizer
        self._ends = settings.ends
        self._text = GrowingText(tokenizer, self.ids, asked.stop)
        self._prompt_tokens = len(self.ids)
        self._limit = asked.max_tokens[index]
        self._pending_logprobs: list[TokenLogprob] = []

    @property
    def ended(self) -> bool:
        """Whether the choice is complete, or its job ended."""
        return self.done or self.job.ended

    @property
    def tokens_left(self) -> int:
        return self._limit - (len(self.ids) - self._prompt_tokens)

    def take(self, chosen: Chosen | None) -> None:
        """Add a token, emit the text that is now final, and end after the last token; None fails the whole request."""
        if chosen is None:
            fail_without_numbers(self.job)
            return
        self.ids.append(chosen.token)
        if chosen.token in self._ends:
            self._end("stop")
            return
        if chosen.logprob is not None:
            top = tuple((self._decode(token), logprob) for token, logprob in chosen.top)
            self._pending_logprobs.append(TokenLogprob(self._decode(chosen.token), chosen.logprob, top))
        text = self._text.push(chosen.token)
        if self._text.stopped:
            self._emit(text, ())
            self._end("stop")
            return
        # A token that may partly belong to a stop text is not emitted before that is known.
        self._emit(text, self._take_logprobs() if self._text.released else ())
        if self.tokens_left <= 0:
            self._end("length")

    def _end(self, reason: str) -> None:
        stopped = self._text.stopped
        rest = self._text.finish()
        self._emit(rest, () if stopped else self._take_logprobs())
        reason = "stop" if self._text.stopped else reason
        self.done = True
        self.job.emit(Finished(self._index, reason, len(self.ids) - self._prompt_tokens))

    def _emit(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        if text or logprobs:
            self.job.emit(Delta(self._index, text, logprobs))

    def _take_logprobs(self) -> tuple[TokenLogprob, ...]:
        taken, self._pending_logprobs = tuple(self._pending_logprobs), []
        return taken

    def _decode(self, token: int) -> str:
        text: str = self._tokenizer.decode([token])
        return text
