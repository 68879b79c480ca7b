"""Directory indexes that web servers generate: nginx's JSON, and the HTML of nginx, Apache and `python -m http.server`.

Law: pure. Only what lies strictly below the index itself is listed; whether its name is a legal path is not checked
here.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urljoin, urlsplit

from cached.contract.errors import Permanent

_TITLES = ("index of", "directory listing")
_RENAME = "rename it at the source, or publish the version with `holdfast publish`, which writes a manifest"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in an index. `path`: relative to the index, NFC; `url`: where it is; `is_folder`: it has an index."""

    path: str
    url: str
    is_folder: bool


def read_index(body: bytes, content_type: str, url: str) -> list[Entry] | None:
    """The entries of the index at `url` (which ends in `/`), or None if `body` is not an index.

    Raises `Permanent` (`bad_name`) for a name that cannot be decoded.
    """
    if content_type.startswith("application/json"):
        hrefs = _json_hrefs(body)
    elif content_type.startswith("text/html"):
        hrefs = _html_hrefs(body)
    else:
        hrefs = None
    if hrefs is None:
        return None
    entries = {entry.url: entry for href in hrefs if (entry := _entry(href, url)) is not None}
    return list(entries.values())


def path_of(encoded: str, where: str) -> str:
    """Decode a percent-encoded path, in NFC, without checking it further; raises `Permanent` (`bad_name`)."""
    try:
        path = unicodedata.normalize("NFC", unquote(encoded, errors="strict"))
    except UnicodeDecodeError as error:
        raise Permanent("bad_name", f"{where}: expected a name in UTF-8, found {encoded[:200]!r}", _RENAME) from error
    if path.count("/") != encoded.count("/"):
        raise Permanent("bad_name", f"{where}: the name {path[:200]!r} has an encoded slash in it", _RENAME)
    return path


def _entry(href: str, base: str) -> Entry | None:
    try:
        url = urljoin(base, href)
        parts = urlsplit(url)
    except ValueError:
        return None
    own = urlsplit(base)
    if (parts.scheme, parts.netloc) != (own.scheme, own.netloc) or parts.query or parts.fragment:
        return None
    if not parts.path.startswith(own.path) or parts.path == own.path:
        return None
    relative = parts.path[len(own.path) :]
    path = path_of(relative.removesuffix("/"), base)
    return Entry(path, url, is_folder=relative.endswith("/"))


def _json_hrefs(body: bytes) -> list[str] | None:
    """nginx, `autoindex_format json`: `[{"name": …, "type": "file" | "directory", …}]`."""
    try:
        listed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, list):
        return None
    hrefs = []
    for item in listed:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            return None
        if item.get("type") in ("file", "directory"):
            # `./` so that a colon in the name is not taken for a scheme.
            hrefs.append("./" + quote(item["name"]) + ("/" if item["type"] == "directory" else ""))
    return hrefs


def _html_hrefs(body: bytes) -> list[str] | None:
    page = _Page()
    page.feed(body.decode("utf-8", errors="replace"))
    page.close()
    # Any other page has links too; to take those for weights would go wrong quietly.
    return page.hrefs if any(sign in page.title.lower() for sign in _TITLES) else None


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.hrefs: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        if tag == "a":
            self.hrefs.extend(value for name, value in attrs if name == "href" and value)

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - titles do not nest
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
