"""botocore's errors as ours, each with a remedy for a person.

Law: messages quote at most the server's own text, never a key, a token, a header or a signed URL.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from cached.contract.errors import HoldfastError, Permanent, Transient, http_code
from cached.contract.program import limits
from cached.sources.s3.archive import refusal
from cached.transport.errors import is_retried

_LIBRARY = (
    *(boto.BotoCoreError, boto.ClientError, ResponseParserError, aiohttp.ClientError, TimeoutError, OSError),
    *(ValueError, RecursionError),
)
_CREDENTIALS = (
    *(boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound),
    *(boto.InvalidConfigError, boto.ConfigParseError, boto.ConfigNotFound),
    *(boto.NoAuthTokenError, boto.TokenRetrievalError, boto.SSOError),
)
_BROKEN = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, aiohttp.ClientError)
_SIGN_IN = (
    "give the pod a role (IRSA: annotate its service account), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or name a profile; for a public bucket add ?anonymous=true"
)
_UNAUTHORIZED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"}
    | {"TokenRefreshRequired", "InvalidIdentityToken", "InvalidIdentityTokenException", "UnrecognizedClientException"}
    | {"InvalidClientTokenId"}
)
_FORBIDDEN = frozenset({"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "AccountProblem", "403"})
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
_ELSEWHERE = frozenset(
    {"PermanentRedirect", "301", "307", "AuthorizationHeaderMalformed", "AuthorizationQueryParametersError"}
    | {"IllegalLocationConstraintException"}
)
_THROTTLED = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "TooManyRequests"}
    | {"TooManyRequestsException", "RequestLimitExceeded", "RequestTimeout", "BandwidthLimitExceeded"}
)
_SHOWN_WORD = 128
_WHERE = "check endpoint_url, the proxy and the network"
_BUSY = "it is tried again; if it stays so, look at the server's health and request limits"


class StrangeAnswer(Exception):
    """Our session's error for an answer that no S3 server sends; botocore wraps it in an error of its own."""


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raise botocore's errors as a `HoldfastError` about `uri` (a plain s3:// URI)."""
    try:
        yield
    except _LIBRARY as error:
        raise _translate(error, uri) from error


def _translate(error: Exception, uri: str) -> HoldfastError:
    """Return our error for `error`, which happened at `uri`."""
    if isinstance(error, boto.ClientError):
        return _answered(error, uri)
    short = limits.find_limit_error(error, uri)
    if short is not None:
        return short
    name = type(error).__name__
    if isinstance(error, _CREDENTIALS):
        return Permanent("unauthorized", f"{uri}: no usable AWS credentials ({_clean(str(error))})", _SIGN_IN)
    if isinstance(error, (boto.ParamValidationError, boto.InvalidRegionError, boto.UnsupportedS3ConfigurationError)):
        return Permanent("bad_source", f"{uri}: {_clean(str(error))}", "correct the location")
    strange = next((cause for cause in _causes(error) if isinstance(cause, StrangeAnswer)), None)
    if strange is not None:
        return bad_response(uri, str(strange))
    certificate = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if certificate is not None:
        return Permanent(
            "tls_verification",
            f"{uri}: the server's certificate is not trusted ({_clean(str(certificate))})",
            "check endpoint_url, or name the authority's certificates in AWS_CA_BUNDLE",
        )
    if isinstance(error, boto.SSLError):
        return Transient(
            "tls",
            f"{uri}: the server's certificate was not accepted, or TLS failed ({_clean(str(error))})",
            "name the authority's certificates in AWS_CA_BUNDLE",
        )
    if isinstance(error, (ResponseParserError, ValueError)):  # the latter when botocore parses a number or a date
        return bad_response(uri, f"something that is no S3 server's ({name})")
    if isinstance(error, RecursionError):  # botocore follows every redirect to find the bucket's region
        return Permanent("redirect_loop", f"{uri}: redirected without end", _WHERE)
    if isinstance(error, boto.PaginationError):
        return bad_response(uri, "a next page that is the same again")
    if isinstance(error, (boto.ReadTimeoutError, TimeoutError)):
        return Transient("stalled", f"{uri}: the server did not answer in time", _BUSY)
    if isinstance(error, _BROKEN):
        return Transient("connect", f"{uri}: no connection, or it broke ({name}: {_clean(str(error))})", _WHERE)
    if isinstance(error, OSError):
        return Permanent(
            "unauthorized", f"{uri}: credentials could not be read ({error.strerror}: {error.filename})", _SIGN_IN
        )
    return Permanent("s3", f"{uri}: {name}: {_clean(str(error))}", "check the location and the AWS configuration")


