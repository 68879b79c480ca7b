"""Web pages and error documents with status 200 in the place of a file."""

from __future__ import annotations

import pytest

from cached.contract.errors import HoldfastError
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.pages import page_in
from cached.transport.target import Expected, HttpTarget
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Content, Fault, InChunks, Redirect, ResetAfter
from tests.support.reading import error_of, read_all

PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>%b</body></html>" % (b"x" * 9000)
ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>no</Message></Error>'


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        (PAGE, "HTML"),
        (b"\n\n  <!-- a portal\n of ours -->\r\n<HTML lang=en>", "HTML"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><!DOCTYPE html>", "HTML"),
        ("\ufeff<!doctype html><html>".encode("utf-16"), "HTML"),
        (b"<script>location='/login'</script>", "HTML"),
        (ERROR, "AccessDenied"),
        (b"\xef\xbb\xbf<Error><Code>BlobNotFound</Code>", "BlobNotFound"),
        (b"<ListBucketResult>", None),
        (b'{"html": "<html>"}', None),
        (b'<p align="center"><img src="logo.png"></p>', None),
        (b"<header>", None),
        (b"<!--" * 2000, None),
        (b"", None),
        (b"\x00\x00<html>", None),
    ],
)
def test_a_page_is_known_by_its_beginning(beginning: bytes, found: str | None) -> None:
    """HTML and the error documents of stores are told from everything else, past white space and comments."""
    said = page_in(beginning)
    assert said is None if found is None else said is not None and found in said


def _target(
    origin: HostileOrigin, name: str, data: bytes, content_type: str, *, size: int | None = None, promised: bool = False
) -> HttpTarget:
    url = origin.put("/file", data, content_type=content_type)
    return HttpTarget(url, expected=Expected(name, size, promised))


def _refused(client: HttpClient, target: HttpTarget, length: int | None) -> tuple[HoldfastError, int]:
    """The error of reading the target, by its head or by its first bytes, and how many bytes were given out."""
    given = 0
    with pytest.raises(HoldfastError) as caught, client.get(target, 0, length, Cancellation()) as body:
        try:
            body.readinto(memoryview(bytearray(100_000)))
        finally:
            given = body.received
    return caught.value, given


@pytest.mark.parametrize(
    ("name", "data", "content_type"),
    [
        ("model.safetensors", PAGE, "text/html; charset=utf-8"),
        ("model.safetensors", PAGE, "application/octet-stream"),
        ("config.json", PAGE, "application/json"),
        ("config.json", b"<?xml version='1.0'?><soap/>", "text/xml"),
        ("README.md", PAGE, "text/html"),
        ("merges.txt", ERROR, "application/xml"),
        ("tokenizer", ERROR, "text/xml"),
        ("openvino_model.xml", PAGE, "text/html"),
    ],
)
@pytest.mark.parametrize("length", [None, 1_000_000])
def test_a_page_in_place_of_a_file_is_refused(
    client: HttpClient, origin: HostileOrigin, name: str, data: bytes, content_type: str, length: int | None
) -> None:
    """A page where a file was asked for is refused by name, with its URL and a remedy, and none of it is given out."""
    target = _target(origin, name, data, content_type, size=len(data) if length is None else None)
    error, given = _refused(client, target, length)
    assert given == 0
    assert (error.code, error.permanent) == ("bad_response", False)
    assert target.url in error.message and repr(name) in error.message and "NO_PROXY" in error.remedy


@pytest.mark.parametrize(
    ("name", "data", "content_type", "promised"),
    [
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}", "text/html", False),  # a server that calls every file so
        ("index.html", PAGE, "text/html", False),
        ("docs/error.xml", ERROR, "application/xml", False),
        ("README.md", PAGE, "text/markdown", False),
        ("model.safetensors", PAGE, "text/html", True),
        ("README.md", b"<p>Hello</p>", "text/html", False),
    ],
)
def test_what_may_be_the_file_is_given(
    client: HttpClient, origin: HostileOrigin, name: str, data: bytes, content_type: str, promised: bool
) -> None:
    """Neither the type alone nor the beginning alone decides where the name allows both; a promised digest decides."""
    target = _target(origin, name, data, content_type, size=len(data), promised=promised)
    assert read_all(client.get(target, 0, len(data), Cancellation())) == data
    assert read_all(client.get(target, 2, None, Cancellation())) == data[2:]


@pytest.mark.parametrize("fault", [InChunks(1000), Redirect("/login")])
@pytest.mark.parametrize("promised", [True, False])
def test_a_page_of_another_length_is_told_as_one(
    client: HttpClient, origin: HostileOrigin, fault: Fault, promised: bool
) -> None:
    """Where a page has another length than the file, that is told, not the length; also where a digest is promised."""
    target = _target(origin, "model.safetensors", PAGE, "text/html", size=10 * len(PAGE), promised=promised)
    origin.put("/login", PAGE, content_type="text/html")
    origin.always("/file", fault)
    error = error_of(client, target, 0, 10 * len(PAGE))
    assert (error.code, "a web page (HTML)" in error.message) == ("bad_response", True), error
    if isinstance(fault, Redirect):
        assert origin.url("/login") in error.message


def test_a_page_in_place_of_a_later_range_is_told_as_one(client: HttpClient, origin: HostileOrigin) -> None:
    """A session that ends in the middle of a file is told as a web page, not taken for a lack of ranges."""
    target = _target(origin, "model.safetensors", b"x" * 100_000, "application/octet-stream", size=100_000)
    origin.script("/file", Content(PAGE, {"Content-Type": "text/html"}))
    error = error_of(client, target, 50_000, 1000)
    assert (error.code, "a web page (HTML)" in error.message) == ("bad_response", True)


def test_a_page_that_breaks_off_leaves_nothing(client: HttpClient, origin: HostileOrigin) -> None:
    """Of a page whose connection breaks in the middle nothing is given out that could be gone on from."""
    target = _target(origin, "model.safetensors", PAGE, "text/html", size=len(PAGE))
    origin.script("/file", ResetAfter(8192))
    error, given = _refused(client, target, len(PAGE))
    assert (given, "a web page" in error.message) == (0, True)
