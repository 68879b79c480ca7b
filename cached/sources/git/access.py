"""Whose credentials a Git host gets, and what its refusals mean.

Law: a token goes to the host that it is named for, and to no other: user information of the location; the variable of
the host (`HOLDFAST_GIT_TOKEN_` and its name); the variable that the host's own tools read; else the netrc file, which
the transport looks up by itself. A token of the environment is not sent over plain HTTP to another machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cached.contract.errors import HoldfastError, Permanent
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.ssrf import is_loopback
from cached.transport.credentials import basic
from cached.transport.service.tokens import FixedHeaders
from cached.transport.target import Headers
from cached.transport.urls import Origin

_PREFIX = "HOLDFAST_GIT_TOKEN_"
_USER = "x-access-token"  # of a token alone: GitHub, GitLab, Gitea, Bitbucket and Azure look at the password only
_OWN = {
    "github.com": ("GH_TOKEN", "GITHUB_TOKEN"),
    "gitlab.com": ("GITLAB_TOKEN",),
    "huggingface.co": ("HF_TOKEN",),
}


def variable_of(origin: Origin) -> str:
    """Return the name of the environment variable with the token for `origin`: `.` becomes `_`, `-` becomes `__`, so
    that two hosts never share one; `_` and the port follow where that is not the scheme's own."""
    host, _, port = origin.netloc.rpartition(":") if not origin.netloc.endswith("]") else (origin.netloc, "", "")
    name = origin.netloc if not host else f"{host}.{port}" if port else host
    return _PREFIX + name.strip("[]").replace("-", "__").replace(".", "_").replace(":", "_").upper()


def credentials_for(origin: Origin, userinfo: tuple[str, str] | None, where: str) -> FixedHeaders:
    """Return the credentials for `origin`, whose location has this `userinfo`. Raises `Permanent` (`bad_source`) where
    a token would cross the network in the clear, (`unauthorized`) for one that no header can carry."""
    url = f"{origin.scheme}://{origin.netloc}"
    if userinfo is not None:
        return FixedHeaders([url], (("Authorization", basic(*userinfo)),))
    for name in (variable_of(origin), *_OWN.get(origin.host, ())):
        value = os.environ.get(name, "").strip()
        if value:
            return FixedHeaders([url], _headers(value, name, origin, where))
    return FixedHeaders([url], ())


def has_credentials(origin: Origin, credentials: FixedHeaders, client: HttpClient) -> bool:
    """Return whether requests to `origin` carry any."""
    url = f"{origin.scheme}://{origin.netloc}"
    return bool(credentials.headers_for(url, Cancellation())) or client.credentials(url) is not None


def _headers(value: str, name: str, origin: Origin, where: str) -> Headers:
    if origin.scheme != "https" and not is_loopback(origin.host):
        raise Permanent(
            "bad_source",
            f"{where}: expected https for requests with the token of {name}, found plain HTTP",
            f"use git+https://, or unset {name}",
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise Permanent(
            "unauthorized", f"{where}: the token of {name} has characters that no token has", "copy it again"
        )
    user, colon, password = value.partition(":")
    return (("Authorization", basic(user, password) if colon else basic(_USER, value)),)


def explain(where: str, origin: Origin, *, with_credentials: bool) -> Callable[[Response], HoldfastError | None]:
    """Return the function that explains a refusal of a Git host about the repository `where`."""

    def explained(response: Response) -> HoldfastError | None:
        return explained_status(response.status, where, origin, with_credentials=with_credentials)

    return explained


def explained_status(status: int, where: str, origin: Origin, *, with_credentials: bool) -> HoldfastError | None:
    """Return the error of a refusal; None for what has nothing to do with the repository or its credentials."""
    give = f"give a token in {variable_of(origin)} or a netrc file"
    other = give if not with_credentials else "use a token of an account that may read the repository"
    if status == 401:
        sent = "the credentials that were sent are refused" if with_credentials else "it asks for credentials"
        problem = f"{where}: the host answered 401: {sent}, and some hosts say so of a repository that is not there"
        return Permanent("unauthorized", problem, f"check the address; {other}")
    if status == 403:
        return Permanent("forbidden", f"{where}: the host answered 403: it may not be read", other)
    if status in (404, 410):
        problem = f"{where}: the host answered {status}: there is no such repository, or it is private"
        return Permanent("not_found", problem, f"check the address; {other}")
    return None