def bad_response(uri: str, found: str) -> Transient:
    """Return the error of an answer that no S3 server sends, or that contradicts the request."""
    return Transient("bad_response", f"{uri}: expected an answer of an S3 server, found {found}", _WHERE)


def is_missing(error: boto.ClientError) -> bool:
    """Return whether the answer means a missing object (not a missing bucket)."""
    return _code(error) in ("NoSuchKey", "404")


def is_not_modified(error: boto.ClientError) -> bool:
    """Return whether the answer to a conditional request means that the object is unchanged."""
    return _code(error) in ("304", "NotModified")


def _answered(error: boto.ClientError, uri: str) -> HoldfastError:
    code, status = _code(error), _status(error)
    said = _clean(f"{code}: {error.response.get('Error', {}).get('Message', '')}".rstrip(": "))
    if code in _SKEWED:
        return Transient(
            "clock_skew",
            f"{uri}: the server finds this machine's clock too far from its own ({said})",
            "synchronise the node's clock (chrony, systemd-timesyncd)",
        )
    if code in _UNAUTHORIZED or (status == 401 and code not in _FORBIDDEN):
        return Permanent("unauthorized", f"{uri}: the server refused the credentials ({said})", _SIGN_IN)
    if error.operation_name.startswith("AssumeRole") and status in (400, 403):
        return Permanent(
            "unauthorized",
            f"{uri}: the role could not be assumed ({said})",
            "let the role's trust policy name this cluster's OIDC provider and the pod's service account",
        )
    if code in _ELSEWHERE:
        return _wrong_region(error, uri, said)
    if code == "InvalidObjectState":
        return refusal(uri, str(error.response.get("Error", {}).get("StorageClass", "an archive"))[:40])
    if code in _FORBIDDEN:
        return Permanent(
            "forbidden",
            f"{uri}: access denied ({said})",
            "allow s3:GetObject and s3:ListBucket; to publish, s3:PutObject and s3:DeleteObject too; where a policy "
            "demands encryption headers, add sse=… (and kms_key_id=…) to the location, for a requester-pays bucket "
            "request_payer=requester",
        )
    if code in _THROTTLED or is_retried(status):
        return Transient(http_code(status), f"{uri}: the server is busy or failing ({said})", _BUSY)
    if code == "NoSuchBucket":
        return Permanent(
            "not_found", f"{uri}: there is no such bucket ({said})", "correct the bucket's name, or endpoint_url"
        )
    if status == 404:
        return Permanent("not_found", f"{uri}: not found ({said})", "check the location")
    return Permanent(http_code(status), f"{uri}: the server refused the request ({said})", "check the location")


def _wrong_region(error: boto.ClientError, uri: str, said: str) -> Permanent:
    answer: dict[str, Any] = error.response
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = answer.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or "another"
    return Permanent(
        "wrong_region",
        f"{uri}: the bucket is in the region {_clean(str(region))} ({said})",
        "add ?region=… to the location, or set AWS_DEFAULT_REGION",
    )


def _code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _clean(text: str) -> str:
    """Return one printable line of bounded length, without queries, which have the signature of a signed URL. Without
    long words too: a server that repeats the request would make us show the session token."""
    words = (word.partition("?")[0] for word in text.split())
    words = (word if len(word) <= _SHOWN_WORD else "…" for word in words)
    return "".join(c for c in " ".join(words) if c.isprintable())[:300]
