"""The page's fragments and when each changed, so that a reader gets what it lacks and nothing else.

Law: pure. Fragments are HTML by key; those of versions are rows, in an order of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageContent:
    """What the page shows: fragments by the id of their element, and the rows of the versions in their order."""

    title: str
    sections: Mapping[str, str]
    rows: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """What a reader lacks; `order`: the keys of all rows, None where it has them in that order."""

    title: str
    sections: Mapping[str, str]
    rows: Mapping[str, str]
    order: tuple[str, ...] | None


class PageState:
    """The newest content, and the revision in which each part of it last changed."""

    def __init__(self) -> None:
        self.revision = 0
        self.content = PageContent("", {}, {})
        self._section_revisions: dict[str, int] = {}
        self._row_revisions: dict[str, int] = {}
        self._order_revision = 0

    def replace(self, content: PageContent) -> None:
        """Take a new content; the revision grows where it differs."""
        before, self.content = self.content, content
        if content == before and tuple(content.rows) == tuple(before.rows):
            return
        self.revision += 1
        _mark(self._section_revisions, before.sections, content.sections, self.revision)
        _mark(self._row_revisions, before.rows, content.rows, self.revision)
        if tuple(content.rows) != tuple(before.rows):
            self._order_revision = self.revision

    def list_changes(self, revision: int) -> Change:
        """Return what changed after `revision`; after -1 that is everything."""
        content = self.content
        return Change(
            content.title,
            {key: content.sections[key] for key, at in self._section_revisions.items() if at > revision},
            {key: content.rows[key] for key, at in self._row_revisions.items() if at > revision},
            tuple(content.rows) if self._order_revision > revision else None,
        )


def _mark(revisions: dict[str, int], before: Mapping[str, str], now: Mapping[str, str], revision: int) -> None:
    for key in [key for key in revisions if key not in now]:
        del revisions[key]
    for key, fragment in now.items():
        if before.get(key) != fragment:
            revisions[key] = revision
