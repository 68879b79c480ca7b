"""The section of the disk: a stacked bar and its legend.

Law: pure. The bar's parts are widths of SVG: the page's policy allows no style of an element.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cached.contract.program.units import format_size
from cached.daemon.page.facts import DiskFacts
from cached.daemon.page.markup import text

_MOST_SNAPSHOTS = 8  # with a colour of their own
_LEAST_SHARE = 0.0004  # of the bar's width: less is no pixel


@dataclass(frozen=True, slots=True)
class _Part:
    colour: str
    name: str
    size: int


def render_disk(disk: DiskFacts) -> str:
    """Return the section: by version, shared, in progress, quarantine, other programs, free."""
    use = disk.use
    if not use.capacity:
        return "<h2 id=h-disk>Disk</h2><p class=soft>The disk does not tell its size now.</p>"
    parts = [part for part in _list_parts(disk) if part.size > 0]
    summary = ", ".join(f"{part.name} {format_size(part.size)}" for part in parts)
    legend = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden=true><rect class={part.colour} width=10 height=10 rx=2></rect></svg>'
        f"<span>{text(part.name)}</span><b>{format_size(part.size)}</b></li>"
        for part in parts
    )
    return (
        f"<h2 id=h-disk>Disk</h2><p class=soft>{format_size(use.capacity)} for weights on this node</p>"
        f'<svg class=bar role=img aria-label="{text(f"Disk of {format_size(use.capacity)}: {summary}")}">'
        f"{_render_bar(parts, use.capacity)}</svg><ul class=legend>{legend}</ul>"
    )


def _list_parts(disk: DiskFacts) -> list[_Part]:
    use, first, rest = disk.use, disk.by_snapshot[:_MOST_SNAPSHOTS], disk.by_snapshot[_MOST_SNAPSHOTS:]
    parts = [
        _Part(f"k{at}", " = ".join(str(ref) for ref in refs[:3]) + (" = …" if len(refs) > 3 else ""), size)
        for at, (refs, size) in enumerate(first)
    ]
    return [
        *parts,
        _Part("kx", f"{len(rest)} other versions", sum(size for _, size in rest)),
        _Part("ks", "Shared by several versions", disk.shared),
        _Part("kx", "Of no version yet, or any more", disk.unlinked),
        _Part("kf", "Being fetched", use.reserved),
        _Part("kq", "Quarantine", disk.quarantined),
        _Part("kx", "To be deleted", use.dying - disk.quarantined),
        _Part("ko", "Other programs", use.capacity - use.budget),
        _Part("kr", "Free", use.free),
    ]


def _render_bar(parts: Iterable[_Part], capacity: int) -> str:
    bar, at = "", 0.0
    for part in parts:
        width = min(part.size / capacity, max(0.0, 1 - at))
        if part.colour != "kr" and width >= _LEAST_SHARE:
            bar += (
                f'<rect class={part.colour} x="{100 * at:.2f}%" width="{100 * width:.2f}%" height="100%">'
                f"<title>{text(part.name)}: {format_size(part.size)}</title></rect>"
            )
        at += width
    return bar
