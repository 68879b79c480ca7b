"""A commit of a Git repository: files of Git itself by their ids, files in Git LFS by their sha256.

Law: resolves a moving revision once, and from then on names objects by their ids only. A listing is the commit, its
folders and the small files, in one answer and in memory; nothing is cloned. The bytes of a file in Git LFS go through
the product's own transport; those of another one come as a pack, and are compared with their id on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cached.contract.errors import HoldfastError, InvalidManifest, Permanent, Transient
from cached.contract.manifest import CHAINS_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES
from cached.core.listing import Listing, RemoteFile, is_reserved
from cached.sources.base import identity_of
from cached.sources.git.address import GitAddress
from cached.sources.git.blobs import GitBlobStream
from cached.sources.git.joined import JoinedRequests
from cached.sources.git.lfs import LfsServer, Wanted, endpoint_in, endpoint_of
from cached.sources.git.objects import CommitTree, TreeFile, find_path, list_tree, peel, tree_of
from cached.sources.git.pack import BLOB, TREE, Objects
from cached.sources.git.pointers import Pointer, is_pointer, read_pointer
from cached.sources.git.remote import Remote
from cached.sources.git.revisions import find_commit, is_id
from cached.sources.manifests import list_mirrored, read_manifest
from cached.sources.streams import BytesStream
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import ByteStream, HttpTarget, StreamTarget, Target
from cached.transport.urls import Address

_SMALL_BYTES = 4096  # exclusive: such files come with the listing, pointers among them
_MAX_CONFIG_BYTES = 64 * 1024
_LFS_CONFIG = ".lfsconfig"
_IN_GIT, _IN_LFS = "git", "lfs"


@dataclass(frozen=True, slots=True)
class _Commit:
    """A commit in memory: its id, the id of its tree, its folders and small files, and the LFS server that it names
    (empty: the repository's own)."""

    id: str
    tree: str
    objects: Objects
    lfs: str


class GitSource:
    """A `Source` over a commit, or a folder or file of it. The caller closes `client`."""

    kind = "git"

    def __init__(self, uri: str, client: HttpClient) -> None:
        """Raises `Permanent` (`bad_source`)."""
        self._address = GitAddress.parse(uri)
        self._client = client
        self._remote = Remote(self._address, client)
        self._joined = JoinedRequests(self._ask_lfs)
        self._small: dict[str, bytes] = {}  # the small files of the last listing, by id

    @property
    def display(self) -> str:
        return self._address.display

    async def resolve(self) -> Listing:
        """Resolve the revision to a commit and list its files. Raises as `Source.resolve` says."""
        return await call_in_thread(self._resolve)

    async def is_current(self, tag: str) -> bool:
        """Return whether the revision still is the commit `tag`."""
        if is_id(self._address.revision):
            return self._address.revision.lower() == tag
        return await call_in_thread(
            lambda cancellation: find_commit(self._remote, self._address.revision, cancellation) == tag
        )

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address of a file in Git LFS, or a stream of one in Git."""
        kind, place, path = (*file.key.split(" ", 2), "", "")[:3]
        if kind == _IN_LFS and file.sha256 is not None and file.size is not None:
            if file.size == 0:
                return StreamTarget(lambda _cancellation: BytesStream())  # HTTP has no range of no bytes
            return await self._joined.locate(place, Wanted(file.sha256, file.size, path))
        if kind != _IN_GIT:
            raise Permanent("not_found", f"{self.display}: {file.path}: listed by another source", "list it again")
        if place in self._small:
            data = self._small[place]
            return StreamTarget(lambda _cancellation: BytesStream(data))
        return StreamTarget(lambda cancellation: self._open(place, file.size, cancellation))

    async def aclose(self) -> None:
        """Forget the small files."""
        self._small = {}

    def _open(self, oid: str, size: int | None, cancellation: Cancellation) -> ByteStream:
        """Return the bytes of a file in Git: its own pack, or out of the commit where the host gives no single file."""
        if self._remote.version(cancellation).gives_any:
            return GitBlobStream(self._remote, oid, size, cancellation)
        data = self._fetch_commit(cancellation).objects.find(oid, BLOB)
        if data is None:
            problem = f"{self.display}: the file {oid[:12]} was listed, and is not in the commit any more"
            raise Transient("source_changed", problem, "the revision is resolved again")
        return BytesStream(data)

    async def _ask_lfs(self, endpoint: str, wanted: Sequence[Wanted]) -> list[HttpTarget | HoldfastError]:
        return await call_in_thread(lambda cancellation: self._lfs(endpoint, cancellation).locate(wanted, cancellation))

    def _lfs(self, endpoint: str, cancellation: Cancellation) -> LfsServer:
        """Return the LFS server at `endpoint`, of the repository itself where that is empty."""
        repository = self._remote.url(cancellation)
        server = endpoint or endpoint_of(repository)
        is_own = Address.parse(server).origin == self._address.origin
        userinfo = self._address.userinfo if is_own else None
        return LfsServer(server, self.display, self._client, userinfo, None if is_own else self._address.url)

    def _resolve(self, cancellation: Cancellation) -> Listing:
        commit = self._fetch_commit(cancellation)
        tree = self._tree(commit)
        self._small = {}
        wanted = [file for file in tree.files if not is_reserved(file.path)]
        larger = {file.oid for file in wanted if file.problem is None and file.oid not in commit.objects.by_id}
        sizes = self._remote.sizes(sorted(larger), cancellation)
        files = tuple(sorted((self._file(commit, file, sizes) for file in wanted), key=lambda file: file.path))
        listing = Listing(files, self._identity(), revision=commit.id, unlisted=tree.unlisted, tag=commit.id)
        own = next((file for file in files if file.path == MANIFEST_NAME), None)
        if own is not None:
            return self._mirrored(own, replace(listing, chains=self._find_chains(commit)), cancellation)
        if not files and not tree.unlisted:
            raise Permanent("not_found", f"{self.display}: expected files, found none", "name another folder or commit")
        return listing

    def _find_chains(self, commit: _Commit) -> RemoteFile | None:
        """Return the chaining values of a version that `publish` wrote, None if they are not there: no tree is listed
        below `.holdfast/`."""
        path = "/".join(filter(None, (self._address.path, CHAINS_NAME)))
        found = find_path(commit.objects, commit.tree, path, self.display)
        if found is None or found[0] != BLOB:
            return None
        return self._file(commit, TreeFile(CHAINS_NAME, found[1]), {})

    def _identity(self) -> str:
        return identity_of(self.kind, self._address.url.removesuffix(".git"))

    def _fetch_commit(self, cancellation: Cancellation) -> _Commit:
        remote, where = self._remote, self.display
        wanted = find_commit(remote, self._address.revision, cancellation)
        options = ["deepen 1"]
        if remote.version(cancellation).filters:
            options.append(f"filter blob:limit={_SMALL_BYTES}")
        objects = remote.objects([wanted], options, cancellation)
        oid, data = peel(objects, wanted, where)
        tree = tree_of(data, where)
        config = find_path(objects, tree, _LFS_CONFIG, where)
        if config is None or config[0] != BLOB:
            return _Commit(oid, tree, objects, "")
        known = objects.find(config[1], BLOB)
        text = self._read(config[1], _MAX_CONFIG_BYTES, cancellation) if known is None else known
        return _Commit(oid, tree, objects, self._lfs_server(text))

    def _lfs_server(self, config: bytes) -> str:
        """Return the LFS server that a `.lfsconfig` names. Raises `Permanent` (`bad_source`)."""
        found = endpoint_in(config)
        if found is None:
            return ""
        where = f"{self.display}: {_LFS_CONFIG}"
        try:
            address = Address.parse(found)
        except Permanent as error:
            problem = f"{where}: expected lfs.url as an http(s) address, found something else"
            raise Permanent("bad_source", problem, "correct lfs.url and commit it") from error
        if " " in found or (address.origin.scheme == "http" and self._address.origin.scheme == "https"):
            problem = f"{where}: expected lfs.url over TLS, as the repository is"
            raise Permanent("insecure_redirect", problem, "use an LFS server that keeps to https")
        return address.url  # without user information: a repository chooses no credentials

    def _tree(self, commit: _Commit) -> CommitTree:
        found = find_path(commit.objects, commit.tree, self._address.path, self.display)
        if found is None:
            remedy = "correct what follows `#`: a folder or a regular file of the repository"
            raise Permanent("not_found", f"{self.display}: there is none in the commit {commit.id[:12]}", remedy)
        if found[0] == TREE:
            return list_tree(commit.objects, found[1], self.display)
        return CommitTree((TreeFile(self._address.path.rpartition("/")[2], found[1]),))

    def _file(self, commit: _Commit, file: TreeFile, sizes: Mapping[str, int]) -> RemoteFile:
        """Return a file of the tree with what is known of it: all of a small one; of another one the size, where the
        server tells `sizes`."""
        key = f"{_IN_GIT} {file.oid} {file.path}"
        data = commit.objects.find(file.oid, BLOB)
        if file.problem is not None:
            return RemoteFile(file.path, key, None, problem=file.problem)
        if data is None:
            return RemoteFile(file.path, key, sizes.get(file.oid), validator=file.oid, git_oid=file.oid)
        if not is_pointer(data):
            self._small[file.oid] = data  # a larger one too, where it came with the others
            return RemoteFile(file.path, key, len(data), validator=file.oid, git_oid=file.oid)
        key = f"{_IN_LFS} {commit.lfs} {file.path}"
        pointer = read_pointer(data, f"{self.display}: {file.path}")
        if not isinstance(pointer, Pointer):
            return RemoteFile(file.path, key, None, problem=pointer)
        return RemoteFile(file.path, key, pointer.size, validator=pointer.oid, sha256=pointer.oid)

    def _read(self, oid: str, limit_bytes: int, cancellation: Cancellation) -> bytes:
        """Return the bytes of a file in Git. Raises `Permanent` (`too_large`)."""
        data = bytearray(limit_bytes + 1)
        stream = GitBlobStream(self._remote, oid, None, cancellation)
        try:
            size = stream.readinto(memoryview(data))
        finally:
            stream.close()
        if size > limit_bytes:
            problem = f"{self.display}: expected a file of at most {limit_bytes} bytes, found more ({oid[:12]})"
            raise Permanent("too_large", problem, "make the file smaller")
        return bytes(data[:size])

    def _mirrored(self, own: RemoteFile, listing: Listing, cancellation: Cancellation) -> Listing:
        """Return the listing that a `holdfast.json` among the files decides."""
        where = f"{self.display}: {MANIFEST_NAME}"
        if own.problem is not None:
            raise own.problem
        if own.git_oid is None:
            raise InvalidManifest(f"{where}: expected it in Git itself, found it in Git LFS", "keep it out of Git LFS")
        known = self._small.get(own.git_oid)
        data = self._read(own.git_oid, MAX_MANIFEST_BYTES, cancellation) if known is None else known
        return list_mirrored(listing, read_manifest(data, where), where)
