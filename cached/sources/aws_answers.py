"""Answers of AWS's services to a few small questions, by botocore, bounded in bytes and in time.

Law: botocore reads an answer whole however long it is, and waits for a silent name server for as long as the C library
does, twice. Here what it sends goes over a session of its own kind, whose answers end at a limit, after the name was
resolved in time: the host's, or that of the proxy, which resolves the host's itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ResponseStreamingError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.connect import resolve_within

_MAX_ANSWER_BYTES = 8 * 1024 * 1024  # a page of a hundred packages: some 100 KB
# What botocore's parsers raise for JSON of another form than the service's.
STRANGE = (AttributeError, TypeError, LookupError, ValueError, RecursionError)


def bound_answers(session: Any, client: Any, connect_s: float, read_s: float) -> None:
    """Bound the answers to a botocore `client` of `session`: its calls raise ValueError beyond 8 MiB, OSError where its
    host's name is not resolved within `connect_s`."""
    ca_bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True
    http: dict[str, URLLib3Session] = {}

    def send(request: Any, **_: Any) -> AWSResponse:
        scheme = urlsplit(request.url).scheme
        # Others than this scheme's may be there, and `no` where NO_PROXY is set.
        proxy = get_environ_proxies(request.url).get(scheme, "")
        first = urlsplit(_with_scheme(proxy) if proxy else request.url)
        port = first.port or (443 if first.scheme == "https" else 80)
        resolve_within(first.hostname or "", port, time.monotonic() + connect_s, Cancellation())
        if proxy not in http:
            proxies = {scheme: proxy} if proxy else {}
            http[proxy] = URLLib3Session(verify=ca_bundle, proxies=proxies, timeout=(connect_s, read_s))
        request.stream_output = True  # else the session reads all of the answer
        return _read(http[proxy].send(request))

    client.meta.events.register(f"before-send.{client.meta.service_model.service_name}", send)


def _with_scheme(proxy: str) -> str:
    """Return a proxy's address as botocore reads it."""
    return proxy if "://" in proxy else f"http://{proxy.removeprefix('//')}"


class _Whole:
    """The part of `urllib3.HTTPResponse` that an `AWSResponse` reads."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self) -> Iterator[bytes]:
        yield self._data


def _read(answer: AWSResponse) -> AWSResponse:
    data = bytearray()
    try:
        for part in answer.raw.stream():
            data += part
            if len(data) > _MAX_ANSWER_BYTES:
                answer.raw.close()
                raise ValueError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
    except HTTPError as error:
        raise ResponseStreamingError(error=error) from error
    return AWSResponse(answer.url, answer.status_code, answer.headers, _Whole(bytes(data)))
