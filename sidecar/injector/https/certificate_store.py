"""Keep the injector's certificate in a Secret that its replicas share, and its CA in the webhook configuration.

Law: the Secret is authoritative. A write names the version that was read, so that one of two replicas succeeds and the
other adopts the result. A Secret with any other content is never overwritten. Without the API the certificate stays.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cached.contract.errors import Transient
from sidecar.injector.cluster.api import Json, KubeApi, KubeConflict
from sidecar.injector.https.certificates import CertificateKeys, next_keys
from sidecar.injector.https.context import ServingTls

_log = logging.getLogger(__name__)
_ATTEMPTS = 5  # of replicas that write at the same moment, one succeeds each time


@dataclass(frozen=True, slots=True)
class CertificateObjects:
    """The objects of the certificate: its Secret, the webhook configuration, and the service it is for."""

    namespace: str
    secret: str
    webhook: str
    service: str

    @property
    def secrets_path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/secrets"

    @property
    def webhook_path(self) -> str:
        return f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{self.webhook}"

    @property
    def dns_names(self) -> tuple[str, ...]:
        """The service's DNS names; the API server uses the first."""
        host = f"{self.service}.{self.namespace}.svc"
        return (host, f"{host}.cluster.local", f"{self.service}.{self.namespace}")


class CertificateStore:
    """One replica's part; `clock` returns the time with its zone."""

    def __init__(self, api: KubeApi, place: CertificateObjects, tls: ServingTls, clock: Callable[[], datetime]) -> None:
        self._api = api
        self._place = place
        self._tls = tls
        self._clock = clock
        self._held: CertificateKeys | None = None

    async def step(self) -> None:
        """Adopt or renew the Secret, serve its certificate, and publish its CAs. Raises `HoldfastError`."""
        self._held = await self._reconcile()
        if self._tls.set_certificate(self._held.certificate_pem, self._held.key_pem):
            _log.info("serving a certificate that is good until %s", self._held.certificate.not_valid_after_utc)
        await self._publish_bundle(self._held.bundle)

    async def _reconcile(self) -> CertificateKeys:
        path = f"{self._place.secrets_path}/{self._place.secret}"
        for _ in range(_ATTEMPTS):
            secret = await self._api.get(path)
            found = CertificateKeys.from_secret(secret["data"]) if secret is not None and secret.get("data") else None
            # A deleted Secret is restored with the served certificate, so that the CAs to trust do not change.
            current = found or self._held
            wanted = next_keys(current, self._place.dns_names, self._clock()) or current
            if found is not None and wanted is found:
                return found
            assert wanted is not None
            try:
                await self._write(path, secret, wanted)
            except KubeConflict:
                continue
            _log.info("wrote the certificate Secret %s/%s", self._place.namespace, self._place.secret)
            return wanted
        raise Transient("kube_conflict", f"{path}: changed at every one of {_ATTEMPTS} attempts to write it", "")

    async def _write(self, path: str, secret: Json | None, keys: CertificateKeys) -> None:
        if secret is not None:
            await self._api.replace(path, {**secret, "data": keys.to_secret()})
            return
        metadata = {"name": self._place.secret, "namespace": self._place.namespace}
        body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": keys.to_secret()}
        await self._api.create(self._place.secrets_path, body)

    async def _publish_bundle(self, bundle: bytes) -> None:
        found = await self._api.get(self._place.webhook_path)
        if found is None:
            raise Transient(
                "no_webhook",
                f"no MutatingWebhookConfiguration {self._place.webhook!r}: no pod gets its gate",
                "apply the injector's manifests, or name it with --webhook-name",
            )
        operations = list(_bundle_operations(found.get("webhooks") or (), base64.b64encode(bundle).decode()))
        if operations:
            await self._api.patch(self._place.webhook_path, operations)
            _log.info("wrote the caBundle of %s", self._place.webhook)


def _bundle_operations(webhooks: Sequence[Json], bundle: str) -> Iterator[Json]:
    """Yield operations that set a different `caBundle`; each first tests that the index is still that webhook's."""
    for index, webhook in enumerate(webhooks):
        if webhook["clientConfig"].get("caBundle") != bundle:
            yield {"op": "test", "path": f"/webhooks/{index}/name", "value": webhook["name"]}
            yield {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": bundle}
