"""`http://` and `https://`: a folder with a manifest, one file, or a folder with a directory index.

Law: resolves and locates; transfers no bulk bytes. Credentials in the URI become a header for its own origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import quote, unquote, urlsplit

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import CHAINS_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES, PUBLISHING_NAME
from cached.contract.program.thread_pool import start_pool
from cached.core.listing import Listing, RemoteFile, Unlisted, WeakValidators, bad_name, is_reserved
from cached.sources.base import identity_of, stretched
from cached.sources.http.index import IndexEntry, path_of, read_index
from cached.sources.manifests import read_manifest, unfinished_publish
from cached.transport.client import Head, HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.credentials import basic
from cached.transport.pages import SIGN_IN, page_in
from cached.transport.response import no_end, parse_http_date, sent_at, strong_etag
from cached.transport.target import HttpTarget
from cached.transport.urls import Address, display_url, origin_of

_MAX_INDEX_BYTES = 16 * 1024 * 1024
_MAX_DEPTH = 16
_NOT_MODIFIED = 304
_NEW_S = 2.0
_MAX_FOLDERS = 1_000
_MAX_FILES = 10_000
_HEADS_AT_ONCE = 8
# The Hub's web site: it lists no folders, and only these paths lead to a file.
_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_GIT_HOSTS = frozenset({"github.com", "www.github.com", "gitlab.com", "codeberg.org", "bitbucket.org"})
_MODELSCOPE_HOSTS = frozenset({"modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai"})
_HUB_FILE = "resolve"
_HUB_PAGES = frozenset({"tree", "blob"})
# Answers for a missing object: S3-like servers answer 403 without the right to list.
_ABSENT = frozenset({"not_found", "gone", "forbidden"})


class WebSource:
    """One version at a web server. Blocking requests run in threads; the caller closes `client`."""

    kind = "http"

    def __init__(self, uri: str, client: HttpClient, chosen_by: str | None = None) -> None:
        """`chosen_by`: the URL of the service that named `uri`, as for `Opener`. Raises `Permanent` (`bad_url`)."""
        address = Address.parse(uri)
        self.display = display_url(address.url)
        if "#" in uri:  # a server receives no fragment: sources that differ in it only would be the same bytes twice
            raise Permanent(
                "bad_url",
                f"{self.display}: expected no `#` in the address, found one: what follows it is never sent to a server",
                "write %23 where the `#` belongs to a name; put what selects a version into the path or the query",
            )
        if address.origin.host in _HUB_HOSTS:
            _check_hub_path(address, self.display)
        _check_repository_page(address, self.display)
        self._client = client
        self._chosen_by = chosen_by
        credentials = client.credentials(uri)
        self._identity = identity_of(self.kind, address.url, stretched(credentials) if credentials else "")
        self._origin = address.origin
        self._root = f"{address.origin.scheme}://{address.origin.netloc}/"
        self._headers = (("Authorization", basic(*address.userinfo)),) if address.userinfo else ()
        self._place, _, query = address.url.partition("?")
        self._query = f"?{query}" if query else ""

    async def resolve(self) -> Listing:
        """List the version. Raises as `Source.resolve` says."""
        return await call_in_thread(self._resolve)

    async def find(self, paths: Sequence[str]) -> Listing:
        """Describe named files below the location by HEAD. Raises as `Describing.find` says."""
        folder = self._folder
        listed = []
        for path in paths:
            problem = bad_name(self.display, path)
            key = "" if problem is not None else folder + quote(path)
            listed.append(RemoteFile(path, key, None, problem=problem))
        files = await call_in_thread(lambda cancellation: self._with_heads(listed, cancellation))
        return Listing(tuple(files), self._identity)

    async def is_current(self, tag: str) -> bool:
        """Return whether `holdfast.json` still has the ETag `tag`."""
        target = self._target(self._folder + MANIFEST_NAME)
        conditional = replace(target, headers=(*target.headers, ("If-None-Match", tag)))
        fetch = partial(self._client.fetch_any_status, conditional, MAX_MANIFEST_BYTES)
        return (await call_in_thread(fetch)).status == _NOT_MODIFIED

    async def locate(self, file: RemoteFile) -> HttpTarget:
        """Return the URL of `file`, with its listed strong or weak validators."""
        return self.address_of(file)

    def address_of(self, file: RemoteFile) -> HttpTarget:
        """Return what `locate` returns."""
        target = self._target(file.key)
        if file.sha256 is not None:
            return replace(target, stored_bytes=file.size)
        return replace(target, if_match=file.validator or None, weak_validators=file.weak_validators)

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    @property
    def _folder(self) -> str:
        return self._place if self._place.endswith("/") else self._place + "/"

    def _target(self, url: str) -> HttpTarget:
        # An index may have been redirected to another origin, which must not get the URI's query and credentials.
        if not url.startswith(self._root) and Address.parse(url).origin != self._origin:
            return HttpTarget(url, chosen_by=self._chosen_by)
        return HttpTarget(url + self._query, self._headers, chosen_by=self._chosen_by)

    def _resolve(self, cancellation: Cancellation) -> Listing:
        folder = self._folder
        try:
            return self._from_manifest(folder, cancellation)
        except Permanent as error:
            if error.code not in _ABSENT:
                raise
            absent = error
        listing = self._from_file(cancellation)
        if listing is not None:
            return listing
        index = self._crawl(folder, cancellation)
        if index.files or index.unlisted:
            listing = self._listing(index, cancellation)
            self._refuse_unfinished(folder, cancellation)
            return listing
        if absent.code == "forbidden":
            raise absent
        expected = f"expected {MANIFEST_NAME} there, a file, or a folder that the server lists"
        remedy = "publish the version there with `holdfast publish`, or check the address for typing errors"
        if index.page is None:
            raise Permanent("not_found", f"{self.display}: {expected}; found none", remedy)
        found = f"found a web page that lists no folder, at {index.page}"
        raise Permanent("not_found", f"{self.display}: {expected}; {found}", f"{remedy}; perhaps {SIGN_IN}")

    def _from_manifest(self, folder: str, cancellation: Cancellation) -> Listing:
        response = self._client.fetch(self._target(folder + MANIFEST_NAME), MAX_MANIFEST_BYTES, cancellation)
        asked, answered = display_url(folder + MANIFEST_NAME), display_url(response.url)
        where = asked if answered == asked else f"{asked}, redirected to {answered}"
        manifest = read_manifest(response.body, where)
        files = tuple(
            RemoteFile(entry.path, folder + quote(entry.path), entry.size, entry.sha256, entry.sha256)
            for entry in manifest.files
        )
        chains = RemoteFile(CHAINS_NAME, folder + CHAINS_NAME, None)
        return Listing(files, self._identity, manifest, tag=_lasting_etag(response), chains=chains)

    def _refuse_unfinished(self, folder: str, cancellation: Cancellation) -> None:
        """Raise `Transient` (`publishing`) where an index without a manifest was one of a publish. Asked after the
        index, and the mark first: a publish that was under way then has its mark there still, or its manifest."""
        for name in (PUBLISHING_NAME, MANIFEST_NAME):
            try:
                found = self._client.fetch(self._target(folder + name), MAX_MANIFEST_BYTES, cancellation)
            except Permanent as error:
                if error.code not in _ABSENT:
                    raise
            else:
                if page_in(found.body) is None:  # some servers have a page for every path
                    raise unfinished_publish(display_url(folder + name))

    def _from_file(self, cancellation: Cancellation) -> Listing | None:
        if self._place.endswith("/"):
            return None
        try:
            head = self._client.head(self._target(self._place), cancellation)
        except Permanent as error:
            if error.code not in _ABSENT:
                raise
            return None
        if urlsplit(head.url).path.endswith("/"):
            return None  # a server redirects a folder to its index
        name, problem = path_of(urlsplit(self._place).path.rpartition("/")[2], self.display)
        return Listing((replace(_file(name, self._place, head), problem=problem),), self._identity)

    def _listing(self, found: _Index, cancellation: Cancellation) -> Listing:
        """Return the files of an index with their sizes and validators."""
        files = self._with_heads(list(found.files.values()), cancellation)
        by_path = tuple(sorted(files, key=lambda file: file.path))
        return Listing(by_path, self._identity, unlisted=tuple(found.unlisted))

    def _with_heads(self, files: Sequence[RemoteFile], cancellation: Cancellation) -> list[RemoteFile]:
        pool = start_pool(min(_HEADS_AT_ONCE, max(1, len(files))), "web-head")
        try:
            return list(pool.map(lambda listed: self._with_head(listed, cancellation), files))
        finally:
            pool.shutdown(cancel_futures=True)

    def _with_head(self, listed: RemoteFile, cancellation: Cancellation) -> RemoteFile:
        """Return a listed file with its metadata from HEAD, or with the error that concerns this file only."""
        if listed.problem is not None:
            return listed
        try:
            head = self._client.head(self._target(listed.key), cancellation)
        except HoldfastError as error:
            if not _is_of_one_file(error):
                raise
            return replace(listed, problem=error)
        return _file(listed.path, listed.key, head)

    def _crawl(self, folder: str, cancellation: Cancellation) -> _Index:
        """Return the entries of the index of `folder`, and of the folders below it."""
        found, folders, waiting = _Index(), {"": folder}, [""]
        while waiting:
            prefix = waiting.pop()
            for entry in self._read_folder(folders[prefix], prefix, found, cancellation):
                path = prefix + entry.path
                if is_reserved(path):
                    continue
                problem = entry.problem or bad_name(display_url(folders[prefix]), path)
                if not entry.is_folder:
                    found.files[path, entry.url] = RemoteFile(path, entry.url, None, problem=problem)
                elif problem is not None:
                    found.unlisted.append(Unlisted(f"{path}/", problem))
                elif f"{path}/" not in folders:
                    folders[f"{path}/"] = entry.url
                    waiting.append(f"{path}/")
            if len(found.files) > _MAX_FILES or len(folders) > _MAX_FOLDERS or prefix.count("/") > _MAX_DEPTH:
                raise Permanent(
                    "too_large",
                    f"{self.display}: expected at most {_MAX_FILES} files in {_MAX_FOLDERS} folders, "
                    f"{_MAX_DEPTH} deep, found more at {prefix or '/'}",
                    "name the version's own folder, or publish it with `holdfast publish`",
                )
        return found

    def _read_folder(self, url: str, prefix: str, found: _Index, cancellation: Cancellation) -> list[IndexEntry]:
        """Return the entries of one folder; record in `found` an error of a folder below the version's own."""
        try:
            page = self._client.fetch(self._target(url), _MAX_INDEX_BYTES, cancellation)
        except HoldfastError as error:
            if not prefix and error.code in _ABSENT:
                return []
            if not prefix or not _is_of_one_file(error):
                raise
            found.unlisted.append(Unlisted(prefix, error))
            return []
        entries = read_index(page.body, page.headers.get_content_type(), page.url.partition("?")[0])
        if entries is not None and page.ends_by_close:
            raise no_end(display_url(page.url))
        if entries is None and not prefix and page_in(page.body) is not None:
            found.page = display_url(page.url)
        if entries is None and prefix:
            problem = f"{display_url(page.url)}: expected a directory index, found another page"
            remedy = "publish the version with `holdfast publish`, which writes a manifest, or leave the folder out"
            found.unlisted.append(Unlisted(prefix, Permanent("bad_listing", problem, remedy)))
        return entries or []


