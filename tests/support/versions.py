"""Model folders as versions in a public folder, each with its manifest and record: what a server may swap to."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from tests.support.snapshots import link_model, make_snapshot


def add_snapshot(public: PublicLayout, folder: Path) -> Digest:
    """A snapshot of a folder's files, that nothing names yet; returns its manifest digest."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return make_snapshot(public, files)


def add_version(public: PublicLayout, reference: str, folder: Path) -> Digest:
    """A snapshot of a folder that `reference` names; one that it named before stays."""
    digest = add_snapshot(public, folder)
    link_model(public, ModelRef.parse(reference), digest)
    return digest


def with_other_weights(folder: Path, directory: Path) -> Path:
    """A copy of a model's folder that says other things: each tensor turned upside down, all in one file."""
    shutil.copytree(folder, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    save_file({name: tensor.flip(0).contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory
