"""The errors of a Hub, with remedies for a person: huggingface_hub's errors as ours.

Law: translates only. A message never has a token or a signed URL; it quotes the Hub's own text only if that says more
than the status, shortened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # documented, not in __all__

from cached.contract.errors import HoldfastError, Permanent, Transient, http_code
from cached.sources.oauth import quoted
from cached.transport.client import Response
from cached.transport.errors import is_retried, retry_after_s
from cached.transport.pages import SIGN_IN

_CHECK_MIRROR = "check that HF_ENDPOINT is a Hub, or a mirror that passes its API and headers through unchanged"
_BEARER = re.compile(r"hf_\w*|bearer\s+\S*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubRequest:
    """A request to a Hub, for messages: `subject` is `hf://org/repo@main`, or a file of it."""

    endpoint: str
    repo: str
    revision: str
    subject: str
    with_token: bool

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{self.repo}"


@contextmanager
def translate_errors(request: HubRequest) -> Iterator[None]:
    """Raise the errors of huggingface_hub, and those of parsing its answer, as a chained `HoldfastError`."""
    try:
        yield
    except HfHubHTTPError as error:  # first, as it is also an httpx2.HTTPError and an OSError
        raise _refused(error, request) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise bad_response(request, f"an answer that cannot be read ({type(error).__name__})") from error


@contextmanager
def explain_errors(request: HubRequest) -> Iterator[None]:
    """Raise the errors of a request to the Hub with its subject and a remedy."""
    try:
        yield
    except Transient as error:
        raise Transient(
            error.code,
            f"{request.subject}: {error.message}",
            "it is tried again; if it goes on, check the network, HTTPS_PROXY and NO_PROXY, and HF_ENDPOINT",
        ) from error
    except Permanent as error:
        raise Permanent(
            error.code, f"{request.subject}: {error.message}", f"check HF_ENDPOINT; {error.remedy}"
        ) from error


def joined(request: HubRequest, base: str, location: str) -> str:
    """Return the absolute URL of `location` in an answer from `base`. Raises `Transient` (`bad_response`)."""
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise bad_response(request, "a location that is no URL") from error


def bad_response(request: HubRequest, found: str, remedy: str = _CHECK_MIRROR) -> Transient:
    """Return the error of an answer that no Hub sends, perhaps from a proxy or an incomplete mirror."""
    problem = f"{request.subject}: expected an answer of the Hub's API from {request.endpoint}, found {found}"
    return Transient("bad_response", problem, remedy)


def web_page(request: HubRequest, page: str, where: str) -> Transient:
    """Return the error of a web page from a proxy or portal before the Hub; `where` it was found, without a query."""
    return bad_response(request, f"{page} at {where}", f"check HF_ENDPOINT; {SIGN_IN}")


def lacks_api(answer: Response) -> bool:
    """Return whether an error status may mean that this mirror lacks this part of the Hub's API. A Hub names a missing
    object in `X-Error-Code`, and sends `Retry-After` if it is only busy."""
    if answer.headers.get("X-Error-Code") is not None:
        return False
    return answer.status in (404, 405, 410, 501) or (answer.status == 503 and "Retry-After" not in answer.headers)


def lacks_commit(answer: Response) -> bool:
    """Return whether an error status for a commit may mean that this mirror lacks the API, or knows branches only."""
    return lacks_api(answer) or answer.headers.get("X-Error-Code") == "RevisionNotFound"


def without_api(error: HoldfastError, part: str) -> HoldfastError:
    """Add to an error that a mirror may lack the `part` (`tree`, `revision`) of the Hub's API."""
    remedy = "use a mirror that passes the Hub's `/api/models/` through, or leave HF_ENDPOINT out to ask the Hub itself"
    if isinstance(error, Transient):
        return Transient(error.code, f"{error.message}; it is busy, or this mirror has no {part} API", remedy)
    return Permanent(error.code, f"{error.message}; this mirror has no {part} API", remedy)


