"""Whose request a node serves next."""

from __future__ import annotations

import random
from collections import Counter

from cached.peers.uploads import Uploads, UploadVerdict


def test_requests_beyond_the_slots_wait_and_beyond_the_queue_are_refused() -> None:
    """So many are served at once, so many wait, and the next is refused; an end serves one that waits."""
    uploads = Uploads[int](slots=2, queue=1)
    assert [uploads.ask(f"p{n}", n) for n in range(4)] == [
        UploadVerdict.SERVE,
        UploadVerdict.SERVE,
        UploadVerdict.WAIT,
        UploadVerdict.REFUSE,
    ]
    assert (uploads.serving, uploads.waiting) == (2, 1)
    assert uploads.end("p0") == 2
    assert uploads.end("p1") is None
    assert uploads.end("p2") is None
    assert (uploads.serving, uploads.waiting) == (0, 0)


def test_who_was_served_goes_behind_who_waits() -> None:
    """A peer that asks again and again gets no more than one that asks as often as it is answered."""
    uploads = Uploads[str](slots=1, queue=100)
    uploads.ask("greedy", "greedy")
    for _ in range(20):
        uploads.ask("greedy", "greedy")
    for name in ("a", "b"):
        uploads.ask(name, name)
    turns, current = Counter[str](), "greedy"
    for _ in range(12):
        following = uploads.end(current)
        assert following is not None
        turns[following] += 1
        if following != "greedy":
            uploads.ask(following, following)
        current = following
    assert max(turns.values()) - min(turns.values()) <= 1


def test_a_withdrawn_request_is_not_served() -> None:
    """A request whose peer went away is served no more, and its place in the queue is free."""
    uploads = Uploads[int](slots=1, queue=2)
    for n in range(3):
        uploads.ask("p", n)
    assert uploads.withdraw("p", 1)
    assert not uploads.withdraw("p", 1)
    assert not uploads.withdraw("q", 2)
    assert uploads.waiting == 1
    assert uploads.end("p") == 2


def test_every_request_is_served_once() -> None:
    """In any order of requests and ends, each accepted request is served once, at most so many at once."""
    rng, uploads = random.Random(3), Uploads[int](slots=3, queue=5)
    asked: dict[int, str] = {}
    serving: list[int] = []
    served: list[int] = []

    def end_one() -> None:
        following = uploads.end(asked[serving.pop(rng.randrange(len(serving)))])
        if following is not None:
            serving.append(following)
            served.append(following)

    for n in range(500):
        asked[n] = f"p{rng.randrange(6)}"
        verdict = uploads.ask(asked[n], n)
        if verdict is UploadVerdict.REFUSE:
            del asked[n]
        if verdict is UploadVerdict.SERVE:
            serving.append(n)
            served.append(n)
        assert len(serving) == uploads.serving <= 3
        while serving and rng.random() < 0.6:
            end_one()
    while serving:
        end_one()
    assert sorted(served) == sorted(asked)
