"""What the engine's thread may expect of every `Model`: an encoder, a classifier, a generator that batches or not.

Real models small enough to build; the thread's part is played here, one step after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.engine.classifier import Classifier
from server.engine.encoder import Encoder
from server.engine.engine import Job, Model
from server.engine.kinds import read_kind
from server.engine.types import (
    Activation,
    CompletionRequest,
    Embedded,
    EmbeddingRequest,
    Finished,
    InvalidRequest,
    Scored,
    ScoringRequest,
)
from tests.support.generating import Watched, completion, limits, load
from tests.support.tiny_models import build
from tests.unit.server.conftest import save_tokenizer

MOST_STEPS = 500


@dataclass(frozen=True)
class Case:
    """A model, how it is asked about a text, and what the last event of an answer is."""

    model: Model[Any, Any, Any]
    request: Callable[[str], Any]
    last: type

    def job(self, text: str) -> Job[Any, Any]:
        return Job(self.model.prepare(self.request(text)))

    def go_on(self) -> None:
        """Step until nothing is left to do."""
        for _ in range(MOST_STEPS):
            if not self.model.busy:
                return
            self.model.step([])
        raise AssertionError(f"still busy after {MOST_STEPS} steps")


def _embedding(text: str) -> EmbeddingRequest:
    return EmbeddingRequest(None, (text,), False)


def _completion(text: str) -> CompletionRequest:
    return completion(text, max_tokens=6)


def _scoring(text: str) -> ScoringRequest:
    return ScoringRequest(None, (text,), Activation.LABELS, None, "input")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = build("BertForSequenceClassification", tmp_path_factory.mktemp("bert"), pad_token_id=0, num_labels=3)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def cases(minilm: Path, llama: Path, classifier: Path) -> dict[str, Case]:
    scores = Classifier.load(classifier, read_kind(classifier), "cpu", "float32")
    return {
        "classifier": Case(scores, _scoring, Scored),
        "encoder": Case(Encoder.load(minilm, "cpu", "float32"), _embedding, Embedded),
        "batched": Case(load(llama, Watched(), limits(batch=4)), _completion, Finished),
        "sequential": Case(load(llama, Watched(), limits(batch=1)), _completion, Finished),
    }


@pytest.fixture(params=["classifier", "encoder", "batched", "sequential"])
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    found = cases[request.param]
    found.model.reset()
    return found


async def events_of(job: Job[Any, Any]) -> list[Any]:
    async with asyncio.timeout(100):
        return [event async for event in job.stream()]


async def test_an_idle_model_has_room_and_nothing_to_do(case: Case) -> None:
    """Without jobs there is room, and no step is due; preparing a request changes neither."""
    assert (case.model.busy, case.model.room > 0) == (False, True)
    case.model.prepare(case.request("hello"))
    assert (case.model.busy, case.model.room > 0) == (False, True)


async def test_what_can_never_be_answered_is_refused_when_it_is_read(case: Case) -> None:
    """A request beyond the model's context is `InvalidRequest` before it waits for anything."""
    with pytest.raises(InvalidRequest):
        case.model.prepare(case.request("word " * 2000))
    assert not case.model.busy


async def test_every_job_that_was_taken_up_is_answered(case: Case) -> None:
    """Jobs taken up together, and one that comes later, each end with an answer; then there is room again."""
    room = case.model.room
    jobs = [case.job(f"text {number}") for number in range(min(room, 3))]
    case.model.step(jobs)
    case.go_on()
    later = case.job("later")
    case.model.step([later])
    case.go_on()
    for job in (*jobs, later):
        assert job.ended
        assert isinstance((await events_of(job))[-1], case.last)
    assert (case.model.busy, case.model.room) == (False, room)


async def test_the_same_request_gets_the_same_answer(case: Case) -> None:
    """An answer depends on its request alone, also after a reset."""
    answers = []
    for _ in range(2):
        job = case.job("the quick brown fox")
        case.model.step([job])
        case.go_on()
        answers.append(await events_of(job))
        case.model.reset()
    assert answers[0] == answers[1]


async def test_a_job_that_was_given_up_is_let_go(case: Case) -> None:
    """A job without a waiting client, from before its first step or after it, ends soon and blocks no other job."""
    room = case.model.room
    early, late, kept = case.job("given up early"), case.job("given up late"), case.job("kept")
    early.cancel()
    case.model.step([early])
    case.go_on()
    case.model.step([late])
    late.cancel()
    case.go_on()
    case.model.step([kept])
    case.go_on()
    assert isinstance((await events_of(kept))[-1], case.last)
    assert (case.model.busy, case.model.room) == (False, room)


async def test_a_reset_lets_go_of_everything(case: Case) -> None:
    """After a reset there is nothing to do, all room is back, and the next job is answered."""
    room = case.model.room
    case.model.step([case.job("lost")])
    case.model.reset()
    assert (case.model.busy, case.model.room) == (False, room)
    job = case.job("next")
    case.model.step([job])
    case.go_on()
    assert isinstance((await events_of(job))[-1], case.last)
