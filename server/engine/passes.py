"""The inputs of admitted jobs, divided into passes of a model that answers a job once all its inputs are computed.

Law: knows no model. Inputs of jobs admitted together share passes, by length, so that little is padded; the inputs of a
job that ended are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from server.engine.engine import Job

JobT = TypeVar("JobT", bound=Job[Any, Any])
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")

MAX_SEQUENCES = 64  # of a pass, and of jobs at a time
# Tokens with padding. Bounds the memory of one pass, and its time, in which the model shows no progress to the health
# check. On two cores MiniLM takes as long for 8 passes of 2048 as for one of 16384, which is 14 s.
_MAX_TOKENS = {"cuda": 16384, "cpu": 2048}


@dataclass(slots=True)
class PassInput(Generic[JobT, InputT, ResultT]):
    """One input of one job, and its result once it is computed."""

    job: JobT
    value: InputT
    result: ResultT | None = None


class PassQueue(Generic[JobT, InputT, ResultT]):
    """The admitted jobs and the passes that their inputs still need. `measure` returns the names of an input's fields,
    which are equal within a pass, and its length in tokens; `max_sequences` bounds one pass."""

    def __init__(
        self, device_type: str, measure: Callable[[InputT], tuple[Sequence[str], int]], max_sequences: int
    ) -> None:
        self.max_sequences = max_sequences
        self._max_tokens = _MAX_TOKENS.get(device_type, _MAX_TOKENS["cpu"])
        self._measure = measure
        self._inputs: dict[JobT, list[PassInput[JobT, InputT, ResultT]]] = {}
        self._passes: deque[list[PassInput[JobT, InputT, ResultT]]] = deque()

    @property
    def room(self) -> int:
        """Return how many more jobs can be admitted; the inputs of jobs admitted together are batched together."""
        return max(0, MAX_SEQUENCES - len(self._inputs))

    @property
    def busy(self) -> bool:
        return bool(self._passes)

    def next_pass(self, arrived: Mapping[JobT, Sequence[InputT]]) -> list[PassInput[JobT, InputT, ResultT]]:
        """Admit jobs with their inputs; return the inputs of the next pass whose jobs have not ended."""
        admitted = {
            job: [PassInput[JobT, InputT, ResultT](job, each) for each in all_] for job, all_ in arrived.items()
        }
        self._inputs.update(admitted)
        self._divide([each for inputs in admitted.values() for each in inputs])
        return [each for each in self._passes.popleft() if not each.job.ended]

    def take_complete(self, computed: Sequence[PassInput[JobT, InputT, ResultT]]) -> dict[JobT, list[ResultT]]:
        """Return the results of each job that `computed` completed, in the order of its inputs; forget those jobs, and
        the ones that ended."""
        complete: dict[JobT, list[ResultT]] = {}
        for job in {each.job: None for each in computed if not each.job.ended}:
            results = [each.result for each in self._inputs[job] if each.result is not None]
            if len(results) == len(self._inputs[job]):
                complete[job] = results
        self._inputs = {j: inputs for j, inputs in self._inputs.items() if not j.ended and j not in complete}
        return complete

    def clear(self) -> None:
        """Forget all jobs."""
        self._inputs = {}
        self._passes.clear()

    def _divide(self, inputs: list[PassInput[JobT, InputT, ResultT]]) -> None:
        """Queue passes of inputs by fields and length."""
        batch: list[PassInput[JobT, InputT, ResultT]] = []
        for each in sorted(inputs, key=lambda one: self._measure(one.value)):
            fields, length = self._measure(each.value)
            if batch and (
                len(batch) >= self.max_sequences
                or (len(batch) + 1) * length > self._max_tokens
                or self._measure(batch[0].value)[0] != fields
            ):
                self._passes.append(batch)
                batch = []
            batch.append(each)
        if batch:
            self._passes.append(batch)
