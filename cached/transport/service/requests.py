"""Small requests to one service, with their credentials, and their answers as checked JSON.

Law: a page, a cut or foreign answer, and one beyond its limit are errors that name the service, what was expected and
what was found; no answer is held beyond its limit. A refused token is renewed once in each request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import response_error
from cached.transport.pages import page_error, page_in
from cached.transport.service.tokens import Credentials
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import display_url

MAX_ANSWER_BYTES = 16 * 1024 * 1024
_UNAUTHORIZED = 401


class Service:
    """The requests of one call to a service, which all end with `cancellation`.

    `subject`: the source, for messages, without credentials. `credentials`: for the service's own origins.
    `explain`: returns the error for a response of the service's own kind, None for the general one. `chosen_by`: the
    URL of another service that named this one's address, as for `HttpTarget`.
    """

    def __init__(
        self,
        client: HttpClient,
        cancellation: Cancellation,
        subject: str,
        credentials: Credentials | None = None,
        explain: Callable[[Response], HoldfastError | None] = lambda _response: None,
        chosen_by: str | None = None,
    ) -> None:
        self._client = client
        self._cancellation = cancellation
        self._subject = subject
        self._credentials = credentials
        self._explain = explain
        self._chosen_by = chosen_by

    def get(self, url: str, headers: Headers = (), limit_bytes: int = MAX_ANSWER_BYTES) -> Response:
        """Return the answer 200 to a GET. Raises for any other, `Transient` (`bad_response`) for a web page."""
        return self._checked(url, self.ask(url, headers, limit_bytes))

    def get_json(self, url: str, headers: Headers = (), limit_bytes: int = MAX_ANSWER_BYTES) -> Any:
        """Return the JSON value that a GET is answered with. Raises as `get`, and `Transient` (`bad_response`) for what
        is not JSON, also if it is cut."""
        accept: Headers = () if _has(headers, "accept") else (("Accept", "application/json"),)
        return self._json(url, self.get(url, (*accept, *headers), limit_bytes))

    def post_json(self, url: str, document: Any, headers: Headers = (), limit_bytes: int = MAX_ANSWER_BYTES) -> Any:
        """Send `document` as JSON and return the JSON value of the answer; `headers` may give another `Accept` and
        `Content-Type`. Raises as `get_json`."""
        given: Headers = (("Content-Type", "application/json"), ("Accept", "application/json"))
        rest = tuple(each for each in given if not _has(headers, each[0]))
        body = json.dumps(document).encode()
        return self._json(url, self._checked(url, self.ask(url, (*rest, *headers), limit_bytes, body)))

    def post_form(self, url: str, fields: Mapping[str, str], headers: Headers = ()) -> Any:
        """Send `fields` as a form, as token endpoints expect it; return the JSON value of the answer. Raises as
        `get_json`."""
        form: Headers = (("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "application/json"))
        body = urlencode(fields).encode()
        return self._json(url, self._checked(url, self.ask(url, (*form, *headers), MAX_ANSWER_BYTES, body)))

    def ask(
        self, url: str, headers: Headers = (), limit_bytes: int = MAX_ANSWER_BYTES, body: bytes | None = None
    ) -> Response:
        """Return the answer of any status to a GET, or to a POST of `body`, after redirects."""

        def send(target: HttpTarget) -> Response:
            if body is None:
                return self._client.fetch_any_status(target, limit_bytes, self._cancellation)
            return self._client.post_any_status(target, body, limit_bytes, self._cancellation)

        return self._authorized(url, headers, send)

    def peek(self, url: str, headers: Headers = ()) -> Response:
        """Return the head of the answer of any status to a GET, which follows no redirect and reads no body: its
        `redirect_url` is where the bytes are."""
        return self._authorized(url, headers, lambda target: self._client.peek_any_status(target, self._cancellation))

    def error_of(self, url: str, response: Response) -> HoldfastError:
        """Return the error of a response that is no success."""
        explained = self._explain(response)
        if explained is not None:
            return explained
        return self._about(response_error(response.status, response.headers, display_url(url), response.body))

    def _authorized(self, url: str, headers: Headers, send: Callable[[HttpTarget], Response]) -> Response:
        with_credentials = self._headers_for(url, headers)
        try:
            response = send(HttpTarget(url, with_credentials, chosen_by=self._chosen_by))
            issuer = self._credentials if response.status == _UNAUTHORIZED else None
            if issuer is not None and issuer.refuse(with_credentials):
                response = send(HttpTarget(url, self._headers_for(url, headers), chosen_by=self._chosen_by))
        except HoldfastError as error:
            raise self._about(error) from error
        return response

    def _headers_for(self, url: str, headers: Headers) -> Headers:
        if self._credentials is None:
            return headers
        return (*headers, *self._credentials.headers_for(url, self._cancellation))

    def _checked(self, url: str, response: Response) -> Response:
        if response.status != 200:
            raise self.error_of(url, response)
        page = page_in(response.body)
        if page is not None:
            raise self._about(page_error("the answer of a service", display_url(response.url), page))
        return response

    def _json(self, url: str, response: Response) -> Any:
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError) as error:
            found = "an empty answer" if not response.body.strip() else f"{len(response.body)} bytes that are not JSON"
            raise Transient(
                "bad_response",
                f"{self._subject}: {display_url(url)}: expected JSON, found {found} ({type(error).__name__})",
                "check that the address is the service's own; a proxy in between may have cut or replaced its answer",
            ) from error

    def _about(self, error: HoldfastError) -> HoldfastError:
        """Return `error` with the source in its message."""
        message = error.message if error.message.startswith(self._subject) else f"{self._subject}: {error.message}"
        if isinstance(error, Transient):
            about: HoldfastError = Transient(error.code, message, error.remedy, retry_after_s=error.retry_after_s)
        else:
            about = Permanent(error.code, message, error.remedy)
        about.__cause__ = error
        return about


def _has(headers: Headers, name: str) -> bool:
    return any(each.lower() == name.lower() for each, _ in headers)
