"""The rows of the versions, what moves or fails first.

Law: pure but for its memory of the rows: a row is rendered again where its facts changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cached.contract.program.units import format_count, format_size
from cached.contract.status import ModelStatus, State
from cached.daemon.page.facts import VersionFacts
from cached.daemon.page.markup import age, plain, text

MOST_NAMES = 5
_DIGEST = 19  # characters of a digest: `sha256:` and 12 digits tell versions of a node apart
_RANKS = {State.FAILED: 0, State.FETCHING: 1, State.VERIFYING: 1, State.PUBLISHING: 1, State.RESOLVING: 1}
_LAST_RANKS = {State.QUEUED: 2, State.EVICTING: 3, State.READY: 4}

_Name = tuple[str, str]  # of a model and its version


class VersionRows:
    """The rows by the id of their element, which a version keeps while it has a row."""

    def __init__(self) -> None:
        self._ids: dict[_Name, str] = {}
        self._next = 0
        self._rendered: dict[_Name, tuple[VersionFacts, str]] = {}

    def render(self, versions: Iterable[VersionFacts]) -> Mapping[str, str]:
        """Return the rows of these versions, in their order on the page."""
        ordered = sorted(versions, key=_rank)
        by_name = {(each.status.model, each.status.version): each for each in ordered}
        for gone in self._ids.keys() - by_name.keys():
            del self._ids[gone]
            del self._rendered[gone]
        return {self._find_id(name): self._render(name, facts) for name, facts in by_name.items()}

    def _find_id(self, name: _Name) -> str:
        if name not in self._ids:
            self._ids[name] = f"r{self._next}"
            self._next += 1
        return self._ids[name]

    def _render(self, name: _Name, facts: VersionFacts) -> str:
        known = self._rendered.get(name)
        if known is None or known[0] != facts:
            known = self._rendered[name] = facts, _render_row(facts)
        return known[1]


def describe_progress(status: ModelStatus) -> str:
    """Return the share, rate and remaining time of a fetch or a check as HTML; empty while none is known."""
    if status.state not in (State.FETCHING, State.VERIFYING) or not status.bytes_total:
        return ""
    return ", ".join([f"{100 * status.bytes_done // status.bytes_total} %", *status.describe_pace()])


def list_names(names: tuple[str, ...]) -> str:
    """Return the HTML of the first of these names, and how many more there are."""
    more = len(names) - MOST_NAMES
    listed = "<br>".join(text(name) for name in names[:MOST_NAMES])
    return f"{listed}<small>and {more} more</small>" if more > 0 else listed


def _rank(facts: VersionFacts) -> tuple[int, str, str]:
    status = facts.status
    return _RANKS.get(status.state, _LAST_RANKS.get(status.state, 2)), status.model, status.version


def _render_row(facts: VersionFacts) -> str:
    status = facts.status
    digest = f" <code>{text(plain(status.held or status.digest or '')[:_DIGEST])}</code>"
    source = text(status.source)
    return (
        f"<th role=rowheader scope=row>{text(status.model)}@<b>{text(status.version)}</b>{_render_tags(facts)}"
        f"<small>{source}{digest}</small></th>"
        f'<td role=cell data-l="State">{_render_state(status)}</td>'
        f'<td role=cell data-l="Size" class=num>{_render_size(facts)}</td>'
        f'<td role=cell data-l="In use by">{_render_users(facts)}</td>'
        f'<td role=cell data-l="Last use" class=num>{_render_last_use(facts)}</td>'
    )


def _render_tags(facts: VersionFacts) -> str:
    status = facts.status
    tags = ["<span class=tag>kept</span>"] if facts.kept else []
    if status.stale is not None:
        why = "the catalog changed" if status.stale.reason == "catalog_changed" else "its source changed"
        tags.append(f'<span class="tag warn">stale: {why}</span>')
    return "".join(f" {tag}" for tag in tags)


def _render_state(status: ModelStatus) -> str:
    state = status.state.value
    badge = f'<span class="dot {state}">{state}</span>'
    if status.held is not None and not status.is_checked_again and status.state is not State.READY:
        badge += "<small>the earlier content stays until then</small>"
    progress = describe_progress(status)
    if progress:
        name = f"{text(status.model)}@{text(status.version)}: progress"
        share = 100 * status.bytes_done / (status.bytes_total or 1)
        bar = f'<progress max=100 value="{share:.1f}" aria-label="{name}">{share:.0f} %</progress>'
        return f"{badge}{bar}<small class=num>{progress}</small>"
    error = "" if status.error is None else f"<code>{text(status.error.code)}</code>, "
    return f"{badge}<small>{error}for {age(status.since)}</small>"


def _render_size(facts: VersionFacts) -> str:
    status, size = facts.status, facts.size
    if size is None:
        if not status.bytes_total:
            return ""
        done = f"<small>{format_size(status.bytes_done)} here</small>" if status.bytes_done else ""
        return f"{format_size(status.bytes_total)}{done}"
    total = format_size(size.exclusive + size.shared)
    if facts.names > 1:
        return f"{total}<small>same content as {format_count(facts.names - 1, 'other')}</small>"
    return f"{total}<small>{format_size(size.shared)} shared</small>" if size.shared else total


def _render_users(facts: VersionFacts) -> str:
    lease = "<span class=tag>lease held</span>" if facts.leased else ""
    names = list_names(facts.users)
    return f"{names}{'<br>' if names and lease else ''}{lease}"


def _render_last_use(facts: VersionFacts) -> str:
    if facts.leased or facts.users:
        return "in use"
    return "" if facts.last_used is None else f"{age(facts.last_used)} ago"
