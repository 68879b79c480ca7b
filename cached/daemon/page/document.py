"""The page as one HTML document, and the headers that go with it.

Law: pure but for the style and the script, which are read from this folder at import.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from cached.daemon.page.markup import fill_ages, format_clock, text
from cached.daemon.page.state import Change, PageContent

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' "
    "rx='4' fill='%230b6b70'/%3E%3Cpath d='M5 4v8M11 4v8M5 8h6' stroke='%23fff' stroke-width='2'/%3E%3C/svg%3E"
)


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


# Of style and script: a page of another release loads itself again, rather than run an old script on new fragments.
ASSETS = hashlib.sha256((_STYLE + _SCRIPT).encode()).hexdigest()[:8]

# Without `frame-ancestors` another site could show the page in a frame of its own and have people click there.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_hash(_STYLE)}",
        f"script-src {_hash(_SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_COMMON = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
EVENT_HEADERS = (*_COMMON, ("X-Accel-Buffering", "no"))  # nginx in between must not collect events
PAGE_HEADERS = (
    *_COMMON,
    ("Content-Security-Policy", _POLICY),
    ("X-Frame-Options", "DENY"),
    ("Vary", "Accept-Encoding"),
)

_COLUMNS = ("Version", "State", "Size", "In use by", "Last use")


def render_document(node: str, content: PageContent, position: str, now: float) -> str:
    """Return the page; `position`: from where a reader's events go on, `now` in seconds since the epoch."""
    section = content.sections
    head = "".join(f"<th role=columnheader scope=col class=w{at}>{name}</th>" for at, name in enumerate(_COLUMNS))
    rows = "".join(f'<tr role=row id="{id_}">{row}</tr>' for id_, row in content.rows.items())
    page = (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,'
        f'initial-scale=1"><meta name=color-scheme content="light dark"><title>{text(content.title)}</title>'
        f'<link rel=icon href="{_ICON}"><style>{_STYLE}</style></head>'
        f'<body data-position="{position}" data-now="{now:.3f}"><a class=skip href="#versions">Skip to the versions</a>'
        f"<header><h1><small>Holdfast</small>{text(node)}</h1><p id=head>{section['head']}</p>"
        f"<p id=live role=status class=dot>As of {format_clock(now)}.<noscript> Without JavaScript this page does not "
        "move: load it again for newer figures.</noscript></p></header>"
        f"<main><div id=tiles>{section['tiles']}</div><div id=problems>{section['problems']}</div>"
        f"<div id=waiting>{section['waiting']}</div><div class=pair>"
        f"<section id=disk aria-labelledby=h-disk>{section['disk']}</section>"
        f"<section id=sources aria-labelledby=h-sources>{section['sources']}</section></div>"
        f"<div id=earlier>{section['earlier']}</div>"
        "<section id=versions aria-labelledby=h-versions tabindex=-1><div class=bar2><h2 id=h-versions>Versions</h2>"
        "<span id=shown class=soft role=status></span>"
        "<label id=find hidden>Find <input id=query type=search autocomplete=off spellcheck=false></label></div>"
        "<table role=table class=cards aria-labelledby=h-versions>"
        f"<thead role=rowgroup><tr role=row>{head}</tr></thead>"
        f"<tbody role=rowgroup id=rows>{rows}</tbody></table><div id=empty>{section['empty']}</div></section></main>"
        '<footer class=soft>Nothing can be changed here. For programs: <a href="v1/status">v1/status</a> (JSON) and '
        '<a href="metrics">metrics</a>.</footer>'
        f"<script>{_SCRIPT}</script></body></html>"
    )
    return fill_ages(page, now)


def render_event(change: Change, position: str, now: float) -> bytes:
    """Return the server-sent event of a change."""
    document = {
        "now": round(now, 3),
        "title": change.title,
        "sections": dict(change.sections),
        "rows": dict(change.rows),
        **({} if change.order is None else {"order": change.order}),
    }
    return f"id: {position}\ndata: {json.dumps(document)}\n\n".encode()
