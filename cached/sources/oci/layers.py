"""The files of archives laid over one another, as a container runtime unpacks the layers of an image.

Law: pure. A later layer replaces, and its whiteouts remove, what earlier ones have. Only regular files are content; a
link or a device is there with its problem, which is raised only where it is chosen. Format: OCI Image Specification,
"Image Layer Filesystem Changeset".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cached.contract.archive.tar import EntryKind, TarEntry
from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import format_path

MODELS = "models/"  # where KServe's modelcars have a model's files
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file in a layer: `digest` is the layer's, `start` the offset of its bytes there; `problem` as in a listing."""

    digest: str
    start: int
    size: int
    problem: HoldfastError | None = None


class FileTree:
    """The files of the layers so far, by path."""

    def __init__(self, where: str, *, has_whiteouts: bool) -> None:
        self._where = where
        self._has_whiteouts = has_whiteouts
        self._files: dict[str, PackedFile] = {}

    def add_layer(self, digest: str, entries: Iterable[TarEntry]) -> None:
        """Lay the entries of a layer over the files."""
        added: dict[str, PackedFile] = {}
        below = self._files if self._has_whiteouts else {}
        folders: set[str] = set()
        for entry in entries:
            folder, _, name = entry.path.rpartition("/")
            if self._has_whiteouts and name.startswith(_WHITEOUT):
                hidden = entry.path[: -len(name)] + name[len(_WHITEOUT) :]
                if any(part in ("", ".", "..") for part in hidden.split("/")):
                    raise self._bad_whiteout(entry)
                _remove(below, folder if name == _OPAQUE else hidden, itself=name != _OPAQUE)
            elif entry.kind is EntryKind.FOLDER:
                folders.add(entry.path)
                added.pop(entry.path, None)
            else:
                added[entry.path] = self._file(digest, entry, added)
        if not self._has_whiteouts:
            for path in added.keys() & self._files.keys():
                added[path] = self._twice(path, added[path])
        for path in folders:
            below.pop(path, None)
        new = {path for path in added if path not in below}
        for path in new:
            self._judge_parents(path, added, below)
        if new and below:
            for path in [path for path in below if _is_under(path, new)]:
                del below[path]
        self._files.update(added)

    def files(self) -> dict[str, PackedFile]:
        """Return the files of the model: those in `models/`, by their paths there, else all."""
        inside = {path[len(MODELS) :]: file for path, file in self._files.items() if path.startswith(MODELS)}
        return (inside or dict(self._files)) if self._has_whiteouts else dict(self._files)

    def _file(self, digest: str, entry: TarEntry, added: dict[str, PackedFile]) -> PackedFile:
        if entry.kind is EntryKind.FILE:
            return PackedFile(digest, entry.start, entry.size)
        if entry.kind is EntryKind.LINK:
            target = added.get(entry.target) or self._files.get(entry.target)
            return target or self._odd(digest, entry, "a hard link to nothing")
        if entry.kind is EntryKind.SPARSE:
            return self._odd(digest, entry, "a sparse file, whose holes the archive leaves out (tar --sparse)")
        return self._odd(digest, entry, "a link, a device or another special file")

    def _bad_whiteout(self, entry: TarEntry) -> Permanent:
        problem = f"{self._where}: {format_path(entry.path)}: expected a whiteout of a plain path"
        return Permanent("bad_artifact", problem, "push it again")

    def _odd(self, digest: str, entry: TarEntry, found: str) -> PackedFile:
        problem = f"{self._where}: {format_path(entry.path)}: expected a regular file, found {found}"
        remedy = "pack the file itself, or leave it out with `exclude` in the model's entry of the catalog"
        return PackedFile(digest, entry.start, entry.size, Permanent("not_a_file", problem, remedy))

    def _twice(self, path: str, file: PackedFile) -> PackedFile:
        problem = f"{self._where}: {format_path(path)}: expected each file in one layer, found it in two"
        return replace(file, problem=Permanent("bad_artifact", problem, "push it again with each file once"))

    def _judge_parents(self, path: str, added: dict[str, PackedFile], below: dict[str, PackedFile]) -> None:
        """Remove earlier files that are now the name of the path's folder. Of a file below a link, which an unpacker
        follows or replaces, no one can say where it is: note that as its problem."""
        parent = path
        while (cut := parent.rfind("/")) > 0:
            parent = parent[:cut]
            found = below.pop(parent, None) or added.get(parent)
            if found is not None and found.problem is not None:
                link = f"expected folders above it, found a link, {format_path(parent)}"
                problem = f"{self._where}: {format_path(path)}: {link}"
                remedy = "pack the folder itself, or leave it out with `exclude` in the model's entry of the catalog"
                added[path] = replace(added[path], problem=Permanent("not_a_file", problem, remedy))


def _is_under(path: str, files: set[str]) -> bool:
    while (cut := path.rfind("/")) > 0:
        path = path[:cut]
        if path in files:
            return True
    return False


def _remove(files: dict[str, PackedFile], path: str, *, itself: bool) -> None:
    if itself:
        files.pop(path, None)
    prefix = f"{path}/" if path else ""
    for each in [each for each in files if each.startswith(prefix)]:
        del files[each]
