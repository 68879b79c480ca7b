"""Dragonfly before the origins: which request goes to this node's dfdaemon, with which headers, and what its answers
mean.

Law: no sockets; the clock is an argument. Only content whose sha256 is known goes there, and the caller verifies it. A
dfdaemon that fails is left for a while, which is said once; the request goes to its origin then. Headers and responses
are those of dragonflyoss/client 1.5.1 (`dragonfly-client/src/proxy/header.rs` and `mod.rs`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cached.contract.errors import HoldfastError
from cached.transport.response import ResponseHead
from cached.transport.target import Headers
from cached.transport.urls import Address, Origin

_log = logging.getLogger(__name__)

_PREFIX = "dragonfly="
_PAUSE_S = 30.0
_MAX_REMEMBERED = 1024
_ERROR_TYPE = "X-Dragonfly-Error-Type"
_BACKEND = "backend"  # the origin's own error, passed on
_BUSY = frozenset({429, 503})  # a second request at once would only add to the origin's load
_NO_SECRETS = frozenset({"accept"})


@dataclass(frozen=True, slots=True)
class OriginProxySettings:
    """Where dfdaemon listens, and whether it may see headers with credentials."""

    address: Origin
    with_credentials: bool = False


def parse_origin_proxy(text: str) -> Origin:
    """Parse `dragonfly=http://HOST:PORT`. Raises ValueError with what was expected."""
    expected = f"expected {_PREFIX}http://HOST:PORT, the proxy of this node's dfdaemon, found"
    if not text.startswith(_PREFIX):
        raise ValueError(f"{expected} {text.partition('=')[0]!r}")
    try:
        address = Address.parse(text.removeprefix(_PREFIX))
    except HoldfastError as error:
        raise ValueError(f"{expected} another address") from error
    if address.userinfo is not None:
        raise ValueError(
            "expected no user in the address of dfdaemon: it reads its password from the header that is the origin's "
            "(Authorization), and passes it on; leave `proxy.server.basicAuth` out of its configuration"
        )
    if address.origin.scheme != "http" or address.resource != "/":
        raise ValueError(f"{expected} {address.origin.scheme}://{address.origin.netloc}{address.resource}")
    return address.origin


def parse_origin_proxy_option(text: str) -> Origin | None:
    """Parse the option's value: as `parse_origin_proxy`, None for `off`."""
    return None if text == "off" else parse_origin_proxy(text)


class OriginProxy:
    """One dfdaemon, as the requests for content see it. Thread-safe."""

    def __init__(self, settings: OriginProxySettings, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self.address = settings.address
        self._with_credentials = settings.with_credentials
        self._clock = clock
        self._lock = threading.Lock()
        self._is_failing = False
        self._left_until = 0.0
        self._distrusted: dict[str, None] = {}  # the oldest first
        self._withheld: set[Origin] = set()

    def takes(self, origin: Origin, content: str, own: Headers) -> bool:
        """Return whether a request to `origin` for the content of this sha256 goes there with its `own` headers. After
        a failure one request in each pause does."""
        if not self._with_credentials and any(name.lower() not in _NO_SECRETS for name, _ in own):
            self._say_withheld(origin)
            return False
        with self._lock:
            if content in self._distrusted:
                return False
            if self._is_failing:
                if self._clock() < self._left_until:
                    return False
                self._left_until = self._clock() + _PAUSE_S
            return True

    def make_headers(self, origin: Origin, content: str | None) -> Headers:
        """Return the headers that ask for a resource of `origin`; `content`: the sha256 of all of that resource, None
        where it is not known: its URL names the task then."""
        headers = (
            ("X-Dragonfly-Registry", f"{origin.scheme}://{origin.netloc}"),
            ("X-Dragonfly-Use-P2P", "true"),
            ("X-Dragonfly-Prefetch", "true"),
            ("X-Dragonfly-Application", "holdfast"),
        )
        if content is None:
            return headers
        # Signed URLs of one file differ from node to node.
        return (*headers, ("X-Dragonfly-Content-For-Calculating-Task-ID", f"sha256:{content}"))

    def judge(self, answer: ResponseHead, where: str) -> bool:
        """Return whether `answer`, which is neither 200 nor 206, is to be passed on: the origin's own word that it is
        busy. Any other is not: the origin is asked. Notes a failure of dfdaemon itself."""
        if answer.headers.get(_ERROR_TYPE) == _BACKEND:
            return answer.status in _BUSY
        kind = answer.headers.get(_ERROR_TYPE)
        named = "" if kind is None else f" ({_ERROR_TYPE}: {kind[:40]})"
        self.record_failure(f"{where}: it answered {answer.status}{named}")
        return False

    def record_failure(self, problem: str) -> None:
        """Leave dfdaemon for a while: it could not be reached, or did not answer as it should."""
        with self._lock:
            was_failing, self._is_failing = self._is_failing, True
            self._left_until = self._clock() + _PAUSE_S
        if not was_failing:
            _log.warning(
                "Dragonfly at %s does not help: %s; origins are asked directly, and it is tried again each %g s",
                self.address.netloc,
                problem,
                _PAUSE_S,
            )

    def record_success(self) -> None:
        """Note that dfdaemon sent a body to its end."""
        if not self._is_failing:  # read without the lock: each body ends here
            return
        with self._lock:
            was_failing, self._is_failing = self._is_failing, False
        if was_failing:
            _log.info("Dragonfly at %s works again", self.address.netloc)

    def distrust(self, content: str, name: str) -> None:
        """Ask for this content, of the file `name`, no more: what came of it was wrong."""
        with self._lock:
            self._distrusted[content] = None
            if len(self._distrusted) > _MAX_REMEMBERED:
                del self._distrusted[next(iter(self._distrusted))]
        _log.warning(
            "Dragonfly at %s sent wrong bytes of %s: its origin is asked for it (expected sha256 %s)",
            self.address.netloc,
            name,
            content,
        )

    def _say_withheld(self, origin: Origin) -> None:
        with self._lock:
            if origin in self._withheld or len(self._withheld) >= _MAX_REMEMBERED:
                return
            self._withheld.add(origin)
        _log.info(
            "%s is asked directly, not through Dragonfly: its requests have credentials "
            "(--origin-proxy-credentials on sends them to dfdaemon)",
            origin.netloc,
        )
