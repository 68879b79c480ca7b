"""Files that are no part of a model: of version control, downloads, editors, desktops, locks.

Law: pure, by name. The same files stay out of what is fetched and of what is published, so that one folder has one
digest, however it came about.
"""

from __future__ import annotations

import re
from fnmatch import translate

_FOLDERS = frozenset(
    {
        *(".git", ".hg", ".svn", ".bzr", ".jj", ".dvc"),
        *(".cache", ".huggingface", "._____temp", ".ipynb_checkpoints", "__pycache__"),
        *(".idea", ".vscode", ".vs", ".pytest_cache", ".mypy_cache", ".ruff_cache"),
        *("__macosx", ".appledouble", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems", "@eadir"),
        *("$recycle.bin", "system volume information"),
    }
)
_FILES = (
    # `.git` is a file in a worktree or submodule. The lists of tracked and large files are no content of a model.
    *(".git", ".gitattributes", ".gitignore", ".gitmodules", ".gitkeep", ".lfsconfig", ".hgignore", ".dvcignore"),
    *(".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", ".localized", ".apdisk"),
    *(".msc", ".mdl", ".mv"),  # what ModelScope's client leaves beside a download
    *("._*", ".nfs????????*", ".fuse_hidden*", ".trash-*"),
    *("*~", ".*.sw?", ".sw?", "#*#", ".#*", "4913", "*.pyc"),  # Emacs and Vim: backups, swap files, locks
    *(".lock", "*.*.lock", "*.lck", ".~lock.*#", "~$*"),  # not `poetry.lock`, which is a list of versions
    *("*.incomplete", "*.crdownload", "*.*.part", "*.aria2"),  # downloads that broke off
)
_LOST_AND_FOUND = "lost+found/"  # by fsck, at the top of an ext file system
_CLUTTER = re.compile("|".join(translate(pattern) for pattern in _FILES))


def is_clutter(path: str) -> bool:
    """Return whether this is a file of version control, a download, an editor, a desktop, a lock or `fsck`."""
    *folders, name = path.casefold().split("/")
    return (
        _CLUTTER.match(name) is not None
        or path.startswith(_LOST_AND_FOUND)
        or any(folder in _FOLDERS or folder.startswith(".trash-") for folder in folders)
    )


def root_of_clutter(path: str) -> str:
    """Return the topmost folder that is clutter, or the file."""
    parts = path.split("/")
    folders = ("/".join(parts[:end]) for end in range(1, len(parts)))
    return next((folder for folder in folders if is_clutter(f"{folder}/x")), path)
