"""The source of `models:/` and `runs:/`.

Law: wires the parts. What a version's address names is read there: in its own store by the opener, else through the
server.
"""

from __future__ import annotations

import os
from urllib.parse import quote

from cached.sources.base import Opener, Source
from cached.sources.mlflow.address import MlflowAddress
from cached.sources.mlflow.proxy import ProxiedArtifacts, is_proxied
from cached.sources.mlflow.registry import MlflowRegistry
from cached.sources.mlflow.server import MlflowServer
from cached.sources.resolving import Referral, Resolution, ResolvedSource
from cached.sources.stores import StoreRules
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation


def mlflow_source(uri: str, client: HttpClient, opener: Opener) -> ResolvedSource:
    """Return the source of a location, which contacts no server yet; the caller closes `client`. Raises `Permanent`
    (`bad_source`, `no_tracking_server`)."""
    address = MlflowAddress.parse(uri)
    server = MlflowServer.of(address)
    rules = StoreRules(address.display, address.file_root, "?file_root=/folder")

    def find(cancellation: Cancellation) -> Resolution:
        service = server.service(client, cancellation, address.display)
        found = MlflowRegistry(service, server, address.display).find(address.subject, address.folder)
        if is_proxied(found.uri):
            return Resolution((Referral(found.uri),), found.revision)
        location = rules.location(found.uri)
        endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL") if location.startswith("s3://") else None
        if endpoint:
            location += f"?endpoint_url={quote(endpoint, safe=':/')}"
        return Resolution((Referral(location, chosen_by=server.tracking),), found.revision)

    def open_place(uri: str, *, chosen_by: str | None = None) -> Source:
        if is_proxied(uri):
            return ProxiedArtifacts(uri, server, client)
        return opener(uri, chosen_by=chosen_by)

    return ResolvedSource("mlflow", address.display, client, open_place, find)