@dataclass(slots=True)
class _Index:
    """The result of a crawl: files by path and URL, and folders that could not be listed. `page`: the address of a web
    page in place of the first index."""

    files: dict[tuple[str, str], RemoteFile] = field(default_factory=dict)
    unlisted: list[Unlisted] = field(default_factory=list)
    page: str | None = None


def _check_hub_path(address: Address, display: str) -> None:
    """Raise `Permanent` (`bad_url`) for the address of a web page of the Hub, as a browser shows it."""
    names = [name for name in address.resource.partition("?")[0].split("/") if name]
    if _HUB_FILE in names[1:]:
        return
    at = next((index for index, name in enumerate(names) if name in _HUB_PAGES and index), len(names))
    repo, rest = "/".join(names[:at]), names[at + 1 :]
    if names[at : at + 1] == ["blob"]:
        remedy = f"write `{address.origin.scheme}://{address.origin.netloc}/{repo}/{_HUB_FILE}/{'/'.join(rest)}`"
    else:
        remedy = f"write `hf://{repo or 'org/name'}{'@' if rest else ''}{'/'.join(rest)}`"
    problem = f"{display}: expected a folder or a file at a web server, found the address of a web page of the Hub"
    raise Permanent("bad_url", problem, remedy)


def _check_repository_page(address: Address, display: str) -> None:
    """Raise `Permanent` (`bad_url`) for the web page of a repository at a host of Git, or of a model on ModelScope."""
    names, host = [name for name in address.resource.partition("?")[0].split("/") if name], address.origin.host
    if host in _MODELSCOPE_HOSTS and names[:1] == ["models"] and _HUB_FILE not in names:
        right = f"ms://{'/'.join(names[1:3]) or 'org/name'}"
    elif host in _GIT_HOSTS and (len(names) == 2 or names[2:3] in (["tree"], ["blob"])):
        repository, revision, rest = "/".join(names[:2]), names[3:4], unquote("/".join(names[4:]))
        right = f"git+https://{host}/{repository}" + (f"@{revision[0]}" if revision else "") + (rest and f"#{rest}")
    else:
        return
    problem = f"{display}: expected a folder or a file at a web server, found the web page of a repository"
    raise Permanent("bad_url", problem, f"write `{right}`")


def _is_of_one_file(error: HoldfastError) -> bool:
    """Return whether an error concerns one address and not the whole server. 503 and 429 ask for a pause, and a broken
    connection may break for every file: then the listing is retried."""
    return error.permanent or (error.code.startswith("http_5") and error.code != "http_503")


def _lasting_etag(response: Response) -> str | None:
    """Return the strong ETag of a response. None for a file of the last seconds: nginx makes the ETag of the mtime in
    seconds and the size, so that the next file may have it too."""
    modified, date = response.headers.get("Last-Modified"), response.headers.get("Date")
    since = parse_http_date(modified or "")
    is_new = modified is not None and (since is None or sent_at(date) - since < _NEW_S)
    return None if is_new else strong_etag(response.headers)


def _file(path: str, url: str, head: Head) -> RemoteFile:
    if head.etag is not None:
        return RemoteFile(path, url, head.size, head.etag)
    return RemoteFile(
        path, url, head.size, weak_validators=WeakValidators(head.weak_etag, head.last_modified, origin_of(head.url))
    )
