"""Read a folder as a version: its files, its golden predictions, their sha256, the manifest.

Law: reads only. The files are those that a source without a manifest would have: one folder has one digest, however it
is brought to a node. Files that stay out are listed; files that cannot be published are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cached.contract.errors import Permanent
from cached.contract.golden import GOLDEN_NAME
from cached.contract.loadable.findings import Finding
from cached.contract.manifest import MANIFEST_NAME, RESERVED, FileEntry, Manifest
from cached.contract.program.units import format_size
from cached.contract.snapshot.verify import feed_file, hash_file
from cached.core.filters import Rules, select_files
from cached.core.listing import Listing, RemoteFile, check_names
from cached.core.selection.clutter import is_clutter, root_of_clutter
from cached.core.selection.copies import summarize
from cached.core.selection.indexes import read_indexes
from cached.core.selection.needed_files import find_losses
from cached.peers import chaining
from cached.peers.chain_file import encode_chains
from cached.peers.chaining import ChainHasher
from cached.peers.pieces import PIECE_BYTES
from cached.publish.destination import Progress, Upload
from cached.publish.usable import check_golden, find_unusable, reader
from cached.sources.local.tree import FolderTree, PlainFile, file_error, find_file, walk


@dataclass(frozen=True, slots=True)
class FolderContent:
    """A folder's manifest, and the path of each of its files. `chains`: the file of their chaining values, None where
    they have none, or where this platform cannot find them out."""

    manifest: Manifest
    uploads: tuple[Upload, ...]
    chains: bytes | None = None

    @property
    def lacks_chains(self) -> bool:
        """Whether there are chaining values that this platform could not find out."""
        return self.chains is None and not chaining.is_available() and any(map(_has_states, self.manifest.files))


@dataclass(frozen=True, slots=True)
class UnpublishedFiles:
    """Files of the folder that are not published: the topmost name of each, or what they are in words, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class FolderListing:
    """The files of a folder to publish, those that stay out, and what is wrong with the version."""

    files: tuple[PlainFile, ...]
    left_out: tuple[UnpublishedFiles, ...]
    findings: tuple[Finding, ...]


def list_folder(base: Path, rules: Rules | None, golden: Path | None) -> FolderListing:
    """Return the files of a folder to publish, as a source without a manifest would choose them by `rules`; None keeps
    all of them. `golden`, if given, takes the place of the folder's own golden predictions. Raises `HoldfastError` for
    an empty folder, files that cannot be published, and golden predictions that cannot be replayed."""
    tree = walk(base)
    own = [file for file in tree.files if file.path != MANIFEST_NAME]
    if not own and not tree.odd and not tree.unlisted:
        raise Permanent("empty", f"{base}: expected files to publish, found none", "name the model's folder")
    records = [
        UnpublishedFiles(name, "a record of Holdfast's own")
        for name in (MANIFEST_NAME, RESERVED)
        if (base / name).exists()
    ]
    found = _all_files(base, tree, own) if rules is None else _select(base, tree, own, rules)
    files = found.files
    if golden is not None:
        others = (file for file in files if file.path != GOLDEN_NAME)
        files = tuple(sorted((*others, _named_golden(golden)), key=lambda file: file.path))
    for file in files:
        if file.path == GOLDEN_NAME:
            check_golden(file)
    return FolderListing(files, (*records, *found.left_out), (*found.findings, *find_unusable(files)))


def _all_files(base: Path, tree: FolderTree, own: Sequence[PlainFile]) -> FolderListing:
    for problem in (*(tree.odd[path] for path in sorted(tree.odd)), *(each.problem for each in tree.unlisted)):
        raise problem
    check_names(str(base), (file.path for file in own))
    return FolderListing(tuple(own), (), ())


def _select(base: Path, tree: FolderTree, own: Sequence[PlainFile], rules: Rules) -> FolderListing:
    by_path = {file.path: file for file in own}
    remote = [RemoteFile(file.path, str(file.real), file.size, file.validator) for file in own]
    remote += [RemoteFile(path, "", None, problem=problem) for path, problem in sorted(tree.odd.items())]
    listing = Listing(tuple(remote), "", unlisted=tuple(tree.unlisted))
    indexes = read_indexes(rules.preset, {file.path: file.size for file in own}, reader(by_path))
    try:
        selection = select_files(listing, str(base), rules, indexes)
    except Permanent as error:
        if error.code != "nothing_selected" or rules.preset.engine not in ("default", "all"):
            raise
        raise Permanent(
            error.code, error.message, "correct --include and --exclude, or name the model's folder"
        ) from error
    entries = [*(file.path for file in remote), *(f"{folder.path}x" for folder in tree.unlisted)]
    clutter = sorted({root_of_clutter(path) for path in entries if is_clutter(path)})
    left_out = [UnpublishedFiles(name, "no part of a model") for name in clutter]
    sizes = {file.path: file.size for file in own}
    for kind, (count, size, first) in summarize(selection.left_out, sizes).items():
        more = f" and {count - 1} more" if count > 1 else ""
        left_out.append(UnpublishedFiles(f"{first}{more}, {format_size(size)}", f"{kind}: --for all publishes it too"))
    if selection.dropped:
        more = f" and {len(selection.dropped) - 1} more" if len(selection.dropped) > 1 else ""
        left_out.append(UnpublishedFiles(f"{selection.dropped[0]}{more}", "not chosen by --include and --exclude"))
    files = tuple(by_path[file.path] for file in selection.files)
    return FolderListing(files, tuple(left_out), find_losses(selection.dropped, {file.path for file in files}))


def _named_golden(path: Path) -> PlainFile:
    return replace(find_file(path), path=GOLDEN_NAME)


def hash_all(files: Sequence[PlainFile], threads: int, progress: Progress) -> FolderContent:
    """Hash the files with `threads` threads, largest first, and return the manifest; raises `HoldfastError`."""
    states: dict[str, bytes] = {}

    def hash_one(file: PlainFile) -> Upload:
        try:
            if not _has_states(file) or not chaining.is_available():
                return Upload(FileEntry(file.path, hash_file(file.real, progress), file.size), file.real)
            hasher = ChainHasher()
            feed_file(file.real, hasher.update, progress)
        except OSError as error:
            raise file_error(error, file.real) from error
        sha256 = hasher.hexdigest()
        states[sha256] = hasher.states()
        return Upload(FileEntry(file.path, sha256, file.size), file.real)

    with ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool:
        largest_first = sorted(files, key=lambda file: file.size, reverse=True)
        try:
            uploads = list(pool.map(hash_one, largest_first))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return FolderContent(Manifest.build(upload.entry for upload in uploads), tuple(uploads), encode_chains(states))


def _has_states(file: PlainFile | FileEntry) -> bool:
    """Return whether a file has several pieces, and so states of sha256 between them."""
    return file.size > PIECE_BYTES
