"""What S3's refusals become: a server that answers every request the same way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.sources.s3 import client
from cached.sources.s3.source import S3Source
from tests.support.http_server import serve_http
from tests.support.s3 import SECRET_KEY, isolated_environment, key_environment
from tests.support.silent_names import silent_name


@dataclass
class Refusing:
    """One answer to everything, and the headers of the requests that came. `broken`: the first so many answers end
    with half their body."""

    status: int
    code: str = ""
    message: str = ""
    more: str = ""
    frame: str = "<Error>{}</Error>"
    headers: dict[str, str] = field(default_factory=dict)
    broken: int = 0
    asked: list[dict[str, str]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        inner = f"<Code>{self.code}</Code><Message>{self.message}</Message>{self.more}"
        return self.frame.format(inner).encode() if self.code else self.message.encode()


@contextmanager
def answering(answer: Refusing) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.asked.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if len(answer.asked) <= answer.broken:
                self.wfile.write(answer.body[: len(answer.body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(answer.body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            return

    with serve_http(Handler) as host:
        yield f"http://{host}"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**isolated_environment(), **key_environment()}.items():
        monkeypatch.setenv(name, value)


async def refusal(endpoint: str, query: str = "") -> HoldfastError:
    source = S3Source(f"s3://models/m/v1/?endpoint_url={endpoint}{query}", 60.0)
    try:
        with pytest.raises(HoldfastError) as caught:
            await source.resolve()
    finally:
        await source.aclose()
    error = caught.value
    assert error.__cause__ is not None and error.remedy
    assert "s3://models/m/v1/holdfast.json" in error.message
    assert SECRET_KEY not in f"{error}{error.__cause__}"
    return error


@pytest.mark.parametrize(
    ("answer", "code", "permanent"),
    [
        (Refusing(403, "AccessDenied", "User: arn:aws:iam::1:user/a is not authorized"), "forbidden", True),
        (Refusing(403), "forbidden", True),
        (Refusing(403, "InvalidAccessKeyId", "does not exist in our records"), "unauthorized", True),
        (Refusing(400, "ExpiredToken", "The provided token has expired."), "unauthorized", True),
        (Refusing(404, "NoSuchBucket", "The specified bucket does not exist"), "not_found", True),
        (Refusing(400, "InvalidRequest", "something odd"), "http_400", True),
        (Refusing(403, "RequestTimeTooSkewed", "The difference is too large."), "clock_skew", False),
        (Refusing(503, "SlowDown", "Please reduce your request rate."), "http_503", False),
        (Refusing(500, "InternalError", "We encountered an internal error."), "http_500", False),
        (Refusing(429, "TooManyRequests", "slow"), "http_429", False),
    ],
    ids=lambda value: value.code or str(value.status) if isinstance(value, Refusing) else "",
)
async def test_refusals_are_split_by_what_helps(answer: Refusing, code: str, permanent: bool) -> None:
    """Each refusal has its code, is permanent only where a person must act, and keeps the server's own words."""
    with answering(answer) as endpoint:
        error = await refusal(endpoint)
    assert (error.code, error.permanent) == (code, permanent)
    assert answer.message in error.message


async def test_a_forbidden_bucket_says_what_to_allow() -> None:
    """AccessDenied names the permissions that reading needs."""
    with answering(Refusing(403, "AccessDenied", "Access Denied")) as endpoint:
        error = await refusal(endpoint)
    assert "s3:GetObject" in error.remedy and "s3:ListBucket" in error.remedy


async def test_a_wrong_clock_is_named() -> None:
    """A refusal for the time of the request sends a person to the node's clock, not to its credentials."""
    with answering(Refusing(403, "RequestTimeTooSkewed", "too large")) as endpoint:
        error = await refusal(endpoint)
    assert "clock" in error.message and "clock" in error.remedy


@pytest.mark.parametrize(
    "answer",
    [
        Refusing(301, "PermanentRedirect", "Use the other endpoint.", headers={"x-amz-bucket-region": "eu-central-1"}),
        Refusing(400, "AuthorizationHeaderMalformed", "wrong region", "<Region>eu-central-1</Region>"),
    ],
    ids=lambda answer: answer.code,
)
async def test_a_bucket_elsewhere_is_told_with_its_region(answer: Refusing) -> None:
    """A server that goes on refusing the region is reported with the region it names."""
    with answering(answer) as endpoint:
        error = await refusal(endpoint)
    assert error.permanent and error.code == "wrong_region"
    assert "eu-central-1" in error.message and "?region=" in error.remedy


async def test_a_busy_server_is_asked_again_once_and_no_more() -> None:
    """Retries within one call are bounded: the scheduler has its own backoff."""
    answer = Refusing(503, "SlowDown", "Please reduce your request rate.")
    with answering(answer) as endpoint:
        await refusal(endpoint)
    assert len(answer.asked) == 2


async def test_a_refusal_that_breaks_off_is_asked_for_again() -> None:
    """A refusal whose body ends early is a broken connection: what the server says the next time is what counts."""
    answer = Refusing(403, "AccessDenied", broken=1)
    with answering(answer) as endpoint:
        error = await refusal(endpoint)
    assert error.code == "forbidden"
    assert len(answer.asked) >= 2


async def test_an_answer_that_is_not_s3s_is_transient() -> None:
    """A proxy's HTML page in place of an answer is a bad response, shown as such."""
    with answering(Refusing(502, message="<html><p>Bad Gateway<br></html>")) as endpoint:
        error = await refusal(endpoint)
    assert not error.permanent and error.code in ("bad_response", "http_502")


async def test_no_connection_is_transient() -> None:
    """A refused connection is worth another try, and names where to look."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = await refusal(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert not error.permanent and error.code == "connect"


async def test_a_silent_name_server_is_told_as_an_unreachable_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is never resolved counts as no connection after the limit, however long the C library waits."""
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT_S", 0.05)
    with silent_name("store.invalid", monkeypatch) as lookups:
        error = await refusal("http://store.invalid:9000")
    assert lookups.asked and not lookups.waited_out
    assert not error.permanent and error.code == "connect"
    assert "store.invalid" in error.message


async def test_anonymous_requests_carry_no_signature() -> None:
    """With `anonymous=true` not even present credentials are used."""
    answer = Refusing(403, "AccessDenied", "Access Denied")
    with answering(answer) as endpoint:
        await refusal(endpoint, "&anonymous=true")
    assert answer.asked and not any("authorization" in headers for headers in answer.asked)


async def test_a_role_that_cannot_be_assumed_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """STS refusing a web identity is a question of the role's trust policy, not of the bucket."""
    for name in key_environment():
        monkeypatch.delenv(name)
    (token := tmp_path / "token").write_text("a.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/weights-reader")
    denied = "Not authorized to perform sts:AssumeRoleWithWebIdentity"
    frame = "<ErrorResponse><Error>{}</Error></ErrorResponse>"
    with answering(Refusing(403, "AccessDenied", denied, frame=frame)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts)
        error = await refusal("http://127.0.0.1:9")
    assert error.permanent and error.code == "unauthorized" and "trust policy" in error.remedy
