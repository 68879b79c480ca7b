"""What the environment says of storage accounts: endpoints, shared access signatures and keys.

Law: reads the environment and sends no request. A secret is used for its own account only; no message and no `repr`
shows one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cached.contract.errors import Permanent

_SUFFIX = "core.windows.net"
# Azurite's and the old emulator's well-known account, https://learn.microsoft.com/azure/storage/common/storage-use-azurite
_DEVELOPMENT = {
    "AccountName": "devstoreaccount1",
    "AccountKey": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "BlobEndpoint": "http://127.0.0.1:10000/devstoreaccount1",
}


@dataclass(frozen=True, slots=True)
class StorageSecret:
    """What authorizes requests to an account without a token: a `sas` (a query string) or a `key` (base64)."""

    sas: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)


def blob_endpoint(account: str) -> str:
    """Return the blob endpoint of an account. Raises `Permanent` (`bad_credentials`) for a malformed connection
    string."""
    named = os.environ.get("AZURE_STORAGE_BLOB_ENDPOINT")
    if named:
        return named.replace("{account}", account)
    given = _connection_of(account)
    if "BlobEndpoint" in given:
        return given["BlobEndpoint"]
    scheme = given.get("DefaultEndpointsProtocol", "https")
    return f"{scheme}://{account}.blob.{given.get('EndpointSuffix', _SUFFIX)}"


def find_secret(account: str) -> StorageSecret | None:
    """Return the secret of an account: `AZURE_STORAGE_SAS_TOKEN`, `AZURE_STORAGE_CONNECTION_STRING`,
    `AZURE_STORAGE_KEY`. Those without an account's name are for `AZURE_STORAGE_ACCOUNT`, where that is set. Raises
    `Permanent` (`bad_credentials`)."""
    is_ours = os.environ.get("AZURE_STORAGE_ACCOUNT") in (None, "", account)
    sas = os.environ.get("AZURE_STORAGE_SAS_TOKEN") if is_ours else None
    if sas:
        return StorageSecret(sas=_checked_sas(sas, "AZURE_STORAGE_SAS_TOKEN"))
    given = _connection_of(account)
    if "SharedAccessSignature" in given:
        return StorageSecret(sas=_checked_sas(given["SharedAccessSignature"], "AZURE_STORAGE_CONNECTION_STRING"))
    key = given.get("AccountKey") or (os.environ.get("AZURE_STORAGE_KEY") if is_ours else None)
    return StorageSecret(key=key) if key else None


def _connection_of(account: str) -> dict[str, str]:
    """Return the parts of the connection string if it is for this account; empty otherwise."""
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    if not all(separator for _, separator, _ in pairs):
        raise _bad("AZURE_STORAGE_CONNECTION_STRING", "expected Name=value;Name=value, found something else")
    given = {name.strip(): value.strip() for name, _, value in pairs}
    if given.get("UseDevelopmentStorage", "").lower() == "true":
        given = {**_DEVELOPMENT, **given}
    return given if given.get("AccountName", _account_of(given.get("BlobEndpoint", ""))) == account else {}


def _account_of(endpoint: str) -> str:
    """Return the account of an endpoint: its path where it has one, as an emulator's, else the first label of the
    host."""
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        return ""
    return parts.path.strip("/") or (parts.hostname or "").partition(".")[0]


def _checked_sas(sas: str, name: str) -> str:
    found = sas.strip().removeprefix("?")
    if "sig=" not in found or not found.isascii() or any(c.isspace() for c in found):
        raise _bad(name, "expected a shared access signature (sv=…&sig=…), found something else")
    return found


def _bad(name: str, problem: str) -> Permanent:
    return Permanent("bad_credentials", f"{name}: {problem}", f"correct {name}, as the portal or `az storage` shows it")
