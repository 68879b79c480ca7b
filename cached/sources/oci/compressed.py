"""The bytes of a compressed layer, in order: received, inflated, and counted.

Law: memory is bounded whatever a layer grows to. A connection that breaks is resumed at its byte. A gzip stream can be
left and taken up again at a mark: the state of its inflation, some 40 KB. zstd has no such marks here.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.oci.manifest import Descriptor
from cached.sources.oci.registry import Registry
from cached.transport.body import Body
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget

_CHUNK_BYTES = 256 * 1024
_ATTEMPTS = 5  # without a byte in between
_PAUSE_S = 0.2
_REFUSED = frozenset({"unauthorized", "forbidden", "expired_signature"})
_GZIP_WINDOW = 31  # zlib: a gzip header, and the largest window
_ZSTD_WINDOW_BYTES = 128 * 1024 * 1024  # what `zstd --long` uses at most without being asked twice


class RegistryBlobStream:
    """The bytes of a blob from `offset`. `sha256`: of those received."""

    def __init__(
        self,
        client: HttpClient,
        registry: Registry,
        blob: Descriptor,
        cancellation: Cancellation,
        offset: int = 0,
    ) -> None:
        self._client = client
        self._registry = registry
        self._blob = blob
        self._cancellation = cancellation
        self.position = offset
        self.sha256 = hashlib.sha256()
        self._body: Body | None = None

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end. Raises `HoldfastError`."""
        buffer = bytearray(min(size, _CHUNK_BYTES, self._blob.size - self.position))
        if not buffer:
            return b""
        failures = 0
        while True:
            try:
                if self._body is None:
                    self._body = self._open()
                count = self._body.readinto(memoryview(buffer))
                break
            except HoldfastError as error:
                failures += 1
                self.close()
                if (error.permanent and error.code not in _REFUSED) or failures == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE_S * failures)
                self._cancellation.check()
        if count == 0:
            problem = f"{self._blob.digest}: it ended at byte {self.position} of {self._blob.size}"
            raise Transient("bad_response", problem, "it is tried again")
        self.position += count
        self.sha256.update(memoryview(buffer)[:count])
        return bytes(buffer[:count])

    def close(self) -> None:
        """Close the connection; the next read opens another one."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def _open(self) -> Body:
        target = self._registry.blob_target(self._blob.digest, self._cancellation)
        try:
            body = self._get(target)
        except HoldfastError as error:
            if error.code in _REFUSED:
                self._registry.refuse(target)
            raise
        if body.start != self.position:
            body.close()
            problem = f"{self._blob.digest}: expected it from byte {self.position}, found the whole"
            raise Permanent("no_ranges", problem, "use a registry, or a proxy before it, that serves ranges")
        return body

    def _get(self, target: HttpTarget) -> Body:
        return self._client.get(target, self.position, self._blob.size - self.position, self._cancellation)


@dataclass(frozen=True, slots=True)
class InflationPoint:
    """A place in a gzip stream: the offset of its next byte in the blob, and the state of the inflation there."""

    offset: int
    state: Any = field(repr=False)


class Inflating(Protocol):
    """The inflated bytes of a layer."""

    source: RegistryBlobStream

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end. Raises `HoldfastError`, also for what is not of the format."""

    def mark(self) -> InflationPoint | None:
        """Return this place, where it can be taken up again."""


class GzipStream:
    """The inflated bytes of gzip members, from the beginning or from a mark."""

    def __init__(self, source: RegistryBlobStream, where: str, mark: InflationPoint | None = None) -> None:
        self.source = source
        self._where = where
        self._state: Any = None if mark is None else mark.state.copy()
        self._input = b""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end."""
        while True:
            if not self._input:
                self._input = self.source.read(_CHUNK_BYTES)
            if self._state is None:
                if not self._input:
                    return b""
                self._state = zlib.decompressobj(wbits=_GZIP_WINDOW)
            if not self._input and not self._state.eof:
                raise bad_layer(self._where, "it ends in the middle")
            try:
                data: bytes = self._state.decompress(self._input, size)
            except zlib.error as error:
                raise bad_layer(self._where, "it is no gzip, or damaged") from error
            if self._state.eof:
                self._input, self._state = self._state.unused_data, None
            else:
                self._input = self._state.unconsumed_tail
            if data:
                return data

    def mark(self) -> InflationPoint | None:
        """Return this place; None between two members."""
        if self._state is None:
            return None
        return InflationPoint(self.source.position - len(self._input), self._state.copy())


class ZstdStream:
    """The inflated bytes of zstd frames."""

    def __init__(self, source: RegistryBlobStream, where: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise Permanent(
                "no_zstd",
                f"{where}: expected the Python package zstandard to read a zstd layer, found none",
                "install it: `pip install 'holdfast[oci]'`; or push the layer as gzip or uncompressed",
            ) from error
        self.source = source
        self._where = where
        self._error = zstandard.ZstdError
        inflate = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._reader = inflate.stream_reader(cast(IO[bytes], source), read_size=_CHUNK_BYTES, read_across_frames=True)

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end."""
        try:
            data: bytes = self._reader.read(size)
        except self._error as error:
            raise bad_layer(self._where, "it is no zstd, or damaged") from error
        return data

    def mark(self) -> InflationPoint | None:
        """Return None: it can be read from its beginning only."""
        return None


def inflate(source: RegistryBlobStream, media_type: str, where: str, mark: InflationPoint | None = None) -> Inflating:
    """Return the inflated bytes of a layer by its media type. Raises `Permanent` (`no_zstd`)."""
    return ZstdStream(source, where) if "zstd" in media_type else GzipStream(source, where, mark)


def bad_layer(where: str, problem: str) -> Permanent:
    """Return the error of a layer whose bytes are not what its type says."""
    return Permanent("bad_layer", f"{where}: {problem}", "push it again; a layer's type must be that of its bytes")
