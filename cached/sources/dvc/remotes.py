"""The remotes of a repository, by its `.dvc/config`.

Law: reads no file. Who commits to the repository chooses the address of a remote, and neither the endpoint that signed
requests go to, nor the profile that signs them, nor a folder of this node.
"""

from __future__ import annotations

import configparser
import os
import posixpath
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlencode

from cached.contract.errors import Permanent
from cached.sources.dvc.address import DvcAddress
from cached.sources.dvc.outputs import bad_index
from cached.sources.stores import StoreRules
from cached.transport.urls import display_url

CONFIG = ".dvc/config"
_REMOTE = re.compile(r"remote \"(.+)\"")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_WEB = {"webdav": "http", "webdavs": "https"}
_MAX_NESTED = 4


@dataclass(frozen=True, slots=True)
class Remotes:
    """The remotes by name, each with its settings, and the default one. `root`: the folder that has `.dvc`."""

    address: DvcAddress
    root: str
    default: str | None
    settings: dict[str, dict[str, str]]

    @classmethod
    def read(cls, data: bytes, root: str, address: DvcAddress) -> Remotes:
        """Read a configuration. Raises `Permanent` (`bad_index`)."""
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read_string(data.decode())
        except (configparser.Error, UnicodeDecodeError) as error:
            raise bad_index(address.display, CONFIG, f"another form ({type(error).__name__})") from error
        settings = {}
        default = None
        for section in parser.sections():
            values = {name: value.strip("'\"") for name, value in parser[section].items()}
            match = _REMOTE.fullmatch(section.strip("'"))
            if match is not None:
                settings[match[1]] = values
            elif section == "core":
                default = values.get("remote")
        return cls(address, root, default, settings)

    def location(self, named: str | None) -> str:
        """Return the location of ours for a remote: the address's, else `named` (an output's), else the default. Raises
        `Permanent`: `no_remote`, or as `StoreRules.location`."""
        name = self.address.remote or named or self.default
        if name is None or name not in self.settings:
            if name is None and self.address.is_folder:
                return f"{self._folder}/.dvc/cache/"  # a repository without a remote has its own cache
            known = ", ".join(sorted(self.settings)) or "none"
            found = "no default one" if name is None else f"{name[:100]!r}"
            raise Permanent(
                "no_remote",
                f"{self.address.display}: expected a remote of {CONFIG} ({known[:300]}), found {found}",
                "name one with ?remote=, or give the repository a default one (`dvc remote add -d`)",
            )
        return self._store(self._url(name), name)

    @property
    def _folder(self) -> str:
        base = unquote(self.address.repository.removeprefix("file://"))
        return posixpath.join(base, self.root) if self.root else base.rstrip("/")

    def _url(self, name: str) -> str:
        rest = ""
        for _ in range(_MAX_NESTED):
            url = self.settings.get(name, {}).get("url", "")
            if not url.startswith("remote://"):
                return f"{url.rstrip('/')}{rest}"
            name, _, below = url.removeprefix("remote://").partition("/")
            rest = f"/{below}{rest}" if below else rest
        raise bad_index(self.address.display, CONFIG, "remotes that lead to each other")

    def _store(self, url: str, name: str) -> str:
        subject = f"{self.address.display}: the remote {name[:100]!r}"
        settings = self.settings[name]
        scheme, separator, rest = url.partition("://")
        if not separator and url and not url.startswith("/") and self.address.is_folder:
            url = posixpath.normpath(posixpath.join(self._folder, ".dvc", url))
        if scheme in _WEB:
            url = f"{_WEB[scheme]}://{rest}"
        if scheme == "azure":
            account = settings.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT", "")
            url = f"az://{account}/{rest}" if account else "az://"
        allowed = self.address.file_root or (self._folder if self.address.is_folder else None)
        location = StoreRules(subject, allowed, "?file_root=/folder before the `#`").location(url).rstrip("/") + "/"
        if not location.startswith("s3://"):
            return location
        given = dict(self.address.s3)
        theirs = settings.get("endpointurl")
        if theirs and "endpoint_url" not in given and not any(map(os.environ.get, _ENDPOINTS)):
            shown = display_url(theirs)[:200]
            raise Permanent(
                "bad_address",
                f"{subject} names the endpoint {shown!r}; a repository does not choose where signed requests go",
                f"write ?endpoint_url={shown} before the `#` if that is right, or set AWS_ENDPOINT_URL_S3",
            )
        region = settings.get("region")
        if region and "region" not in given:
            given["region"] = region
        return location + (f"?{urlencode(given, safe=':/', quote_via=quote)}" if given else "")
