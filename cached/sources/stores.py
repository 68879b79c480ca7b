"""Addresses in stores that a service names (a model registry, an artifact's manifest), as locations of ours.

Law: reads the environment and paths only. Who may write into that service chooses these addresses, and must not choose
where credentials of this node go, or what of its disk becomes a model: an address has no parameters and no credentials,
and a local one counts below a folder that the operator names.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from cached.contract.errors import Permanent
from cached.transport.urls import Address, display_url

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_S3 = frozenset({"s3", "s3a", "s3n"})
_GOOGLE = frozenset({"gs", "gcs"})
_AZURE = frozenset({"wasb", "wasbs", "abfs", "abfss"})
_WEB = frozenset({"http", "https"})
_AZURE_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:blob|dfs)\.core\.([a-z0-9.-]+)")
_PUBLIC_AZURE = "windows.net"
_READABLE = "s3://, gs://, az://, wasbs://, abfss://, https://, or file:// below the folder that the location allows"
_STORE = "move the files to a store that this node reads, or name their location itself as the source"


def split_address(address: str) -> SplitResult:
    """Return the parts of an address that a service names. Raises `Permanent` (`bad_address`)."""
    try:
        return urlsplit(address)
    except ValueError as error:  # `//[x/`, or a host with characters that stand for others
        problem = "expected the address of a place of files, found one whose host is none"
        raise Permanent("bad_address", problem, "correct it where it was registered") from error


@dataclass(frozen=True, slots=True)
class StoreRules:
    """`subject`: whose addresses they are, for messages. `files_below`: the folder of this node, absolute, below which
    a local address may be; None: nowhere. `allow`: the parameter that names it, for messages."""

    subject: str
    files_below: str | None = None
    allow: str = ""

    def location(self, address: str) -> str:
        """Return the location of ours for an address of another tool. Raises `Permanent`: `unknown_store`,
        `bad_address`, `forbidden_file`."""
        match = _SCHEME.match(address)
        scheme = match[1].lower() if match is not None else "file" if address.startswith("/") else ""
        if scheme == "file":
            return self._file(address)
        rest = address.partition("://")[2]
        self._check_plain(scheme, address, rest)
        if scheme in _S3:
            return f"s3://{rest}"
        if scheme in _GOOGLE:
            return f"gs://{rest}"
        if scheme == "az":
            return f"az://{rest}"
        if scheme in _AZURE:
            return self._azure(rest)
        if scheme in _WEB:
            return address
        found = f"the scheme {scheme!r}" if scheme else "no scheme"
        raise Permanent("unknown_store", f"{self.subject}: expected an address as {_READABLE}, found {found}", _STORE)

    def _check_plain(self, scheme: str, address: str, rest: str) -> None:
        """Raise for what would send requests elsewhere, or with other credentials, than the store's name says."""
        if scheme in _WEB:
            if Address.parse(address).userinfo is not None or "#" in address:
                raise self._bad(f"credentials or a `#` in {display_url(address)}")
        elif scheme in _S3 | _GOOGLE | _AZURE | {"az"}:
            host, _, path = rest.partition("/")
            if not host or "?" in rest or (scheme not in _AZURE and "@" in host):
                raise self._bad(f"a {scheme}:// address without a bucket, or with credentials or parameters")
            if any(part in (".", "..") for part in path.split("/")):
                raise self._bad(f"`.` or `..` in the path of a {scheme}:// address")

    def _azure(self, rest: str) -> str:
        place, _, path = rest.partition("/")
        container, _, host = place.partition("@")
        match = _AZURE_HOST.fullmatch(host.lower())
        if match is None or not container:
            raise self._bad("an Azure address of another form than container@account.blob.core.windows.net/path")
        if match[2] != _PUBLIC_AZURE and not os.environ.get("AZURE_STORAGE_BLOB_ENDPOINT"):
            raise Permanent(
                "unknown_store",
                f"{self.subject}: expected an account of core.{_PUBLIC_AZURE}, found one of core.{match[2]}",
                "name that cloud's endpoint in AZURE_STORAGE_BLOB_ENDPOINT",
            )
        return f"az://{match[1]}/{container}/{path}"

    def _file(self, address: str) -> str:
        """Return the real path of a local address below the folder that is allowed."""
        path = address
        if not address.startswith("/"):
            parts = split_address(address)
            if parts.netloc not in ("", "localhost"):
                raise self._bad("a file:// address of another machine")
            path = unquote(parts.path, errors="surrogateescape")
        if not path.startswith("/") or "\0" in path:
            raise self._bad("a local address that is no absolute path")
        real = os.path.realpath(path)
        root = None if self.files_below is None else os.path.realpath(self.files_below)
        if root is not None and os.path.commonpath([real, root]) == root:
            return real
        allowed = "none is allowed" if self.files_below is None else f"{self.files_below} is allowed"
        remedy = "move the files to a store that every node reads"
        if self.allow:
            remedy += f", or mount them at the same path here and name the folder with {self.allow}"
        raise Permanent(
            "forbidden_file",
            f"{self.subject}: the files lie in a folder of its machine ({path[:200]!r}), expected below a folder of "
            f"this node that the location allows: {allowed}",
            remedy,
        )

    def _bad(self, found: str) -> Permanent:
        return Permanent(
            "bad_address",
            f"{self.subject}: expected the plain address of a folder in a store, found {found}",
            "correct it where it was registered",
        )
