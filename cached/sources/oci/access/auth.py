"""The authorization of requests to one registry: what its 401 asks for, answered with the login for it.

Law: nothing is sent before the registry asks for it. A login goes to the registry itself (Basic) or to the token server
that the registry names, a token to the registry only. A token without `expires_in` is valid for 60 s. A missing right
(`insufficient_scope`) is final, as a new token would not have it either; a token that is no longer valid is renewed.
Sources: the Distribution project, "Token Authentication Specification", "Oauth2 Token Authentication"; RFC 6750, 3.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from cached.contract.errors import Permanent, Transient
from cached.sources.oci.access.hosts import is_this_machine
from cached.sources.oci.access.logins import Login
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import response_error
from cached.transport.pages import page_error, page_in
from cached.transport.service.tokens import BearerTokens, Token
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import Address, display_url, split_url

DEFAULT_LIFETIME_S = 60.0
_MAX_TOKEN_BYTES = 1024 * 1024
_CLIENT_ID = "holdfast"
_PARAMETER = re.compile(r'([A-Za-z_][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME = re.compile(r"\s*(bearer|basic)(?:\s+|$)", re.IGNORECASE)
_SCOPE = re.compile(r"repository:([^:]+):[a-z,*]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a 401 asks for: the scheme in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]

    @classmethod
    def parse(cls, response: Response) -> Challenge | None:
        """Return the challenge of a 401, Bearer before Basic; None without one of these."""
        found = []
        for value in response.headers.get_all("WWW-Authenticate", []):
            match = _SCHEME.match(value)
            if match is not None:
                given = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(value)}
                found.append(cls(match[1].lower(), given))
        return max(found, key=lambda each: each.scheme, default=None)


class RegistryAuth:
    """The credentials for one endpoint (`base`: its URL) and one repository; `actions` as in a token's scope. `find`
    looks for the login: blocking, with the cancellation of the request that needs it."""

    def __init__(
        self,
        base: str,
        repository: str,
        client: HttpClient,
        find: Callable[[Cancellation], Login | None],
        actions: str = "pull",
    ) -> None:
        self._base = base
        self._repository = repository
        self._client = client
        self._find = find
        self._actions = actions
        # The token server of a registry on this machine may be on it as well, under another of its names.
        self._chosen_by = None if is_this_machine(urlsplit(base).netloc) else base
        self._tokens: BearerTokens | None = None
        self._is_anonymous = False  # whether the last token was given without a login

    def headers_for(self, url: str, cancellation: Cancellation) -> Headers:
        """Return the headers for a request to `url`; none for another server, and before the first challenge."""
        return () if self._tokens is None else self._tokens.headers_for(url, cancellation)

    def refuse(self, headers: Headers) -> bool:
        """Drop the token in `headers`; return whether there was one."""
        return self._tokens is not None and self._tokens.refuse(headers)

    def authorize(self, target: HttpTarget, cancellation: Cancellation) -> HttpTarget:
        """Return `target` with the credentials, if it is at this registry and that asks for them."""
        return target if self._tokens is None else self._tokens.authorize(target, cancellation)

    def learn(self, response: Response, sent: Headers) -> None:
        """Note what a 401 asks for, in answer to a request with the credentials `sent`. Raises `Permanent` where no new
        ones can help: `forbidden` for a missing right, `unauthorized` where they cannot be given."""
        where = display_url(response.url)
        is_own = Address.parse(response.url).origin == Address.parse(self._base).origin
        challenge = Challenge.parse(response) if is_own else None
        if challenge is None:
            raise _unauthorized(where, "it asks for credentials, and does not say which")
        if sent and challenge.parameters.get("error") == "insufficient_scope":
            if self._is_anonymous:
                raise _unauthorized(where, f"there is no login for it, and {self._actions} needs one")
            raise Permanent(
                "forbidden",
                f"{where}: the token that this login gets has no right to {self._actions} there",
                f"grant this login the right to {self._actions} the repository {self._repository}",
            )
        if sent and self.refuse(sent):
            return
        if challenge.scheme == "basic":
            self._tokens = BearerTokens([self._base], lambda cancellation: self._issue_basic(where, cancellation))
        else:
            realm = self._realm(challenge, where)
            self._tokens = BearerTokens([self._base], lambda cancellation: self._issue(realm, challenge, cancellation))

    def _realm(self, challenge: Challenge, where: str) -> str:
        realm = challenge.parameters.get("realm", "")
        scheme = split_url(realm).scheme
        if scheme not in ("http", "https"):
            raise _unauthorized(where, "it names no token server")
        if scheme == "http" and urlsplit(self._base).scheme == "https":
            raise Permanent(
                "insecure_redirect",
                f"{where} names the token server {display_url(realm)}, from TLS to plain HTTP",
                "the registry's operator has to give its token server an https address",
            )
        Address.parse(realm)
        return realm

    def _issue_basic(self, where: str, cancellation: Cancellation) -> Token:
        login = self._find(cancellation)
        if login is not None and login.bearer is not None:
            return Token(login.bearer, login.lifetime_s)
        if login is None or not login.user:
            raise _unauthorized(where, "it asks for a user and a password, and there is no login for it")
        return Token(login.authorization.removeprefix("Basic "), login.lifetime_s, "Basic")

    def _issue(self, realm: str, challenge: Challenge, cancellation: Cancellation) -> Token:
        """Ask the token server; without a login too, as public repositories need a token as well."""
        login = self._find(cancellation)
        self._is_anonymous = login is None
        if login is not None and login.bearer is not None:
            return Token(login.bearer, login.lifetime_s)
        service = challenge.parameters.get("service", "")
        named = _SCOPE.fullmatch(challenge.parameters.get("scope", ""))
        scope = f"repository:{named[1] if named else self._repository}:{self._actions}"
        answer = self._ask(realm, service, scope, login, cancellation)
        if answer.status != 200:
            if answer.status in (401, 403):
                raise _unauthorized(display_url(realm), f"the token server refuses {_shown(login)} ({answer.status})")
            raise response_error(answer.status, answer.headers, display_url(realm), answer.body)
        return _read_token(answer)

    def _ask(self, realm: str, service: str, scope: str, login: Login | None, cancellation: Cancellation) -> Response:
        json_only = ("Accept", "application/json")
        if login is not None and login.identity is not None:
            fields = {"grant_type": "refresh_token", "service": service, "scope": scope}
            body = urlencode({**fields, "client_id": _CLIENT_ID, "refresh_token": login.identity}).encode()
            headers: Headers = (json_only, ("Content-Type", "application/x-www-form-urlencoded"))
            target = HttpTarget(realm, headers, chosen_by=self._chosen_by)
            return self._client.post_any_status(target, body, _MAX_TOKEN_BYTES, cancellation)
        query = {"service": service, "scope": scope} if service else {"scope": scope}
        url = realm + ("&" if urlsplit(realm).query else "?") + urlencode(query, quote_via=quote)
        headers = (json_only,) if login is None else (json_only, ("Authorization", login.authorization))
        target = HttpTarget(url, headers, chosen_by=self._chosen_by)
        return self._client.fetch_any_status(target, _MAX_TOKEN_BYTES, cancellation)


def _read_token(answer: Response) -> Token:
    where = display_url(answer.url)
    page = page_in(answer.body)
    if page is not None:
        raise page_error("a token", where, page)
    given = _json_object(answer.body)
    value = given.get("token") or given.get("access_token")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise Transient(
            "bad_response",
            f"{where}: expected JSON with a token, found something else",
            "it is tried again; if it goes on, the registry's token server is at fault",
        )
    lifetime_s = given.get("expires_in")
    if isinstance(lifetime_s, bool) or not isinstance(lifetime_s, int | float) or not 0 < lifetime_s < 10**9:
        lifetime_s = DEFAULT_LIFETIME_S
    return Token(value, float(lifetime_s))


def _json_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object, empty for anything else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _shown(login: Login | None) -> str:
    return "a request without a login" if login is None else "this login"


def _unauthorized(where: str, problem: str) -> Permanent:
    return Permanent(
        "unauthorized",
        f"{where}: {problem}",
        "give this process a login for the registry in Docker's config.json (DOCKER_CONFIG, REGISTRY_AUTH_FILE), or "
        "let its cloud identity read there; and check the repository's name: many registries ask for a login where "
        "there is none of that name",
    )
