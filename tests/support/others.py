"""Another user than the one who runs the tests.

Law: gives rights to look, and only on the way to a test's own folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes users, which only root may")


def let_others_in(folder: Path) -> None:
    """Open `folder` and its parents as far as they are ours: pytest keeps them for their owner."""
    for each in (folder, *folder.parents[:-1]):
        if each.stat().st_uid == os.geteuid():
            each.chmod(each.stat().st_mode | 0o055)
