"""One repository on a Git host, asked over smart HTTP.

Law: sends what a depth of one and the filters of a partial clone need, and reads no more than its limits; nothing is
written to a disk. Requests go through the product's own transport: its timeouts, proxies, and rules for redirects and
credentials. Format: gitprotocol-http(5), gitprotocol-v2(5).
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.git.access import credentials_for, explain, explained_status, has_credentials
from cached.sources.git.address import GitAddress
from cached.sources.git.pack import Objects, PackReader, read_objects
from cached.sources.git.pktline import ControlPacket, Packets, SideBand, encode
from cached.sources.git.versions import AGENT, OBJECT_FORMAT, ProtocolVersion, Ref, parse_ref, read_version
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.requests import Service
from cached.transport.service.tokens import FixedHeaders
from cached.transport.target import Headers, HttpTarget
from cached.transport.urls import Address, display_url

_MAX_REFS_BYTES = 32 * 1024 * 1024
MAX_OBJECTS_BYTES = 64 * 1024 * 1024  # of a commit's trees and small files, in memory
_VERSION_2: Headers = (("Git-Protocol", "version=2"),)
_POST_HEADERS: Headers = (
    *_VERSION_2,
    ("Content-Type", "application/x-git-upload-pack-request"),
    ("Accept", "application/x-git-upload-pack-result"),
)
_SERVICE = "/info/refs?service=git-upload-pack"
_SIZE = re.compile(r"([0-9a-f]{40}) ([0-9]{1,16})")
_NOT_OURS = re.compile(r"not our ref|bad object|not a valid object|no such (?:object|remote)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Host:
    """What the repository's host said of itself, and the repository's address after redirects."""

    url: str
    version: ProtocolVersion


class Remote:
    """A repository. Thread-safe; contacts no server before the first request."""

    def __init__(self, address: GitAddress, client: HttpClient) -> None:
        self._address = address
        self._client = client
        self.where = address.display
        self._asking = threading.Lock()
        self._host: list[_Host] = []  # at most one

    def url(self, cancellation: Cancellation) -> str:
        """Return the repository's address, after redirects."""
        return self._ask_host(cancellation).url

    def version(self, cancellation: Cancellation) -> ProtocolVersion:
        """Return what the host can do."""
        return self._ask_host(cancellation).version

    def refs(self, prefixes: Iterable[str], cancellation: Cancellation) -> list[Ref]:
        """Return the refs whose names begin with one of `prefixes`; all without any."""
        chosen = tuple(prefixes)
        if self._ask_host(cancellation).version.refs is not None:
            refs = self._renewed_refs(cancellation)
            return [ref for ref in refs if not chosen or ref.name.startswith(chosen)]
        lines: list[str | ControlPacket] = ["command=ls-refs", AGENT, OBJECT_FORMAT, ControlPacket.DELIMITER, "peel"]
        found, size = [], 0
        with self._posted(
            [*lines, *(f"ref-prefix {prefix}" for prefix in chosen), ControlPacket.FLUSH], cancellation
        ) as packets:
            while (line := packets.line()) is not ControlPacket.FLUSH:
                ref = parse_ref(line) if isinstance(line, str) else None
                if ref is None:
                    raise packets.bad(f"{str(line)[:100]!r} in its list of refs")
                found.append(ref)
                size += len(ref.name) + len(ref.oid)
                if size > _MAX_REFS_BYTES:
                    problem = (
                        f"{self.where}: expected at most {_MAX_REFS_BYTES >> 20} MiB of branches and tags, found more"
                    )
                    raise Permanent("too_large", problem, "name the commit itself")
        return found

    def sizes(self, oids: Sequence[str], cancellation: Cancellation) -> dict[str, int]:
        """Return the sizes in bytes of objects by their ids; none where the server does not tell sizes
        (`object-info`, which some hosts switch off)."""
        if not oids or not self.version(cancellation).tells_sizes:
            return {}
        lines: list[str | ControlPacket] = [
            "command=object-info",
            AGENT,
            OBJECT_FORMAT,
            ControlPacket.DELIMITER,
            "size",
        ]
        found, wanted = {}, frozenset(oids)
        with self._posted([*lines, *(f"oid {oid}" for oid in oids), ControlPacket.FLUSH], cancellation) as packets:
            while (line := packets.line()) is not ControlPacket.FLUSH:
                match = _SIZE.fullmatch(line) if isinstance(line, str) else None
                if match is not None and match[1] in wanted:
                    found[match[1]] = int(match[2])
                elif line != "size":
                    raise packets.bad(f"{str(line)[:100]!r} in its list of sizes")
        return found

    def objects(self, wants: Sequence[str], options: Sequence[str], cancellation: Cancellation) -> Objects:
        """Return the objects of a fetch with these `options` (`deepen 1`, `filter …`), into memory. Raises `Permanent`
        (`too_large`) beyond the limit, (`not_found`) for an object that the server has not."""
        filters = self.version(cancellation).filters
        hint = "name a commit with less beside Git LFS" if filters else "let the server filter: uploadpack.allowFilter"
        too_large = Permanent(
            "too_large",
            f"{self.where}: expected at most {MAX_OBJECTS_BYTES >> 20} MiB of folders and small files, found more"
            + ("" if filters else "; the server sends all files with them, as it has no partial clone"),
            f"{hint}, or keep large files in Git LFS",
        )
        with self.pack(wants, options, cancellation) as pack:
            return read_objects(pack, MAX_OBJECTS_BYTES, too_large)

    @contextmanager
    def pack(self, wants: Sequence[str], options: Sequence[str], cancellation: Cancellation) -> Iterator[PackReader]:
        """Open the pack of a fetch, for the block."""
        version = self.version(cancellation)
        with self._posted(version.fetch(wants, options), cancellation) as packets:
            try:
                version.find_pack(packets)
            except Permanent as error:
                if not _NOT_OURS.search(error.message):
                    raise
                problem = f"{self.where}: the repository has no object {', '.join(wants)[:200]}"
                raise Permanent("not_found", problem, "take a commit that is there still") from error
            yield PackReader(SideBand(packets).read, self.where)

    @contextmanager
    def _posted(self, lines: Sequence[str | ControlPacket], cancellation: Cancellation) -> Iterator[Packets]:
        """Send a request; give its answer, which is read as it comes, for the block."""
        host = self._ask_host(cancellation)
        url = f"{host.url}/git-upload-pack"
        headers = (*_POST_HEADERS, *self._credentials().headers_for(url, cancellation))
        chosen_by = self._address.url if host.url != self._address.url else None
        try:
            answer = self._client.post(HttpTarget(url, headers, chosen_by=chosen_by), encode(lines), cancellation)
        except HoldfastError as error:
            raise self._explained(error) from error
        with answer:
            yield Packets(answer.readinto, self.where)

    def _ask_host(self, cancellation: Cancellation) -> _Host:
        with self._asking:
            if not self._host:
                self._host.append(self._advertised(cancellation))
            return self._host[0]

    def _renewed_refs(self, cancellation: Cancellation) -> Sequence[Ref]:
        """Return the refs as they are now, of a host that tells them with its capabilities."""
        host = self._advertised(cancellation)
        with self._asking:
            self._host = [host]
        return host.version.refs or ()

    def _advertised(self, cancellation: Cancellation) -> _Host:
        asked = self._address.url
        response = self._service(cancellation).get(asked + _SERVICE, _VERSION_2, _MAX_REFS_BYTES)
        url = self._base_of(response)
        if Address.parse(url).origin != self._address.origin:
            # A redirect to another host drops the header that asks for version 2, so that host is asked itself.
            target = HttpTarget(url + _SERVICE, _VERSION_2, chosen_by=asked)
            try:
                response = self._client.fetch(target, _MAX_REFS_BYTES, cancellation)
            except HoldfastError as error:
                raise self._explained(error) from error
            url = self._base_of(response)
        return _Host(url, read_version(Packets(io.BytesIO(response.body).readinto, self.where)))

    def _base_of(self, response: Response) -> str:
        """Return the repository's address of an answer with its refs, which may have been redirected."""
        url = response.url.partition("?")[0]
        if not url.endswith("/info/refs"):
            raise Transient(
                "bad_response",
                f"{self.where}: expected the repository's refs, found a redirect to {display_url(url)}",
                "check the address of the repository",
            )
        return url.removesuffix("/info/refs")

    def _service(self, cancellation: Cancellation) -> Service:
        credentials, origin = self._credentials(), self._address.origin
        explained = explain(self.where, origin, with_credentials=has_credentials(origin, credentials, self._client))
        return Service(self._client, cancellation, self.where, credentials, explained)

    def _credentials(self) -> FixedHeaders:
        return credentials_for(self._address.origin, self._address.userinfo, self.where)

    def _explained(self, error: HoldfastError) -> HoldfastError:
        """Return the error of a POST, in the words of this repository."""
        status = {"unauthorized": 401, "forbidden": 403, "not_found": 404, "gone": 410}.get(error.code)
        origin = self._address.origin
        sent = has_credentials(origin, self._credentials(), self._client)
        about = None if status is None else explained_status(status, self.where, origin, with_credentials=sent)
        if about is not None:
            return about
        message = f"{self.where}: {error.message}"
        if isinstance(error, Transient):
            return Transient(error.code, message, error.remedy, retry_after_s=error.retry_after_s)
        return Permanent(error.code, message, error.remedy)
