"""What people pulled, and the answer of each pull: until it is here, or the answer that it never will be is old.

Law: remembers; decides nothing. A verdict on a pull's pin is that pull's own. What was on its way when the daemon
stopped, or went bad, is wanted like a pull.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent
from cached.contract.reference import ModelRef
from cached.core.demand import PullWant

_KEPT_S = 600.0  # how long a pull keeps its answer
_KEPT = 4096  # answers kept at most


@dataclass(slots=True)
class Pull:
    """One `holdfast pull`. `digest`: it is here, as this. `error`: why it cannot be met, as far as anybody knows.
    `refresh`: the source is to be asked again, although the version is here."""

    want: PullWant
    refresh: bool
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    digest: Digest | None = None
    error: HoldfastError | None = None
    settled_at: float | None = None  # on the monotonic clock


class Pulls:
    """The pulls that have not run out. `pins`: what the last pull of each version that was met asked for."""

    def __init__(self) -> None:
        self.pins: dict[ModelRef, Digest | None] = {}
        self._known: dict[str, Pull] = {}
        self._wanted: dict[ModelRef, list[Pull]] = {}
        self._settled: dict[str, Pull] = {}  # those of `_known` that have an answer, the oldest answer first
        self._changed: set[ModelRef] = set()

    def ask(self, ref: ModelRef, pin: Digest | None, *, refresh: bool) -> Pull:
        """A person wants this now."""
        pull = Pull(PullWant(ref, pin), refresh)
        self._known[pull.id] = pull
        self._wanted.setdefault(ref, []).append(pull)
        self._changed.add(ref)
        return pull

    def resume(self, ref: ModelRef, pin: Digest | None) -> None:
        """This is wanted again, unless somebody pulls it already."""
        if ref not in self._wanted:
            self.ask(ref, pin, refresh=False)

    def find(self, id_: str) -> Pull | None:
        """The pull of this id; None where its answer is old, or an earlier daemon was asked."""
        return self._known.get(id_)

    def take_changes(self) -> dict[ModelRef, Sequence[PullWant]]:
        """The pulls of those versions for which they changed since the last call; none where it is pulled no more."""
        changed, self._changed = self._changed, set()
        return {ref: [pull.want for pull in self._wanted.get(ref, ())] for ref in changed}

    def has(self, ref: ModelRef) -> bool:
        """Tell whether the version is pulled."""
        return ref in self._wanted

    def met(self, here: Mapping[ModelRef, Digest]) -> None:
        """These are here as they are wanted; whoever pinned another digest is told so."""
        for ref, digest in here.items():
            for pull in self._wanted.pop(ref, ()):
                if pull.want.pin in (None, digest):
                    self._settle(pull, digest, None)
                    self.pins[ref] = pull.want.pin
                else:
                    self._settle(pull, None, _other(pull.want, digest))
            self._changed.add(ref)

    def refused(self, verdicts: Mapping[tuple[ModelRef, Digest], Permanent]) -> None:
        """Whoever pinned one of these cannot have it, which is nobody else's matter."""
        for (ref, pin), error in verdicts.items():
            for pull in [pull for pull in self._wanted.get(ref, ()) if pull.want.pin == pin]:
                self._settle(pull, None, error)
                self._drop(pull)

    def not_refreshed(self, ref: ModelRef, error: HoldfastError) -> None:
        """The source could not be asked again, or has what may not be taken; what is here stays, so this concerns
        nobody else."""
        for pull in [pull for pull in self._wanted.get(ref, ()) if pull.refresh]:
            pull.error, pull.settled_at = error, time.monotonic()
            self._drop(pull)

    def failed(self, ref: ModelRef, error: HoldfastError) -> None:
        """This cannot be met by anybody, as far as is known; it stays wanted until the answer is old."""
        for pull in self._wanted.get(ref, ()):
            self._settle(pull, None, error)

    def begun(self, ref: ModelRef) -> None:
        """This is tried again."""
        for pull in self._wanted.get(ref, ()):
            pull.error = pull.settled_at = None
            self._settled.pop(pull.id, None)

    def expire(self) -> None:
        """Old answers go."""
        now = time.monotonic()
        while self._settled:
            pull = next(iter(self._settled.values()))
            if now - (pull.settled_at or 0.0) < _KEPT_S and len(self._settled) <= _KEPT:
                return
            del self._known[pull.id], self._settled[pull.id]
            self._drop(pull)

    def _settle(self, pull: Pull, digest: Digest | None, error: HoldfastError | None) -> None:
        pull.digest, pull.error, pull.settled_at = digest, error, time.monotonic()
        self._settled.pop(pull.id, None)
        self._settled[pull.id] = pull

    def _drop(self, pull: Pull) -> None:
        left = [each for each in self._wanted.get(pull.want.ref, ()) if each is not pull]
        if left:
            self._wanted[pull.want.ref] = left
        else:
            self._wanted.pop(pull.want.ref, None)
        self._changed.add(pull.want.ref)


def _other(want: PullWant, found: Digest) -> DigestMismatch:
    return DigestMismatch(
        f"{want.ref}: the manifest digest",
        f"{want.pin} (the pull's pin)",
        f"{found} (on this node)",
        "correct the digest, or ask for another version",
    )
