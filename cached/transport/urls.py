"""URLs: the origin to connect to, the resource to request, and the display form.

Law: pure. User information, query and fragment are never displayed: signed URLs have their signature in the query.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from cached.contract.errors import Permanent

DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._~:%-]+")
_WRITE_URL = "write it as http(s)://host[:port]/path, with special characters percent-encoded"


@dataclass(frozen=True, slots=True)
class Origin:
    """A server: credentials and connections belong to exactly one origin."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host and port as in the `Host` header."""
        return self.authority.removesuffix(f":{DEFAULT_PORTS[self.scheme]}")

    @property
    def authority(self) -> str:
        """Host and port as in `CONNECT`, always with the port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL. `resource`: path and query as sent; `userinfo`: user and password, decoded. `chosen_by`: the origin
    whose redirects led here; None for a configured address."""

    origin: Origin
    resource: str = field(repr=False)
    userinfo: tuple[str, str] | None = field(default=None, repr=False)
    chosen_by: Origin | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse `url`. Raises `Permanent` (`bad_url`) unless it is http or https with a host."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise Permanent("bad_url", f"{display_url(url)} is not a URL", _WRITE_URL) from error
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise Permanent("bad_url", f"expected an http(s) URL with a host, found {display_url(url)}", _WRITE_URL)
        host = _ascii_host(parts.hostname, url)
        # Encodes only characters invalid in a request line; existing percent-encoding stays.
        path = quote(parts.path or "/", safe=string.punctuation)
        query = quote(parts.query, safe=string.punctuation)
        origin = Origin(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme])
        user = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
        return cls(origin, f"{path}?{query}" if query else path, user)

    @property
    def url(self) -> str:
        """The URL without user information."""
        return f"{self.origin.scheme}://{self.origin.netloc}{self.resource}"


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL that a server names. Raises `Permanent` (`bad_url`)."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise Permanent("bad_url", "a server names an address that is no URL", "look at the server") from error


def display_url(url: str) -> str:
    """Return `url` for a message: without user information, query and fragment. Never raises."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<a URL that cannot be read>"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme or host else parts.path


def origin_of(url: str) -> str:
    """Return the origin of an http(s) `url`: `scheme://host[:port]`. Raises `Permanent` (`bad_url`)."""
    origin = Address.parse(url).origin
    return f"{origin.scheme}://{origin.netloc}"


def next_hop(current: Address, location: str) -> Address:
    """Return the target of a redirect from `current`. Raises `Permanent` for an insecure or foreign one. User
    information in `location` is dropped: a server does not choose our credentials."""
    try:
        # Header bytes arrive decoded as Latin-1; many servers send raw UTF-8.
        target = urljoin(current.url, quote(location, encoding="latin-1", safe=string.punctuation))
    except ValueError as error:
        problem = f"{display_url(current.url)} redirects to an address that is no URL"
        raise Permanent("bad_url", problem, "look at the server, or use the address of the file itself") from error
    scheme = split_url(target).scheme
    shown = f"{display_url(current.url)} redirects to {display_url(target)}"
    if current.origin.scheme == "https" and scheme == "http":
        raise Permanent("insecure_redirect", f"{shown}, from TLS to plain HTTP", "use the source's https address")
    if scheme not in DEFAULT_PORTS:
        raise Permanent("insecure_redirect", f"{shown}, which is not HTTP", "use the address of the file itself")
    address = Address.parse(target)
    return Address(address.origin, address.resource, chosen_by=current.chosen_by or current.origin)


def _ascii_host(host: str, url: str) -> str:
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise Permanent("bad_url", f"the host of {display_url(url)} is not a host name", _WRITE_URL) from error
    if not _HOST.fullmatch(name):
        raise Permanent("bad_url", f"the host of {display_url(url)} is not a host name", _WRITE_URL)
    return name
