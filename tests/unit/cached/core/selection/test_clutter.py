"""Clutter: what is no part of a model, at a source and in a folder that is published."""

from __future__ import annotations

import pytest

from cached.core.selection.clutter import is_clutter, root_of_clutter


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", "sub/.git/HEAD", ".git", ".hg/store", ".svn/entries", ".gitattributes", ".gitmodules"),
        *(".cache/huggingface/download/model.safetensors.metadata", ".huggingface/x.lock", "model.safetensors.lock"),
        *(".DS_Store", "a/.ds_store", "._config.json", "__MACOSX/._a", "Thumbs.db", "desktop.ini", "@eaDir/x"),
        *("config.json~", ".config.json.swp", "#config.json#", ".#config.json", ".idea/workspace.xml", ".vscode/x"),
        *("~$card.docx", ".~lock.card.odt#", "x/.lock", "__pycache__/modeling.cpython-311.pyc", "4913"),
        *(".ipynb_checkpoints/a.ipynb", "model.safetensors.incomplete", "model.gguf.part", ".nfs00000001234"),
        *("lost+found/#12", ".Trash-1000/files/a", "$RECYCLE.BIN/a"),
    ],
)
def test_clutter_is_known_by_its_name(path: str) -> None:
    """Files of version control, downloads, editors, desktops and locks are no part of a model."""
    assert is_clutter(path)


@pytest.mark.parametrize(
    "path",
    [
        *("config.json", "git/config", "cache/x", ".env", "poetry.lock", "a/lost+found/x", ".gitattributes.json"),
        *("modeling_x.py", "chat_template.jinja", "model.part1.bin", ".eval_results/a.json", "#readme", "swp"),
    ],
)
def test_what_only_resembles_clutter_stays(path: str) -> None:
    """A dot or a familiar ending alone leaves nothing out."""
    assert not is_clutter(path)


def test_clutter_is_named_by_its_topmost_folder() -> None:
    """Thousands of objects of one repository are one name."""
    assert root_of_clutter("sub/.git/objects/ab/cdef") == "sub/.git"
    assert root_of_clutter("a/config.json~") == "a/config.json~"
