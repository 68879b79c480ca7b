"""The conformance suite itself: a source that breaks a promise is found by the case of that promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.place import NotConforming, Refused
from cached.conformance.pulling import puller_in
from cached.contract.errors import HoldfastError
from cached.core.listing import Algorithm, Checksum, Listing, RemoteFile
from cached.sources.base import Source
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget, Target
from tests.support.places import PASSWORD, Web, at_nginx

Change = Callable[[RemoteFile], RemoteFile | None]


class Broken:
    """A source with a fault: `file` changes what it lists (None: left out), `target` what it locates."""

    def __init__(self, source: Source, file: Change, target: Callable[[HttpTarget], Target], shown: str) -> None:
        self._source, self._file, self._target = source, file, target
        self.kind, self.display = source.kind, source.display + shown

    async def resolve(self) -> Listing:
        listing = await self._source.resolve()
        files = (self._file(file) for file in listing.files)
        return replace(listing, files=tuple(file for file in files if file is not None))

    async def locate(self, file: RemoteFile) -> Target:
        target = await self._source.locate(file)
        assert isinstance(target, HttpTarget)
        return self._target(target)

    async def aclose(self) -> None:
        await self._source.aclose()


def same(value: Any) -> Any:
    return value


def lose_a_file(file: RemoteFile) -> RemoteFile | None:
    return None if file.path.endswith(".json") else file


def lie_about_sha256(file: RemoteFile) -> RemoteFile:
    return replace(file, sha256="0" * 64)


def lie_about_md5(file: RemoteFile) -> RemoteFile:
    return replace(file, sums=(Checksum(Algorithm.MD5, "0" * 32),))


def claim_a_version(file: RemoteFile) -> RemoteFile:
    return replace(file, validator='"always"', weak_validators=None)


def bind_nothing(target: HttpTarget) -> Target:
    return replace(target, if_match=None)


def lead_nowhere(target: HttpTarget) -> Target:
    return replace(target, url=target.url + ".gone")


@pytest.mark.parametrize(
    ("case", "file", "target", "shown"),
    [
        ("listing", lose_a_file, same, ""),
        ("pagination", lose_a_file, same, ""),
        ("promises", lie_about_sha256, same, ""),
        ("promises", lie_about_md5, same, ""),
        ("changed_underneath", claim_a_version, bind_nothing, ""),
        ("ranges", same, lead_nowhere, ""),
        ("credentials_never_told", same, same, f"?password={PASSWORD}"),
    ],
)
async def test_a_broken_promise_is_found(
    request: pytest.FixtureRequest, tmp_path: Path, case: str, file: Change, target: Any, shown: str
) -> None:
    """What a source may not do fails the case that asks for it, and the same source without the fault passes it."""
    client = HttpClient(HttpSettings())
    with ExitStack() as stack:
        stack.callback(client.close)
        place = at_nginx(request, client, tmp_path, stack)
        assert isinstance(place, Web)
        sound = place.open

        def broken(uri: str) -> Any:
            return Broken(sound(uri), file, target, shown)

        with puller_in(tmp_path / "right") as puller:
            await run_case(case, place, puller)
        place.open = broken  # type: ignore[method-assign]
        with puller_in(tmp_path / "wrong") as puller, pytest.raises((NotConforming, HoldfastError)):
            await run_case(case, place, puller)


async def test_a_file_too_small_to_be_cut_uses_no_cut_up(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whichever file a source asks for first, the answer that ends early is that of a file that is long enough."""
    with ExitStack() as stack:
        client = HttpClient(HttpSettings())
        stack.callback(client.close)
        place = at_nginx(request, client, tmp_path, stack)
        assert isinstance(place, Web)
        place.put({"a.json": b"{}"})
        (front,) = place.fronts
        front.cut(100)
        assert client.fetch(HttpTarget(f"{front.url}/m/a.json"), 1000, Cancellation()).body == b"{}"
        place.put({"w.bin": b"w" * 500})
        with pytest.raises(HoldfastError):
            client.fetch(HttpTarget(f"{front.url}/m/w.bin"), 1000, Cancellation())


async def test_a_refused_case_says_so(tmp_path: Path) -> None:
    """A case that a place names among its refusals is not run, and gives the reason."""

    class Nowhere:
        refused = dict.fromkeys(CASES, "there is no service")

    with puller_in(tmp_path / "root") as puller:
        for case in CASES:
            with pytest.raises(Refused, match=f"{case}: there is no service"):
                await run_case(case, Nowhere(), puller)  # type: ignore[arg-type]


def test_the_suite_needs_no_test_runner() -> None:
    """Another package's tests import it with the daemon's libraries alone."""
    program = "import sys; sys.modules['pytest'] = None; import cached.conformance.cases, cached.conformance.place"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
