"""Directory indexes of web servers: nginx's JSON, and the HTML of nginx, Apache and `python -m http.server`.

Law: pure. Lists only entries strictly below the index itself; does not check whether a name is a valid path.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from html import unescape
from urllib.parse import quote, unquote, urljoin, urlsplit

from cached.contract.errors import Permanent

_TITLES = ("index of", "directory listing")
# Not html.parser, whose time grows with the square of the input if tags do not end: a page of 16 MB took hours.
# Generated indexes have no `<` or `>` within a tag.
_TITLE = re.compile(r"<title[^<>]*>([^<]{0,1000})", re.IGNORECASE)
_LINK = re.compile(r"<a(\s[^<>]*)>", re.IGNORECASE)
_HREF = re.compile(r"""\shref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_MAX_HREF = 4096  # characters: longer than any path, shorter than Python's limit of digits in `&#…;`
_RENAME = "rename it at the source, leave it out with `exclude`, or publish the version with `holdfast publish`"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One entry of an index. `path`: relative to the index, NFC; `url`: its address; `is_folder`: it has an index.
    `problem`: why the name is invalid, else None."""

    path: str
    url: str
    is_folder: bool
    problem: Permanent | None = None


def read_index(body: bytes, content_type: str, url: str) -> list[IndexEntry] | None:
    """Return the entries of the index at `url` (which ends in `/`), or None if `body` is no index."""
    hrefs = None
    if content_type.startswith("application/json"):
        hrefs = _json_hrefs(body)
    elif content_type.startswith("text/html"):
        hrefs = _html_hrefs(body)
    if hrefs is None:
        return None
    entries = {entry.url: entry for href in hrefs if (entry := _entry(href, url)) is not None}
    return list(entries.values())


def path_of(encoded: str, where: str) -> tuple[str, Permanent | None]:
    """Return a percent-encoded path, decoded, in NFC, not checked further, and the error in its encoding or None. Bytes
    that are not UTF-8 become lone surrogates, as in file names (PEP 383)."""
    path = unicodedata.normalize("NFC", unquote(encoded, errors="surrogateescape"))
    try:
        path.encode()
    except UnicodeEncodeError:
        return path, Permanent("bad_name", f"{where}: expected a name in UTF-8, found {encoded[:200]!r}", _RENAME)
    if path.count("/") != encoded.count("/"):
        return path, Permanent("bad_name", f"{where}: the name {path[:200]!r} has an encoded slash in it", _RENAME)
    return path, None


def _entry(href: str, base: str) -> IndexEntry | None:
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
    path, problem = path_of(relative.removesuffix("/"), base)
    return IndexEntry(path, url, relative.endswith("/"), problem)


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
            # `./`, else a colon in the name ends a scheme. JSON may escape text that is not valid in UTF-8.
            name = quote(item["name"], errors="surrogatepass")
            hrefs.append(f"./{name}/" if item["type"] == "directory" else f"./{name}")
    return hrefs


def _html_hrefs(body: bytes) -> list[str] | None:
    page = body.decode("utf-8", errors="replace")
    title = _TITLE.search(page)
    # Any other page has links too, which must not silently become weights.
    if title is None or not any(sign in title[1].lower() for sign in _TITLES):
        return None
    found = (_HREF.search(link[1]) for link in _LINK.finditer(page))
    hrefs = (href[1] or href[2] or href[3] or "" for href in found if href is not None)
    return [unescape(href) for href in hrefs if 0 < len(href) <= _MAX_HREF]
