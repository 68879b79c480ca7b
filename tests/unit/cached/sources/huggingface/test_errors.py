"""What a Hub refuses, or lies about, against the fake Hub: each with its code, and a remedy where one is needed."""

from __future__ import annotations

import traceback
from email.utils import formatdate
from pathlib import Path
from time import time

import huggingface_hub
import pytest

from cached.contract.errors import Permanent, Transient
from tests.support.fake_hub import FakeHub
from tests.support.fake_hub_repos import Access
from tests.support.filling import manifest_of
from tests.support.hub_cases import CONFIG, NAME, TOKEN, URI, by_path, hub_source, refusal, write

# Refusals


async def test_a_gated_repository_says_where_to_ask(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without access to a gated repository the remedy names its page and HF_TOKEN, with and without a token."""
    hub.tokens.add(TOKEN)
    hub.add(NAME, model, Access.GATED)
    source = hub_source(URI)
    weights = by_path(await source.resolve())["model.safetensors"]
    for token, said in ((None, "no token was sent"), (TOKEN, "has no access")):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        error = await refusal(source, weights)
        assert (error.code, error.permanent) == ("gated", True)
        assert said in error.message
        assert f"{hub.endpoint}/{NAME}" in error.remedy and "HF_TOKEN" in error.remedy


@pytest.mark.parametrize("with_token", [False, True])
@pytest.mark.parametrize("exists", [False, True])
async def test_missing_and_private_look_the_same_and_both_are_said(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, with_token: bool
) -> None:
    """The Hub does not tell a private repository from a missing one, so the error names both."""
    hub.tokens.add(TOKEN)
    if exists:
        hub.add(NAME, model, Access.PRIVATE)
    if with_token:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("not_found", True)
    assert "either there is none, or it is private" in error.message
    assert ("use another token" if with_token else "set HF_TOKEN") in error.remedy


async def test_a_missing_revision_is_named(hub: FakeHub, model: Path) -> None:
    """A revision that does not exist is named, with where to find one that does."""
    hub.add(NAME, model)
    error = await refusal(hub_source(f"hf://{NAME}@v9"))
    assert (error.code, error.permanent) == ("not_found", True)
    assert "'v9'" in error.message and "/commits/" in error.remedy


async def test_a_missing_folder_is_named(hub: FakeHub, model: Path) -> None:
    """A folder that does not exist is not an empty version."""
    hub.add(NAME, model)
    error = await refusal(hub_source(f"{URI}/nowhere/"))
    assert (error.code, error.permanent) == ("not_found", True)
    assert "nowhere/" in error.message


async def test_a_repository_without_files_is_not_found(hub: FakeHub, tmp_path: Path) -> None:
    """An empty repository is refused rather than published as nothing."""
    (tmp_path / "empty").mkdir()
    hub.add(NAME, tmp_path / "empty")
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("not_found", True)


async def test_a_disabled_repository_is_permanent(hub: FakeHub, model: Path) -> None:
    """A repository that the Hub has disabled is said to be that."""
    hub.add(NAME, model, Access.DISABLED)
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("disabled", True)


async def test_an_invalid_token_is_refused_without_showing_it(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that the Hub does not know gives `unauthorized`, and appears in no message of the chain."""
    hub.add(NAME, model)
    monkeypatch.setenv("HF_TOKEN", "hf_secretButUnknown")
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("unauthorized", True)
    assert "HF_TOKEN" in error.remedy
    assert "hf_secret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("token", ["hf_secret token", "hf_sécret", "hf_secret\x00"])
async def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    """A garbled token is refused before it is sent, and appears in no message of the chain."""
    (tmp_path / "token").write_text(token, encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("unauthorized", True)
    assert token not in "".join(traceback.format_exception(error))
    assert hub.requests == []


async def test_a_token_file_that_cannot_be_read_is_named(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A token file that is there but unreadable is an error, not a request without a token."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path))
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("unauthorized", True)
    assert str(tmp_path) in error.remedy


async def test_forbidden_is_permanent(hub: FakeHub, model: Path) -> None:
    """A bare 403 asks for a token that may read the repository."""
    hub.add(NAME, model)
    hub.fail(403, "/revision/")
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("forbidden", True)
    assert "HF_TOKEN" in error.remedy


@pytest.mark.parametrize("where", ["/revision/", "/tree/", "/resolve/"])
@pytest.mark.parametrize("status", [429, 503])
async def test_an_overloaded_hub_is_retried_when_it_says(hub: FakeHub, tmp_path: Path, where: str, status: int) -> None:
    """Any request that meets 429 or 5xx fails at once as transient, with the wait that was asked for."""
    manifest = manifest_of({"config.json": CONFIG})
    hub.add(NAME, write(tmp_path / "published", {"config.json": CONFIG, "holdfast.json": manifest.canonical()}))
    hub.lists_blobs = where != "/tree/"
    hub.fail(status, where, {"Retry-After": "1234"})
    error = await refusal(hub_source(URI))
    assert isinstance(error, Transient)
    assert (error.code, error.retry_after_s) == (f"http_{status}", 1234.0)
    assert hub.count(where) == 1


async def test_the_hubs_words_are_shown_as_plain_text(hub: FakeHub, model: Path) -> None:
    """What a Hub says of an error reaches no terminal with its control characters."""
    hub.add(NAME, model)
    hub.fail(418, "/revision/", {"X-Error-Message": "out\x1b[31m of tea"})
    error = await refusal(hub_source(URI))
    assert error.code == "http_418" and "of tea" in error.message
    assert error.message.isprintable()


async def test_a_date_and_a_used_up_limit_say_how_long_to_wait(hub: FakeHub, model: Path) -> None:
    """The wait is also read from an HTTP date, and from the Hub's own RateLimit header; at most an hour."""
    hub.add(NAME, model)
    hub.fail(429, "/revision/", {"Retry-After": formatdate(time() + 100_000, usegmt=True)})
    hub.fail(429, "/revision/", {"RateLimit": '"api";r=0;t=55'})
    hub.fail(429, "/revision/", {"Retry-After": "soon"})
    source = hub_source(URI)
    waits = []
    for _ in range(3):
        error = await refusal(source)
        assert isinstance(error, Transient)
        waits.append(error.retry_after_s)
    assert waits == [3600.0, 55.0, None]


@pytest.mark.parametrize("off_s", [-3600, 3600])
async def test_a_date_counts_from_the_hubs_own_clock(hub: FakeHub, model: Path, off_s: int) -> None:
    """A `Retry-After` date is compared with the answer's own `Date`, also where the Hub's clock is an hour off."""
    hub.add(NAME, model)
    sent, until = (formatdate(time() + off_s + later_s, usegmt=True) for later_s in (0, 60))
    hub.fail(503, "/revision/", {"Date": sent, "Retry-After": until})
    error = await refusal(hub_source(URI))
    assert isinstance(error, Transient)
    assert error.retry_after_s == pytest.approx(60, abs=1)


async def test_a_hub_that_does_not_answer_is_retried(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is transient and says what to check."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("connect", False)
    assert "HF_ENDPOINT" in error.remedy


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
async def test_offline_says_what_to_unset(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With an offline variable nothing is sent, and the remedy names it."""
    monkeypatch.setenv(name, "1")
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("offline", True)
    assert name in error.remedy
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["hub.example.com", "ftp://hub", "http://u:hf_secret@hub", "http://[::"])
async def test_a_broken_endpoint_is_refused(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """HF_ENDPOINT must be a plain HTTP URL; what it holds is not repeated, as it may be a secret."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("invalid_source", True)
    assert "hf_secret" not in str(error)


# Hubs that lie


@pytest.fixture(params=["metadata", "tree"])
def listing_hub(hub: FakeHub, request: pytest.FixtureRequest) -> FakeHub:
    """A Hub that lists a commit's files in the revision's metadata, or in its tree alone."""
    hub.lists_blobs = request.param == "metadata"
    return hub


HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../b",
    "a\\b",
    "a//b",
    "a\nb",
    ".HOLDFAST/manifest.json",
    "CONFIG.json",
]


@pytest.mark.parametrize("path", HOSTILE)
async def test_a_path_that_no_manifest_may_hold_is_refused(listing_hub: FakeHub, model: Path, path: str) -> None:
    """A listing with a path that leaves the version, or collides in it, is refused by name."""
    entry = {"type": "file", "path": path, "size": 1, "oid": "0" * 40}
    listing_hub.add(NAME, model).extra_entries.append(entry)
    error = await refusal(hub_source(URI))
    assert isinstance(error, Permanent)
    assert repr(path) in error.message


@pytest.mark.parametrize("path", ["elsewhere/model.bin", "onnxx/model.bin"])
async def test_a_path_outside_the_folder_is_refused(hub: FakeHub, model: Path, path: str) -> None:
    """A listing of one folder with a file of another is refused."""
    entry = {"type": "file", "path": path, "size": 1, "oid": "0" * 40}
    hub.add(NAME, model).extra_entries.append(entry)
    error = await refusal(hub_source(f"{URI}/onnx/"))
    assert error.code == "bad_response"


@pytest.mark.parametrize(
    "entry",
    [
        "config.json",
        {"type": "file"},
        {"type": "file", "path": "a", "size": 1},
        {"type": "file", "path": "a", "size": -1, "oid": "0" * 40},
        {"type": "file", "path": "a", "size": True, "oid": "0" * 40},
        {"type": "file", "path": "a", "size": 1, "oid": "0" * 64},
        {"type": "file", "path": "a", "size": 1, "oid": "0" * 40, "lfs": {"oid": "0" * 40, "size": 1}},
        {"type": "file", "path": "a", "size": 1, "oid": "0" * 40, "lfs": ["x"]},
    ],
)
async def test_an_entry_that_makes_no_sense_is_retried(listing_hub: FakeHub, model: Path, entry: object) -> None:
    """An entry without a usable path, size or id is no reason to guess."""
    listing_hub.add(NAME, model).extra_entries.append(entry)
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("bad_response", False)


async def test_records_of_our_own_in_a_repository_are_no_content(listing_hub: FakeHub, model: Path) -> None:
    """A snapshot that was uploaded with its `.holdfast/` folder lists as its content alone."""
    listing_hub.add(NAME, write(model, {".holdfast/verified.json": b"{}"}))
    assert not [path for path in by_path(await hub_source(URI).resolve()) if path.startswith(".holdfast")]


async def test_a_next_page_on_another_host_gets_no_token(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that goes on elsewhere, or never ends, is not followed."""
    hub.tokens.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.lists_blobs = False
    commit = hub.add(NAME, model).refs["main"]
    same = f"/api/models/{NAME}/tree/{commit}?recursive=true&expand=false"
    for following in (f"{hub.cdn}/next", same):
        hub.alter("/tree/", {"Link": f'<{following}>; rel="next"'})
        error = await refusal(hub_source(URI))
        assert (error.code, error.permanent) == ("bad_response", False)
    assert hub.count("", server="cdn") == 0


@pytest.mark.parametrize("where", ["/revision/", "/tree/"])
async def test_an_answer_that_is_not_the_api_is_retried(hub: FakeHub, model: Path, where: str) -> None:
    """A success that is not the Hub's JSON, as a login page in between gives, is not believed."""
    hub.lists_blobs = where != "/tree/"
    hub.add(NAME, model)
    hub.fail(200, where, {"Content-Type": "text/html"})
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("bad_response", False)
