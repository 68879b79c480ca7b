"""Other people's schemes: an installed package adds one, and spoils nothing but its own versions."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.core.listing import RemoteFile
from cached.sources import plugins
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import LocalTarget
from tests.support.daemon import PATIENCE_S

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

class Strange(Shelf):
    async def resolve(self):
        import asyncio
        from cached.contract.manifest import FileEntry, Manifest
        files, more = {"path": "f", "key": "/f", "size": 1, "validator": "v"}, {}
        what = self.display.partition("//")[2]
        if what == "cancelled":
            raise asyncio.CancelledError
        if what == "none":
            return None
        if what == "manifest":
            more["manifest"] = Manifest.build([FileEntry("g", 64 * "a", 1)])
        elif what.startswith("listing "):
            more = eval(what.removeprefix("listing "))
        else:
            files |= eval(what)
        listing = {"files": (RemoteFile(**files),), "identity": identity_of("shelf"), **more}
        return Listing(**listing)
    async def locate(self, file):
        return "/f"

class Waits(Shelf):
    async def resolve(self):
        import asyncio
        await asyncio.Event().wait()

import threading
began, may_end = threading.Event(), threading.Event()

class Slow(Shelf):
    def __init__(self, uri, client, opener):
        super().__init__(uri, client, opener)
        began.set()
        may_end.wait()

class NoDisplay(Shelf):
    @property
    def display(self):
        raise RuntimeError("s3cret")
    @display.setter
    def display(self, uri):
        pass

def ends(uri, client, opener):
    raise SystemExit("s3cret")

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
        ("shelf_plugin:ends", "cannot be used: SystemExit"),
        ("shelf_plugin:NoDisplay", "cannot be used: RuntimeError"),
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


async def test_what_no_source_raises_is_named(install: Install) -> None:
    """An unexpected error in a listing is `bad_plugin` without its text."""
    install("holdfast-shelf", shelf="shelf_plugin:Shelf")
    with pytest.raises(Permanent) as caught:
        await opened("shelf://list").resolve()
    assert caught.value.code == "bad_plugin"
    assert "failed in resolve: KeyError" in caught.value.message and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("none", "expected a Listing of resolve, found NoneType"),
        ("listing {'files': None}", "`files` as tuple, found NoneType"),
        ("listing {'files': ('f',)}", "expected a RemoteFile in a listing, found str"),
        ("listing {'identity': None}", "`identity` as str, found NoneType"),
        ("listing {'revision': 5}", "`revision` as str or None, found int"),
        ("listing {'unlisted': ('d/',)}", "expected Unlisted"),
        ("listing {'chains': RemoteFile('c', 'c', -1)}", "size"),
        ("manifest", "expected the files of the listing's manifest, found others"),
        ("{'path': b'f'}", "`path` as str, found bytes"),
        ("{'key': 5}", "`key` as str, found int"),
        ("{'validator': None}", "`validator` as str, found NoneType"),
        ("{'size': -5}", "size of 0 to"),
        ("{'size': '5'}", "size of 0 to"),
        ("{'size': True}", "size of 0 to"),
        ("{'size': 10**30}", "size of 0 to"),
        ("{'sha256': ''}", "sha256 of 64"),
        ("{'sha256': 64 * 'A'}", "sha256 of 64"),
        ("{'git_oid': 'main'}", "git id of 40"),
        ("{'sums': ('crc32c:00000000',)}", "expected Checksum"),
        ("{'problem': RuntimeError('s3cret')}", "`problem` as HoldfastError or None, found RuntimeError"),
        ("cancelled", "failed in resolve: CancelledError"),
    ],
)
async def test_a_listing_that_no_source_may_give_is_named(install: Install, given: str, says: str) -> None:
    """A value of another type, an impossible size, and a promise that is no sha256 are `bad_plugin`: nothing of such a
    listing counts as known, and no download begins."""
    install("holdfast-shelf", shelf="shelf_plugin:Strange")
    with pytest.raises(Permanent) as caught:
        await opened(f"shelf://{given}").resolve()
    assert caught.value.code == "bad_plugin" and says in caught.value.message
    assert "s3cret" not in str(caught.value)


async def test_an_address_that_is_none_is_named(install: Install) -> None:
    """What `locate` gives in place of a target is `bad_plugin`."""
    install("holdfast-shelf", shelf="shelf_plugin:Strange")
    with pytest.raises(Permanent) as caught:
        await opened("shelf://{}").locate(RemoteFile("f", "/f", 1, "v"))
    assert caught.value.code == "bad_plugin" and "found str" in caught.value.message


async def test_a_caller_may_cancel_a_plugin(install: Install) -> None:
    """A cancellation of the caller is no fault of the plugin's, and ends its listing."""
    install("holdfast-shelf", shelf="shelf_plugin:Waits")
    listing = asyncio.ensure_future(opened("shelf://m").resolve())
    await asyncio.sleep(0)
    listing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listing


def test_a_plugin_that_never_opens_blocks_a_bounded_number_of_threads(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an opening goes on for too long, others of that scheme are refused as `stalled`, and those of others are
    not; once it ends they open again."""
    install("holdfast-shelf", shelf="shelf_plugin:Shelf", slow="shelf_plugin:Slow")
    monkeypatch.setattr(plugins, "_LONGEST_OPENING_S", 0.0)
    opened("shelf://m")
    module = importlib.import_module("shelf_plugin")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(opened, "slow://m")
        assert module.began.wait(PATIENCE_S)
        with pytest.raises(Transient) as caught:
            opened("slow://m")
        assert opened("shelf://m").display == "shelf://m"
        module.may_end.set()
        assert first.result(PATIENCE_S).display == "slow://m"
    assert opened("slow://m").display == "slow://m"
    assert caught.value.code == "stalled" and "holdfast-shelf 1.0" in caught.value.message and caught.value.remedy


def test_two_packages_for_one_scheme_are_refused(install: Install) -> None:
    """Which one would read is no matter of chance: both are named."""
    install("holdfast-shelf", shelf="shelf_plugin:Shelf")
    install("holdfast-rack", shelf="shelf_plugin:fails")
    error = refusal("shelf://m")
    assert error.code == "bad_plugin"
    assert "holdfast-rack 1.0" in error.message and "holdfast-shelf 1.0" in error.message
