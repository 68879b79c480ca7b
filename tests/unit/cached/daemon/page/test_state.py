"""What a reader lacks."""

from __future__ import annotations

import random

from cached.daemon.page.state import Change, PageContent, PageState


def _content(**rows: str) -> PageContent:
    return PageContent("title", {"head": "h"}, rows)


def test_nothing_changed_is_no_revision() -> None:
    """The same content is not told again."""
    state = PageState()
    state.replace(_content(a="1"))
    state.replace(_content(a="1"))
    assert state.revision == 1
    assert state.list_changes(1) == Change("title", {}, {}, None)


def test_a_change_is_told_alone() -> None:
    """Only fragments that changed since the reader's revision are told, and the order only where it changed."""
    state = PageState()
    state.replace(_content(a="1", b="1"))
    state.replace(_content(a="1", b="2"))
    assert state.list_changes(1) == Change("title", {}, {"b": "2"}, None)
    assert (
        state.list_changes(0)
        == state.list_changes(-1)
        == Change("title", {"head": "h"}, {"a": "1", "b": "2"}, ("a", "b"))
    )


def test_an_order_alone_is_news() -> None:
    """Rows that change places are told by their order, without their content."""
    state = PageState()
    state.replace(_content(a="1", b="1"))
    state.replace(_content(b="1", a="1"))
    assert state.list_changes(1) == Change("title", {}, {}, ("b", "a"))


def test_any_reader_ends_with_the_newest_content() -> None:
    """A reader that takes changes whenever it likes has, after each of them, all that the page has."""
    random_ = random.Random(15)
    state, sections, rows, order, seen = PageState(), dict[str, str](), dict[str, str](), tuple[str, ...](), -1
    for _ in range(500):
        keys = random_.sample("abcdefgh", random_.randrange(9))
        content = PageContent(
            str(random_.random()),
            {key: str(random_.randrange(3)) for key in "xy"},
            {key: str(random_.randrange(3)) for key in keys},
        )
        state.replace(content)
        if random_.random() < 0.3:
            change = state.list_changes(seen)
            seen = state.revision
            sections.update(change.sections)
            order = order if change.order is None else change.order
            rows = {key: value for key, value in {**rows, **change.rows}.items() if key in order}
            assert (sections, tuple(content.rows), rows) == (content.sections, order, content.rows)