def too_many_files(request: HubRequest, files: int, pages: int) -> Permanent:
    """Return the error of a listing that is too large for a model, or endless."""
    return Permanent(
        "too_many_files",
        f"{request.subject}: expected at most {files} files, on {pages} pages, found more",
        "name the folder of the repository that holds the version",
    )


def source_changed(request: HubRequest, expected: str, found: str) -> Transient:
    """Return the error of an answer that contradicts the listing."""
    return Transient(
        "source_changed",
        f"{request.subject}: expected {expected} as listed, found {found}",
        "it is listed and read again from the start",
    )


def _refused(error: HfHubHTTPError, request: HubRequest) -> HoldfastError:
    status = error.response.status_code
    # First, because huggingface_hub derives a gated repository from a missing one.
    if isinstance(error, GatedRepoError):
        return _gated(request)
    if isinstance(error, DisabledRepoError):
        return Permanent(
            "disabled",
            f"{request.subject}: the Hub has disabled access to {request.repo}",
            f"read why at {request.page}, or name another source",
        )
    if isinstance(error, RevisionNotFoundError):
        return Permanent(
            "not_found",
            f"{request.subject}: {request.repo} has no revision {request.revision!r}",
            f"take a branch, tag or commit from {request.page}/commits/main",
        )
    if isinstance(error, EntryNotFoundError):
        return Permanent(
            "not_found",
            f"{request.subject}: not in {request.repo} at {request.revision}",
            f"look at the files on {request.page}; single ones are chosen with `include`",
        )
    # Over plain HTTP huggingface_hub does not classify a 401 (2.4, REPO_API_REGEX), though without a token it means
    # this.
    if isinstance(error, RepositoryNotFoundError) or (status == 401 and not request.with_token):
        return _missing(request)
    return _by_status(error, status, request)


def _by_status(error: HfHubHTTPError, status: int, request: HubRequest) -> HoldfastError:
    # Some servers repeat the request's headers.
    words = quoted(_BEARER.sub("…", error.server_message or ""))
    said = f"HTTP {status}" + (f", {words}" if words else "")
    if status == 401:
        return Permanent(
            "unauthorized",
            f"{request.subject}: {request.endpoint} refuses the token ({said})",
            "set HF_TOKEN, or the file at HF_TOKEN_PATH, to a token that is still valid there",
        )
    if status == 403:
        return Permanent(
            "forbidden",
            f"{request.subject}: {request.endpoint} refuses access ({said})",
            f"use a token with read access to {request.repo}"
            + ("" if request.with_token else "; none was sent: set HF_TOKEN"),
        )
    if status in (404, 410):
        return Permanent(
            "not_found", f"{request.subject}: not at {request.endpoint} ({said})", "check the source, and HF_ENDPOINT"
        )
    if is_retried(status):
        return Transient(
            http_code(status),
            f"{request.subject}: {request.endpoint} cannot answer now ({said})",
            "" if request.with_token else "with a token in HF_TOKEN the Hub allows more requests",
            retry_after_s=_retry_after_s(error.response.headers),
        )
    return Permanent(
        http_code(status),
        f"{request.subject}: {request.endpoint} refuses the request ({said})",
        "check the source, HF_ENDPOINT",
    )


def _gated(request: HubRequest) -> Permanent:
    sent = "the account of the token that was sent has no access" if request.with_token else "no token was sent"
    return Permanent(
        "gated",
        f"{request.subject}: {request.repo} is gated, and {sent}",
        f"request access at {request.page}, then set HF_TOKEN to a token of an account that has it",
    )


def _missing(request: HubRequest) -> Permanent:
    token = (
        "the account of the token that was sent may not see it: use another token"
        if request.with_token
        else "no token was sent: set HF_TOKEN to a token of an account that may read it"
    )
    return Permanent(
        "not_found",
        f"{request.subject}: {request.endpoint} shows no repository {request.repo}: "
        "either there is none, or it is private",
        f"check the name; if it is private, {token}",
    )


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    """Return the requested delay in seconds: `Retry-After`, or the Hub's own `RateLimit` when used up."""
    limit = parse_ratelimit_headers(headers)
    reset = str(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None
    return retry_after_s(headers.get("Retry-After", "").strip() or reset, headers.get("Date"))
