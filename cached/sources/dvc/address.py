"""Outputs of DVC: `dvc+https://host/org/repo@revision?remote=name#path`, `dvc+file:///path/of/repo#path`, where `path`
is an output, a folder or a file below one, or its `.dvc` file; with these parameters:

| parameter | meaning |
| --- | --- |
| `remote` | the remote to read; else the output's own, else the repository's default |
| `endpoint_url`, `region`, `profile` | of an `s3://` remote; the repository does not choose where signed requests go |
| `file_root` | a folder of this node; a remote in a local file system may lie below it |

Law: pure. What stands before the `?` and the `#` is a location of the source of Git, or of a folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cached.contract.errors import InvalidManifest, Permanent
from cached.contract.manifest import check_path
from cached.sources.location import parse_parameters
from cached.transport.urls import display_url

_REPOSITORIES = {"dvc+https": "git+https", "dvc+http": "git+http", "dvc+file": "file"}
_PARAMETERS = ("endpoint_url", "file_root", "profile", "region", "remote")


@dataclass(frozen=True, slots=True)
class DvcAddress:
    """`repository`: the location of its files, for another source; `is_folder`: of this machine; `path`: in it; `s3`:
    the parameters of its remote."""

    repository: str = field(repr=False)
    display: str
    path: str
    is_folder: bool
    remote: str | None = None
    file_root: str | None = None
    s3: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, uri: str) -> DvcAddress:
        """Parse a location. Raises `Permanent` (`bad_source`), which quotes no parameter."""
        place, _, path = uri.partition("#")
        location, _, query = place.partition("?")
        scheme, separator, rest = location.partition("://")
        opened = _REPOSITORIES.get(scheme.lower())
        if opened is None or not separator or not rest:
            raise _refuse("expected dvc+https://host/org/repo@revision#path, found no repository")
        path = path.strip("/")
        if not path:
            raise _refuse("expected an output of DVC after `#`, as #models/llama, found none")
        try:
            check_path(path)
        except InvalidManifest as error:
            raise _refuse(f"expected a path in the repository after `#`: {error.message}") from error
        given = parse_parameters(query, _PARAMETERS, {}, _refuse)
        if "file_root" in given and not given["file_root"].startswith("/"):
            raise _refuse("file_root: expected an absolute path")
        is_folder = opened == "file"
        repository = f"{opened}://{rest}"
        shown = f"dvc+{display_url(f'{scheme[4:]}://{rest}')}#{path}"
        s3 = tuple((name, given[name]) for name in ("endpoint_url", "region", "profile") if name in given)
        return cls(repository, shown, path, is_folder, given.get("remote"), given.get("file_root"), s3)


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"DVC location: {message}",
        "write it as dvc+https://host/org/repo@revision#models/llama, with ?remote=name before the `#` where it is not "
        "the default one",
    )
