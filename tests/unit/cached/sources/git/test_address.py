"""What names a commit of a repository, and what does not."""

from __future__ import annotations

import pytest

from cached.contract.errors import Permanent
from cached.sources.git.access import variable_of
from cached.sources.git.address import GitAddress
from cached.transport.urls import Address

REFS = "0e9e39f249a16976918f6564b8830bc894c89659"


@pytest.mark.parametrize(
    ("uri", "url", "revision", "path"),
    [
        ("git+https://github.com/acme/m", "https://github.com/acme/m", "HEAD", ""),
        ("GIT+HTTPS://github.com/acme/m.git@v1", "https://github.com/acme/m.git", "v1", ""),
        ("git+https://git.acme.com/a/b/c/m@release/v1#w/8bit/", "https://git.acme.com/a/b/c/m", "release/v1", "w/8bit"),
        (f"git+https://github.com/acme/m@{REFS}", "https://github.com/acme/m", REFS, ""),
        ("git+https://github.com/acme/m@pkg@1.0", "https://github.com/acme/m", "pkg@1.0", ""),
        ("git+https://github.com/acme/m@a%23b#c#d/é %.bin", "https://github.com/acme/m", "a#b", "c#d/é %.bin"),
        ("git+https://me:pass@word@host:8443/m@v", "https://host:8443/m@v", "HEAD", ""),
        ("git+http://127.0.0.1:3000/m@refs/pull/1/head", "http://127.0.0.1:3000/m", "refs/pull/1/head", ""),
    ],
)
def test_a_location_names_repository_revision_and_folder(uri: str, url: str, revision: str, path: str) -> None:
    """The first `@` of the path ends the repository, the first `#` the revision; a password is nowhere to be read."""
    if "pass@word" in uri:
        uri, url = uri.replace("pass@word", "pass%40word").replace("/m@v", "/m"), "https://host:8443/m"
    found = GitAddress.parse(uri)
    assert (found.url, found.revision, found.path) == (url, revision, path)
    assert "word" not in repr(found)
    assert "word" not in found.display
    assert GitAddress.parse(found.display.replace("@a#b", "@a%23b")).path == path


@pytest.mark.parametrize(
    "uri",
    [
        "git+https://github.com",
        "git+https://github.com/",
        "git+https://github.com//m",
        "git+https://github.com/a/../m",
        "git+https://github.com/acme/m?ref=v1",
        "git+https://github.com/acme/m@",
        "git+https://github.com/acme/m@a..b",
        "git+https://github.com/acme/m@a b",
        "git+https://github.com/acme/m@a%0Ab",
        "git+https://github.com/acme/m@-/",
        "git+https://github.com/acme/m@v1:folder",
        "git+https://github.com/acme/m@v1#",
        "git+https://github.com/acme/m@v1#../x",
        "git+https://github.com/acme/m@v1#/x",
        "git+https://github.com/acme/m@v1#a//b",
        "git+https://github.com/acme/m@v1#subdirectory=w",
        "git+https://user:sesame@/acme/m",
        "git+https://user:sesame@ho st/acme/m",
    ],
)
def test_what_names_none_is_refused_with_the_form(uri: str) -> None:
    """A location that is none is refused before a server is asked, with the right form and without its password."""
    with pytest.raises(Permanent) as caught:
        GitAddress.parse(uri)
    assert caught.value.code in ("bad_source", "bad_url")
    assert caught.value.remedy
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("page", "right"),
    [
        ("git+https://github.com/acme/m/tree/main/w/8bit", "git+https://github.com/acme/m@main#w/8bit"),
        ("git+https://github.com/acme/m/tree/main/a%20b", "git+https://github.com/acme/m@main#a b"),
        ("git+https://github.com/acme/m/blob/v1/a.gguf", "git+https://github.com/acme/m@v1#a.gguf"),
        ("git+https://git.acme.com/a/b/m/-/tree/main", "git+https://git.acme.com/a/b/m@main"),
        ("git+https://huggingface.co/acme/m/tree/main", "git+https://huggingface.co/acme/m@main"),
    ],
)
def test_the_address_of_a_web_page_names_the_right_one(page: str, right: str) -> None:
    """What a browser shows for a folder is refused with the location of that folder."""
    with pytest.raises(Permanent) as caught:
        GitAddress.parse(page)
    assert caught.value.remedy == f"write it as {right}"


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://github.com/", "GITHUB_COM"),
        ("https://git.acme-corp.internal/", "GIT_ACME__CORP_INTERNAL"),
        ("https://git-acme.corp.internal/", "GIT__ACME_CORP_INTERNAL"),
        ("https://git.acme.com:8443/", "GIT_ACME_COM_8443"),
        ("http://127.0.0.1:3000/", "127_0_0_1_3000"),
    ],
)
def test_each_host_has_a_variable_of_its_own(url: str, variable: str) -> None:
    """The name of a host's variable is that of no other host."""
    assert variable_of(Address.parse(url).origin) == f"HOLDFAST_GIT_TOKEN_{variable}"
