"""Make the key of the daemons' pool, in a Secret that they mount.

Law: made once, in a Secret that is there and empty; a write names the version that was read, so that of two replicas,
or of a replica and a person, one succeeds. What is in the Secret is never overwritten, read any further, or kept here.
"""

from __future__ import annotations

import base64
import logging
import secrets
from dataclasses import dataclass

from cached.contract.errors import Permanent, Transient
from sidecar.injector.cluster.api import KubeApi, KubeConflict

_log = logging.getLogger(__name__)

ENTRY = "key"  # the file's name where daemons mount the Secret
_KEY_BYTES = 32
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class PoolSecret:
    """The Secret of the pool's key."""

    namespace: str
    name: str

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/secrets/{self.name}"


class PoolKeyStore:
    """One replica's part."""

    def __init__(self, api: KubeApi, secret: PoolSecret) -> None:
        self._api = api
        self._secret = secret

    async def step(self) -> None:
        """Make a key where the Secret is empty. Raises `HoldfastError`."""
        where = f"the Secret {self._secret.namespace}/{self._secret.name}"
        for _ in range(_ATTEMPTS):
            found = await self._api.get(self._secret.path)
            if found is None:
                raise Transient(
                    "no_pool_secret",
                    f"{where} is not there: daemons without a key fetch each for itself",
                    "apply the manifests again, which make it empty; or make it with a key of yours",
                )
            data = found.get("data") or {}
            if data.get(ENTRY):
                return
            if data:
                raise Permanent(
                    "invalid_secret",
                    f"{where}: expected the entry {ENTRY!r}, or nothing, found {', '.join(sorted(data))}",
                    f"put the pool's key into the entry {ENTRY!r} (`openssl rand -hex 32`), or delete its data",
                )
            key = f"{secrets.token_hex(_KEY_BYTES)}\n"
            made = {**found, "data": {ENTRY: base64.b64encode(key.encode()).decode()}}
            try:
                await self._api.replace(self._secret.path, made)
            except KubeConflict:
                continue
            _log.info("made the pool's key in %s", where)
            return
        raise Transient("kube_conflict", f"{where}: changed at every one of {_ATTEMPTS} attempts to write it", "")
