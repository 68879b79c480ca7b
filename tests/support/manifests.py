"""Where the manifests are, and what each kustomization makes."""

from __future__ import annotations

from pathlib import Path

from tests.support.kustomize import Json, render

REPOSITORY = Path(__file__).parents[2]
MANIFESTS = REPOSITORY / "manifests"
OVERLAYS = ("base", "overlays/laptop", "overlays/gpu", "overlays/policy", "overlays/csi")
EXAMPLES = tuple(f"examples/{folder.name}" for folder in sorted((MANIFESTS / "examples").iterdir()))
EVERYTHING = OVERLAYS + EXAMPLES


def objects(kustomization: str) -> list[Json]:
    """The objects of one kustomization under manifests/."""
    return render(MANIFESTS / kustomization)


def one(found: list[Json], kind: str, name: str) -> Json:
    """The one object of this kind and name."""
    (only,) = [o for o in found if o["kind"] == kind and o["metadata"]["name"] == name]
    return only
