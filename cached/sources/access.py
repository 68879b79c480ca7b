"""The access to one location of an object store: its credentials, found at the first use, and what an answer means.

Law: nothing is sent before the first request. The subclass of a store knows where its credentials are and what the
store's errors mean; a location without credentials is read anonymously.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cached.contract.errors import HoldfastError
from cached.sources.signed_urls import lifetime_s
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.requests import Service
from cached.transport.service.tokens import BearerTokens
from cached.transport.target import Headers, HttpTarget


@dataclass(frozen=True, slots=True)
class LocationCredentials:
    """What authorizes the requests of a location: `tokens`, or `sign`, which adds a signature to a URL, or neither.
    `lacking`: why neither was found, where they were looked for."""

    tokens: BearerTokens | None = None
    sign: Callable[[str], str] | None = None
    lacking: HoldfastError | None = None


class LocationAccess(ABC):
    """The requests of a location, which messages show as `display`. Thread-safe. The credentials are looked for once,
    in the first call that may wait; what fails then is looked for again by the next call."""

    def __init__(self, client: HttpClient, display: str, *, is_anonymous: bool) -> None:
        self._client = client
        self._display = display
        self._finding = threading.Lock()
        self._found = LocationCredentials() if is_anonymous else None

    @abstractmethod
    def _find(self, cancellation: Cancellation) -> LocationCredentials:
        """Look for the credentials. May wait for a token. Raises `HoldfastError` where another look may find some."""

    @abstractmethod
    def _explain(self, lacking: HoldfastError | None, response: Response) -> HoldfastError | None:
        """Return the error of a response; None for the general one. `lacking`: as in `LocationCredentials`."""

    def service(self, cancellation: Cancellation) -> Service:
        """Return the service with its tokens, for requests that end with `cancellation`, to URLs that are `signed`. May
        wait for a token."""
        found = self._credentials(cancellation)
        explain = partial(self._explain, found.lacking)
        return Service(self._client, cancellation, self._display, found.tokens, explain)

    def signed(self, url: str, cancellation: Cancellation) -> str:
        """Return `url` with a signature, if that is what authorizes."""
        sign = self._credentials(cancellation).sign
        return url if sign is None else sign(url)

    def headers_for(self, url: str, cancellation: Cancellation) -> Headers:
        """Return the headers that authorize a request to `url`, beside a signature. May wait for a token."""
        tokens = self._credentials(cancellation).tokens
        return () if tokens is None else tokens.headers_for(url, cancellation)

    def refuse(self, headers: Headers) -> bool:
        """Note that the service refused `headers`; return whether others may be accepted."""
        tokens = None if self._found is None else self._found.tokens
        return tokens is not None and tokens.refuse(headers)

    def explain(self, response: Response) -> HoldfastError | None:
        """Return the error of a response; None for the general one."""
        return self._explain(None if self._found is None else self._found.lacking, response)

    def authorize(self, target: HttpTarget, cancellation: Cancellation) -> HttpTarget:
        """Return `target` with a signature or a token, as long as that is valid. May wait for a token."""
        found = self._credentials(cancellation)
        return _sign(target, found) if found.tokens is None else found.tokens.authorize(target, cancellation)

    def authorize_now(self, target: HttpTarget) -> HttpTarget | None:
        """Return what `authorize` does, without waiting; None where credentials must be asked for first."""
        found = self._found
        if found is None:
            return None
        return _sign(target, found) if found.tokens is None else found.tokens.authorize_now(target)

    def _credentials(self, cancellation: Cancellation) -> LocationCredentials:
        with self._finding:
            if self._found is None:
                self._found = self._find(cancellation)
            return self._found


def _sign(target: HttpTarget, found: LocationCredentials) -> HttpTarget:
    if found.sign is None:
        return target
    url = found.sign(target.url)
    return replace(target, url=url, lifetime_s=lifetime_s(url, time.time()))
