"""Model references: `name@version`, and how a name is written as one path segment.

Law: pure; the grammar is section 2 of the design and nothing else is accepted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cached.contract.errors import InvalidReference

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_NAME_SEGMENTS = 3
_HEARTBEAT = "daemon.json"  # under `status/`, where every model has a folder of its name
_MAX_PATH_SEGMENT_BYTES = 255  # NAME_MAX on Linux
_NAME_REMEDY = (
    "write one to three segments joined by `/`, each of letters, digits, `.`, `_` and `-`, "
    "beginning with a letter or digit, at most 96 long, without `--` and not ending in `.` or `-`"
)


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """One version of one model. Construction validates: a `ModelRef` that exists is well-formed."""

    name: str
    version: str

    def __post_init__(self) -> None:
        check_name(self.name)
        check_version(self.version)

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `name@version`; raises `InvalidReference`."""
        name, at, version = text.partition("@")
        if not at:
            raise InvalidReference(
                f"expected a model reference `name@version`, found {text[:200]!r}",
                "add the version after an `@`, as in `acme/llama@v3`",
            )
        return cls(name, version)

    @property
    def path_segment(self) -> str:
        """The name as one path segment: `/` written `--`."""
        return self.name.replace("/", "--")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def check_name(name: str) -> None:
    """Raise `InvalidReference` unless `name` follows the grammar of model names."""
    segments = name.split("/")
    good = len(segments) <= _MAX_NAME_SEGMENTS and all(
        _SEGMENT.fullmatch(s) and "--" not in s and s[-1] not in ".-" for s in segments
    )
    if not good:
        raise InvalidReference(f"not a model name: {name[:400]!r}", _NAME_REMEDY)
    if name.casefold() == _HEARTBEAT:
        raise InvalidReference(f"not a model name: {name!r} is the daemon's own status file", _NAME_REMEDY)
    if len(name.replace("/", "--")) > _MAX_PATH_SEGMENT_BYTES:
        raise InvalidReference(
            f"model name too long: with `/` written `--` it has {len(name.replace('/', '--'))} bytes, "
            f"at most {_MAX_PATH_SEGMENT_BYTES} fit a path segment",
            "shorten the name",
        )


def check_version(version: str) -> None:
    """Raise `InvalidReference` unless `version` follows the grammar of versions."""
    if not _VERSION.fullmatch(version):
        raise InvalidReference(
            f"not a version: {version[:200]!r}",
            "write letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 128 long",
        )


def name_from_path_segment(segment: str) -> str:
    """Turn `acme--llama` back into `acme/llama`; raises `InvalidReference` if the result is no name."""
    name = segment.replace("--", "/")
    check_name(name)
    return name
