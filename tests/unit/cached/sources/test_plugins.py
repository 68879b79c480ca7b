"""Other people's schemes: an installed package adds one, and spoils nothing but its own versions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import RemoteFile
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import LocalTarget

GOOD = """
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import identity_of
from cached.transport.target import LocalTarget
from pathlib import Path

class Shelf:
    kind = "any label at all"
    def __init__(self, uri, client, opener):
        self.display = uri
        self._opener = opener
    async def resolve(self):
        if "list" in self.display:
            raise KeyError("s3cret")
        if "none" in self.display:
            return None
        return Listing((RemoteFile("f", "/f", 1, "v"),), identity_of("shelf"))
    async def locate(self, file):
        return LocalTarget(Path(file.key), file.validator)
    async def aclose(self):
        raise OSError("late")

def fails(uri, client, opener):
    raise RuntimeError("s3cret")

def refuses(uri, client, opener):
    from cached.contract.errors import Permanent
    raise Permanent("bad_source", "expected a shelf", "name one")

nothing = None
def gives_nothing(uri, client, opener):
    return 1
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Install:
    """Install a package with entry points, as pip leaves it: `install("name", shelf="module:attribute")`."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    request.addfinalizer(lambda: sys.modules.pop("shelf_plugin", None))

    def add(package: str, **schemes: str) -> None:
        folder = site / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir(parents=True)  # named as pip names it
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "\n".join(f"{scheme} = {value}" for scheme, value in schemes.items())
        (folder / "entry_points.txt").write_text(f"[holdfast.sources]\n{lines}\n")
        (site / "shelf_plugin.py").write_text(GOOD)

    return add


def opened(uri: str) -> Source:
    client = HttpClient(HttpSettings())
    client.close()  # opening contacts no service
    return open_source(uri, client)


def refusal(uri: str) -> HoldfastError:
    with pytest.raises(Permanent) as caught:
        opened(uri)
    assert caught.value.remedy
    assert "s3cret" not in str(caught.value)
    return caught.value


async def test_an_entry_point_adds_a_scheme(install: Install) -> None:
    """A package's scheme opens its source, whose metric label is the scheme, and which lists and locates."""
    install("holdfast-shelf", shelf="shelf_plugin:Shelf")
    source = opened("shelf://m/v1")
    assert (source.kind, source.display) == ("shelf", "shelf://m/v1")
    assert [file.path for file in (await source.resolve()).files] == ["f"]
    assert await source.locate(RemoteFile("f", "/f", 1, "v")) == LocalTarget(Path("/f"), "v")
    await source.aclose()  # what it raises concerns no caller


@pytest.mark.parametrize("scheme", ["s3", "hf", "http", "https", "file"])
def test_a_plugin_replaces_no_built_in_scheme(install: Install, scheme: str) -> None:
    """An entry point named as one of ours is not looked at."""
    install("holdfast-evil", **{scheme: "shelf_plugin:Shelf"})
    assert opened(f"{scheme}://localhost/m").kind in ("s3", "hf", "http", "file")
    assert "shelf_plugin" not in sys.modules


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_module:Shelf", "cannot be used: ModuleNotFoundError"),
        ("shelf_plugin:NoSuch", "cannot be used: AttributeError"),
        ("shelf_plugin:nothing", "cannot be used: TypeError"),
        ("shelf_plugin:fails", "cannot be used: RuntimeError"),
        ("shelf_plugin:gives_nothing", "found an object without kind, display, resolve, locate, aclose"),
    ],
)
def test_a_broken_plugin_is_an_error_of_its_versions(install: Install, value: str, says: str) -> None:
    """What cannot be imported or called is `bad_plugin`, names the package, and leaves other schemes alone."""
    install("holdfast-shelf", shelf=value)
    error = refusal("shelf://user:s3cret@m/v1")
    assert error.code == "bad_plugin"
    assert says in error.message and "holdfast-shelf 1.0" in error.message
    assert opened("s3://bucket/m").kind == "s3"


def test_a_plugins_own_refusal_passes(install: Install) -> None:
    """A plugin's `Permanent` is the error as it is."""
    install("holdfast-shelf", shelf="shelf_plugin:refuses")
    assert (refusal("shelf://x").code, refusal("shelf://x").message) == ("bad_source", "expected a shelf")


@pytest.mark.parametrize(("uri", "found"), [("shelf://list", "KeyError"), ("shelf://none", "TypeError")])
async def test_what_no_source_raises_is_named(install: Install, uri: str, found: str) -> None:
    """An unexpected error in a listing, or none in place of one, is `bad_plugin` without its text."""
    install("holdfast-shelf", shelf="shelf_plugin:Shelf")
    with pytest.raises(Permanent) as caught:
        await opened(uri).resolve()
    assert caught.value.code == "bad_plugin"
    assert f"failed in resolve: {found}" in caught.value.message and "s3cret" not in str(caught.value)


def test_two_packages_for_one_scheme_are_refused(install: Install) -> None:
    """Which one would read is no matter of chance: both are named."""
    install("holdfast-shelf", shelf="shelf_plugin:Shelf")
    install("holdfast-rack", shelf="shelf_plugin:fails")
    error = refusal("shelf://m")
    assert error.code == "bad_plugin"
    assert "holdfast-rack 1.0" in error.message and "holdfast-shelf 1.0" in error.message
