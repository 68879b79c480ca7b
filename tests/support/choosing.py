"""What a version gets of a source, as the daemon takes it: the listing first, then the catalog's filters.

Law: calls the product's own two steps and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from cached.core import filters
from cached.core.listing import RemoteFile
from cached.sources.base import Source


async def chosen(source: Source, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, RemoteFile]:
    """The files by path that a version with these filters has; raises `HoldfastError`."""
    files = filters.choose_files(await source.resolve(), source.display, include, exclude)
    return {file.path: file for file in files}
