"""The chaining values that `holdfast publish` left beside a version's manifest, read at its source.

Law: a hint. The file is small, is read once for each fetch with other nodes, and may be missing, damaged or of another
version: the log says why it was of no use, and nothing fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from cached.core.listing import RemoteFile
from cached.peers.chain_file import MAX_CHAIN_FILE_BYTES, BadChainFile, decode_chains
from cached.sources.base import Source
from cached.transport.client import HttpClient

_log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0  # the fetch waits for them: pieces that come before are hashed twice
_ABSENT = frozenset({"not_found", "forbidden"})  # 403: a store that may not be listed says so of what is missing


class PublishedChains:
    """Reads such files with `client`, where they have an HTTP address."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._said: dict[ModelRef, str] = {}  # why the last one of each version was of no use

    async def read(self, ref: ModelRef, source: Source, file: RemoteFile) -> Mapping[str, bytes]:
        """Return the states by the sha256 of their blob; nothing where the file is of no use."""
        from cached.sources.small_files import SmallFiles  # here: a daemon loads nothing of sources at its start

        try:
            if file.problem is not None:
                raise file.problem
            async with asyncio.timeout(_TIMEOUT_S):
                data = await SmallFiles(source, self._client).read(file, MAX_CHAIN_FILE_BYTES)
            found = await asyncio.to_thread(decode_chains, data)
        except HoldfastError as error:
            if error.code not in _ABSENT:
                self._say(ref, error.message)
        except BadChainFile as error:
            self._say(ref, f"{source.display}: {file.path}: {error}")
        except TimeoutError:
            self._say(ref, f"{source.display}: {file.path}: not read within {_TIMEOUT_S:.0f} s")
        else:
            self._said.pop(ref, None)
            return found
        return {}

    def _say(self, ref: ModelRef, reason: str) -> None:
        if self._said.get(ref) != reason:
            self._said[ref] = reason
            _log.warning("%s: its published chaining values are of no use: %s", ref, reason)
