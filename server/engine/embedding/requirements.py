"""The package versions that a model's authors require, in `config_sentence_transformers.json`.

Law: reads what is installed; a requirement that cannot be read is told and passed over, as the library does. Source:
sentence-transformers 6.2.0, `util/environment.py`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from cached.contract.errors import Permanent
from server.engine.embedding.documents import show

LIBRARY_VERSION = "6.2.0"  # of sentence-transformers, whose files are read as this version reads them
_LIBRARY = ("sentence-transformers", "sentence_transformers")
_LOG = logging.getLogger(__name__)


def check_requirements(path: Path, requirements: object) -> None:
    """Raise `Permanent` (`unmet_requirement`) where an installed package is not the one that the model requires."""
    if not requirements:
        return
    if not isinstance(requirements, dict):
        _LOG.warning("%s: requirements: expected an object, found %s: passed over", path, show(requirements))
        return
    for package, requirement in requirements.items():
        wanted = requirement.get("specifier", "") if isinstance(requirement, dict) else requirement
        reason = requirement.get("reason", "") if isinstance(requirement, dict) else ""
        installed = _installed(str(package))
        try:
            if installed is not None and SpecifierSet(wanted, prereleases=True).contains(Version(installed)):
                continue
            SpecifierSet(wanted)
        except (InvalidSpecifier, InvalidVersion, TypeError, AttributeError) as error:
            _LOG.warning("%s: requirements: %s %s cannot be read: %s", path, package, show(wanted), error)
            continue
        found = f"found {installed}" if installed else "which is not installed"
        raise Permanent(
            "unmet_requirement",
            f"{path}: requirements: expected {package}{wanted}, {found}. {reason}".rstrip(". ") + ".",
            f"install {package}{wanted} in the server's image",
        )


def check_version(path: Path, versions: object) -> None:
    """Warn about a model that a newer sentence-transformers wrote: it may have fields that are not known here."""
    wrote = versions.get("sentence_transformers") if isinstance(versions, dict) else None
    try:
        if wrote is not None and Version(str(wrote)) > Version(LIBRARY_VERSION):
            _LOG.warning(
                "%s: written by sentence-transformers %s; its files are read here as version %s reads them",
                path,
                wrote,
                LIBRARY_VERSION,
            )
    except InvalidVersion:
        _LOG.warning("%s: __version__: %s is no version", path, show(wrote))


def _installed(package: str) -> str | None:
    if package in _LIBRARY:
        return LIBRARY_VERSION
    if package == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version("torch" if package == "pytorch" else package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
