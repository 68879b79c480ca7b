"""Reads of a layer by ranges, for the headers of a plain tar.

Law: a read costs a request only where the bytes are not in the window of the last one; the window grows where reads
follow one another, as in an archive of small files, and stays small where each file is large.
"""

from __future__ import annotations

from cached.contract.errors import HoldfastError, Permanent
from cached.sources.oci.manifest import Descriptor
from cached.sources.oci.registry import Registry
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget

_FIRST_BYTES = 16 * 1024
_MOST_BYTES = 1024 * 1024
_MAX_REQUESTS = 20_000
_REFUSED = frozenset({"unauthorized", "forbidden", "expired_signature"})


class LayerReader:
    """The bytes of one layer."""

    def __init__(
        self, client: HttpClient, registry: Registry, blob: Descriptor, where: str, cancellation: Cancellation
    ) -> None:
        self._client = client
        self._registry = registry
        self._blob = blob
        self._where = where
        self._cancellation = cancellation
        self._target: HttpTarget | None = None
        self._start, self._data = 0, b""
        self._window_bytes = _FIRST_BYTES
        self._requests = 0

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes [offset, offset + length), fewer at the end of the layer. Raises `HoldfastError`."""
        length = min(length, self._blob.size - offset)
        if length <= 0:
            return b""
        end = self._start + len(self._data)
        if not self._start <= offset or offset + length > end:
            is_near = self._start <= offset <= end + _FIRST_BYTES
            self._window_bytes = min(_MOST_BYTES, self._window_bytes * 2) if is_near and end else _FIRST_BYTES
            wanted = min(max(length, self._window_bytes), self._blob.size - offset)
            self._data, self._start = self._request(offset, wanted), offset
        at = offset - self._start
        return self._data[at : at + length]

    def _request(self, offset: int, length: int) -> bytes:
        self._requests += 1
        if self._requests > _MAX_REQUESTS:
            problem = f"{self._where}: its headers need more than {_MAX_REQUESTS} requests"
            raise Permanent("too_large", problem, "push the files as raw layers")
        if self._target is None:
            self._target = self._registry.blob_target(self._blob.digest, self._cancellation)
        try:
            return self._fetch(self._target, offset, length)
        except HoldfastError as error:
            if error.code not in _REFUSED:
                raise
        self._registry.refuse(self._target)  # its token or its signature has ended
        self._target = self._registry.blob_target(self._blob.digest, self._cancellation)
        return self._fetch(self._target, offset, length)

    def _fetch(self, target: HttpTarget, offset: int, length: int) -> bytes:
        data = bytearray(length)
        with self._client.get(target, offset, length, self._cancellation) as body:
            if (body.start, body.length) != (offset, length):
                problem = f"{self._where}: expected a part of the layer, found the whole: the server serves no ranges"
                raise Permanent("no_ranges", problem, "use a registry, or a proxy before it, that serves ranges")
            body.readinto(memoryview(data))
        return bytes(data)
