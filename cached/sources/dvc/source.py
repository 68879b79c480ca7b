"""The source of `dvc+https://` and `dvc+file://`.

Law: the repository is read by the source that has it, the remote by its own; DVC's index is asked once. The listing
of a folder is compared with its md5.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import Opener, Source
from cached.sources.dvc.address import DvcAddress
from cached.sources.dvc.outputs import Output, candidates, place_of, read_folder, read_outputs, sums_of
from cached.sources.dvc.remotes import CONFIG, Remotes
from cached.sources.resolving import Named, Referral, Resolution, ResolvedSource
from cached.sources.small_files import SmallFiles
from cached.transport.client import HttpClient
from cached.transport.target import Target

_MAX_INDEX_BYTES = 4 * 1024 * 1024
_MAX_FOLDER_BYTES = 64 * 1024 * 1024


class DvcSource:
    """A `Source` over one output, or what lies below it. The caller closes `client`."""

    kind = "dvc"

    def __init__(self, uri: str, client: HttpClient, opener: Opener) -> None:
        """Raises `Permanent` (`bad_source`)."""
        self._address = DvcAddress.parse(uri)
        self.display = self._address.display
        self._client = client
        self._opener = opener
        self._reading = asyncio.Lock()
        self._resolved: ResolvedSource | None = None

    async def resolve(self) -> Listing:
        """List the output's files at its remote. Raises as `Source.resolve`."""
        return await (await self._read()).resolve()

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address that the remote's source gives. Raises as `Source.locate`."""
        return await (await self._read()).locate(file)

    async def aclose(self) -> None:
        """Close the remote's source."""
        resolved, self._resolved = self._resolved, None
        if resolved is not None:
            await resolved.aclose()

    async def _read(self) -> ResolvedSource:
        async with self._reading:
            if self._resolved is None:
                found = await self._find()
                self._resolved = ResolvedSource(
                    self.kind, self.display, self._client, self._opener, lambda _cancellation: found
                )
            return self._resolved

    async def _find(self) -> Resolution:
        source = await self._open(self._address.repository)
        try:
            repository = SmallFiles(source, self._client)
            output = await self._output(repository)
            remotes = await self._remotes(repository, output)
            revision = None if repository.listing is None else repository.listing.revision
        except HoldfastError as error:
            raise self._about(source, error) from error
        finally:
            await source.aclose()
        below = posixpath.relpath(self._path, output.path)
        location = remotes.location(output.remote)
        chosen_by = None if self._address.is_folder else self._address.repository.removeprefix("git+")
        named = await self._named(output, "" if below == "." else f"{below}/", location, chosen_by)
        return Resolution((Referral(location, named=tuple(named), chosen_by=chosen_by),), revision)

    @property
    def _path(self) -> str:
        return self._address.path.removesuffix(".dvc")

    async def _output(self, repository: SmallFiles) -> Output:
        """Return the output that is, or is above, the path."""
        names = candidates(self._address.path)
        found = await repository.find(names)
        for name in names:
            if name not in found:
                continue
            data = await repository.read(found[name], _MAX_INDEX_BYTES)
            outputs = await asyncio.to_thread(read_outputs, data, name, self.display)
            if name == self._address.path and len(outputs) == 1:
                return outputs[0]
            for output in outputs:
                is_above = output.is_folder and self._path.startswith(f"{output.path}/")
                if output.path == self._path or is_above:
                    return output
        looked = ", ".join(names[:6])
        raise Permanent(
            "not_found",
            f"{self.display}: expected an output of DVC with an md5 there, found none in {looked[:300]}",
            "name the output's own path, as `dvc list -R --dvc-only` shows it",
        )

    async def _remotes(self, repository: SmallFiles, output: Output) -> Remotes:
        """Return the remotes of the nearest folder above the output that has a `.dvc`."""
        parts = output.path.split("/")[:-1]
        roots = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
        names = {posixpath.join(root, CONFIG): root for root in roots}
        found = await repository.find(list(names))
        for name, root in names.items():
            if name in found:
                return Remotes.read(await repository.read(found[name], _MAX_INDEX_BYTES), root, self._address)
        raise Permanent("not_found", f"{self.display}: expected {CONFIG}, found none", "is it a repository of DVC?")

    async def _named(self, output: Output, below: str, location: str, chosen_by: str | None) -> list[Named]:
        if not output.is_folder:
            return [output.named(posixpath.basename(output.path))]
        source = await self._open(location, chosen_by)
        try:
            remote = SmallFiles(source, self._client)
            found = (await remote.find([output.place])).get(output.place)
            if found is None:
                shown = f"{source.display}: expected {output.place}, the listing of {output.path!r}, found none"
                raise Permanent("not_found", shown, "push the output to this remote: `dvc push`")
            data = await remote.read(found, _MAX_FOLDER_BYTES)
        except HoldfastError as error:
            raise self._about(source, error) from error
        finally:
            await source.aclose()
        return await asyncio.to_thread(self._chosen, output, data, below, source.display)

    def _chosen(self, output: Output, data: bytes, below: str, where: str) -> list[Named]:
        """Return the files of a folder's listing, found at `where`, that are `below` a folder of it. Slow for many."""
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != output.md5:
            shown = f"{self.display}: {output.place} at {where}: expected the md5 {output.md5}, found {md5}"
            raise Transient("bad_response", shown, "push the output again: `dvc push`")
        files = list(read_folder(data, output, self.display))
        exact = output.is_exact
        chosen = [(path[len(below) :], sum_) for path, sum_ in files if path.startswith(below)]
        if not chosen:
            chosen = [(posixpath.basename(path), sum_) for path, sum_ in files if f"{path}/" == below]
        if not chosen:
            shown = f"{self.display}: expected files there, found none in the output {output.path!r}"
            raise Permanent("not_found", shown, "check the path in the output")
        return [
            Named(path, place_of(each, is_exact=exact), sums=sums_of(each, is_exact=exact))
            for path, each in sorted(chosen)
        ]

    async def _open(self, uri: str, chosen_by: str | None = None) -> Source:
        try:
            return await asyncio.to_thread(self._opener, uri, chosen_by=chosen_by)  # may import
        except HoldfastError as error:
            problem = f"{self.display} leads to a place that cannot be opened: {error.message}"
            raise Permanent(error.code, problem, error.remedy) from error

    def _about(self, source: Source, error: HoldfastError) -> HoldfastError:
        if error.message.startswith(self.display):
            return error
        message = f"{self.display}, which leads to {source.display}: {error.message}"
        if isinstance(error, Transient):
            return Transient(error.code, message, error.remedy, retry_after_s=error.retry_after_s)
        return Permanent(error.code, message, error.remedy)
