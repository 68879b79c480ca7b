"""Azure Blob Storage locations: `az://account/container/prefix/?endpoint_url=…`, with these parameters:

| parameter | meaning |
| --- | --- |
| `anonymous` | `true`: requests carry no credentials, for public containers |
| `endpoint_url` | the account's blob endpoint, as in a connection string; else the environment's |

The environment's endpoint is `AZURE_STORAGE_BLOB_ENDPOINT`, in which `{account}` stands for the account; else that of
`AZURE_STORAGE_CONNECTION_STRING`; else `https://ACCOUNT.blob.core.windows.net`.

Law: pure. No parameter takes a key or a token, and a location with one is refused without being quoted. Names are
literal, as for `az storage`: no percent-encoding before the `?`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from cached.contract.errors import Permanent
from cached.sources.azure.environment import blob_endpoint
from cached.sources.location import as_prefix, check_endpoint, parse_parameters, show_endpoint

_PARAMETERS = ("anonymous", "endpoint_url")
_SECRETS = {"sig": "found a SAS in it, which is a secret: put it into AZURE_STORAGE_SAS_TOKEN"}
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"\$root|\$web|(?=.{3,63}$)[a-z0-9](?:-?[a-z0-9])*")


@dataclass(frozen=True, slots=True)
class AzureAddress:
    """An account, a container, a blob's name (as written, perhaps empty), and where it is asked for. `endpoint`: the
    account's, without a slash at its end."""

    account: str
    container: str
    key: str
    endpoint: str
    anonymous: bool = False
    is_given: bool = False  # whether the location itself names the endpoint

    @classmethod
    def parse(cls, uri: str) -> AzureAddress:
        """Parse a location; the environment may name the endpoint. Raises `Permanent` (`bad_source`), which names the
        part and never its value."""
        location, _, query = uri.partition("?")
        scheme, separator, rest = location.partition("://")
        account, _, path = rest.partition("/")
        container, _, key = path.partition("/")
        if scheme.lower() != "az" or not separator:
            raise _refuse("expected az://account/container/prefix/, found another scheme")
        if not _ACCOUNT.fullmatch(account):
            raise _refuse("expected a storage account's name after az:// (3 to 24 of a-z, 0-9), found something else")
        if not _CONTAINER.fullmatch(container):
            raise _refuse(
                "expected a container's name after az://account/ (3 to 63 of a-z, 0-9, `-`), found something else"
            )
        given = parse_parameters(query, _PARAMETERS, _SECRETS, _refuse)
        if given.get("anonymous", "false") not in ("true", "false"):
            raise _refuse("anonymous: expected true or false")
        endpoint = given.get("endpoint_url") or blob_endpoint(account)
        named = "endpoint_url" if "endpoint_url" in given else "AZURE_STORAGE_BLOB_ENDPOINT"
        check_endpoint(endpoint, named, "http(s)://host[:port][/account]", _refuse)
        anonymous = given.get("anonymous") == "true"
        return cls(account, container, key, endpoint.rstrip("/"), anonymous, "endpoint_url" in given)

    @property
    def prefix(self) -> str:
        """The key as a folder: empty, or with a slash at its end."""
        return as_prefix(self.key)

    @property
    def display(self) -> str:
        """The location for messages: account, container, key, and the endpoint where the location names one."""
        return self.uri(self.key) + show_endpoint(self.endpoint if self.is_given else None)

    def uri(self, key: str) -> str:
        """Return the plain URI of a blob in the container, for messages."""
        return f"az://{self.account}/{self.container}/{key}"

    def list_url(self, prefix: str, marker: str, page_size: int) -> str:
        """Return the URL of one page of the blobs under `prefix`; `marker`: of the page, empty for the first."""
        query = {"restype": "container", "comp": "list", "prefix": prefix, "include": "metadata"}
        page = {"marker": marker} if marker else {}
        given = urlencode({**query, "maxresults": str(page_size), **page}, quote_via=quote)
        return f"{self.endpoint}/{self.container}?{given}"

    def blob_url(self, key: str, **query: str) -> str:
        """Return the URL of a blob."""
        given = urlencode(query, quote_via=quote)
        return f"{self.endpoint}/{self.container}/{quote(key, safe='/')}" + (f"?{given}" if given else "")


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"Azure Blob Storage location: {message}",
        "write it as az://account/container/prefix/; credentials belong in the environment or the identity of the pod",
    )
