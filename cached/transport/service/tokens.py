"""Bearer tokens, each for the origins that it is for, renewed by one thread for all files and requests.

Law: a token is in the header of a request to its own origins, and never in a message or a `repr`. It is renewed before
it ends, and when a server refuses it: a service may end a token sooner than it says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from cached.contract.errors import Transient
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.renewal import Renewal
from cached.transport.target import Headers, HttpTarget, Issuer
from cached.transport.urls import Address

_USED_SHARE = 0.8  # of its lifetime: a request that was sent must arrive in time


class Credentials(Issuer, Protocol):
    """The headers that authorize requests at the origins that they are for. Thread-safe."""

    def headers_for(self, url: str, cancellation: Cancellation) -> Headers:
        """Return the headers for a request to `url`; none for an origin that they are not for. May wait for a token;
        raises as a request does."""


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token. `lifetime_s`: how long it is valid from its issue, None if the issuer does not say. `scheme`: of
    the `Authorization` header; `Basic` for a user and password (base64) that a service issues for a while."""

    value: str = field(repr=False)
    lifetime_s: float | None = None
    scheme: str = "Bearer"


@dataclass(frozen=True, slots=True)
class _Issued:
    token: Token
    at: float

    @property
    def header(self) -> tuple[str, str]:
        return "Authorization", f"{self.token.scheme} {self.token.value}"

    def left_s(self, now: float) -> float | None:
        return None if self.token.lifetime_s is None else self.at + self.token.lifetime_s - now

    def is_fresh(self, now: float) -> bool:
        return self.token.lifetime_s is None or now < self.at + self.token.lifetime_s * _USED_SHARE


class BearerTokens:
    """The successive tokens for the origins of `urls`. `issue` asks for a token: blocking, and called by one thread at
    a time; `clock`: seconds as `time.monotonic`, which targets carry."""

    def __init__(
        self,
        urls: Iterable[str],
        issue: Callable[[Cancellation], Token],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._origins = frozenset(Address.parse(url).origin for url in urls)
        self._issue = issue
        self._clock = clock
        self._issued = Renewal(self._ask, lambda issued: issued.is_fresh(self._clock()))

    def headers_for(self, url: str, cancellation: Cancellation) -> Headers:
        """Return the `Authorization` header for `url`; none for another origin."""
        return () if Address.parse(url).origin not in self._origins else (self._current(cancellation).header,)

    def refuse(self, headers: Headers) -> bool:
        """Drop the token in `headers` unless a later one was issued; return whether there was one of ours."""
        refused = [value for name, value in headers if name.lower() == "authorization"]
        self._issued.drop_if(lambda issued: issued.header[1] in refused)
        return bool(refused)

    def authorize(self, target: HttpTarget, cancellation: Cancellation) -> HttpTarget:
        """Return `target` with the token, as long as that is valid; unchanged at another origin. Raises as `issue`."""
        if Address.parse(target.url).origin not in self._origins:
            return target
        return self._with(target, self._current(cancellation))

    def authorize_now(self, target: HttpTarget) -> HttpTarget | None:
        """Return what `authorize` does, without waiting; None where a token must be asked for first."""
        if Address.parse(target.url).origin not in self._origins:
            return target
        issued = self._issued.good()
        return None if issued is None else self._with(target, issued)

    def _with(self, target: HttpTarget, issued: _Issued) -> HttpTarget:
        ends = [each for each in (target.lifetime_s, issued.left_s(self._clock())) if each is not None]
        return replace(
            target,
            headers=(*target.headers, issued.header),
            lifetime_s=max(0.0, min(ends)) if ends else None,
            issued_at=issued.at,
            issuer=self,
        )

    def _current(self, cancellation: Cancellation) -> _Issued:
        try:
            return self._issued.current(cancellation)
        except Transient:
            last = self._issued.last()
            if last is None or (last.left_s(self._clock()) or 0.0) <= 0.0:
                raise
            return last  # the issuer is away for a moment, and this one is still valid

    def _ask(self, cancellation: Cancellation) -> _Issued:
        began = self._clock()
        return _Issued(self._issue(cancellation), began)


class FixedHeaders:
    """Credentials that nothing renews (a personal token, Basic), for the origins of `urls`."""

    def __init__(self, urls: Iterable[str], headers: Headers) -> None:
        self._origins = frozenset(Address.parse(url).origin for url in urls)
        self._headers = headers

    def headers_for(self, url: str, cancellation: Cancellation) -> Headers:  # noqa: ARG002 - as the Protocol
        """Return the headers for `url`; none for another origin."""
        return self._headers if Address.parse(url).origin in self._origins else ()

    def refuse(self, headers: Headers) -> bool:  # noqa: ARG002 - as the Protocol
        """Return False: there are no others."""
        return False
