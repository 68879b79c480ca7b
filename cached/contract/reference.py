"""Model references: `name@version`, and names as one path segment. Law: pure. Grammar: section 2 of the design."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Self

from cached.contract.digest import Digest
from cached.contract.errors import InvalidReference

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_NAME_SEGMENTS = 3
_HEARTBEAT = "daemon.json"  # in `status/`, where every model has a folder of its name
_MAX_PATH_SEGMENT_BYTES = 255  # NAME_MAX on Linux
_NAME_REMEDY = (
    "write one to three segments joined by `/`, each of letters, digits, `.`, `_` and `-`, "
    "beginning with a letter or digit, at most 96 long, without `--` and not ending in `.` or `-`"
)


class _Reference(NamedTuple):
    name: str
    version: str


class ModelRef(_Reference):
    """One version of one model. The constructor validates. A tuple, which is hashed and compared without a call of
    Python: a start of thousands of versions looks up each of them some fifty times."""

    __slots__ = ()

    def __new__(cls, name: str, version: str) -> Self:
        check_name(name)
        check_version(version)
        return tuple.__new__(cls, (name, version))

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Parse `name@version`. Raises `InvalidReference`."""
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

    @property
    def log_fields(self) -> dict[str, str]:
        """What an event of the log says of it."""
        return {"model": self.name, "version": self.version}

    def drop_name(self, text: str) -> str:
        """Return the message `text` without this reference at its beginning, for a line that begins with it already."""
        return text.removeprefix(f"{self}: ")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@lru_cache(maxsize=4096)  # the versions of a model have one name
def check_name(name: str) -> None:
    """Raise `InvalidReference` unless `name` is a valid model name."""
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
    """Raise `InvalidReference` unless `version` is a valid version."""
    if not _VERSION.fullmatch(version):
        raise InvalidReference(
            f"not a version: {version[:200]!r}",
            "write letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 128 long",
        )


def name_from_path_segment(segment: str) -> str:
    """Return `acme/llama` for `acme--llama`. Raises `InvalidReference` if the result is no valid name."""
    name = segment.replace("--", "/")
    check_name(name)
    return name


_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_REMEDY = "write them as in `base=llama-3.1-8b@v3,adapter=support-lora@v7`; `alias=` may be left out"
_PINS_REMEDY = "write `sha256:…` for one model, and for several `base=sha256:…,adapter=sha256:…`"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One requested version; `pin` is the only accepted manifest digest, `alias` the pod's name for the version."""

    ref: ModelRef
    pin: Digest | None = None
    alias: str | None = None

    def __str__(self) -> str:
        return f"{self.alias}={self.ref}" if self.alias else str(self.ref)

    @property
    def log_fields(self) -> dict[str, str]:
        """What an event of the log says of it."""
        return self.ref.log_fields


def parse_models(text: str) -> tuple[ModelRequest, ...]:
    """Parse `alias=name@version,…`. Raises `InvalidReference`, also for a duplicate alias or reference."""
    found = tuple(_parse_one(item.strip()) for item in text.split(","))
    for names in ([w.alias for w in found if w.alias], [str(w.ref) for w in found]):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidReference(f"expected each model once, found {', '.join(twice)} more than once", _REMEDY)
    return found


def add_pins(models: Sequence[ModelRequest], text: str) -> tuple[ModelRequest, ...]:
    """Add the pins in `text`: one digest for one model, or `alias=sha256:…,name@version=sha256:…` for any of them.
    Raises `InvalidReference`, also for a bare digest with several models."""
    items = [item.strip() for item in text.split(",")]
    if len(items) == 1 and "=" not in items[0]:
        if len(models) != 1:
            raise InvalidReference(f"one digest cannot pin {len(models)} models", _PINS_REMEDY)
        return (replace(models[0], pin=Digest.parse(items[0])),)
    pins: dict[str, Digest] = {}
    for item in items:
        key, equals, digest = item.partition("=")
        if not equals or key in pins:
            problem = "comes twice" if equals else "does not say which model it pins"
            raise InvalidReference(f"{item[:200]!r} {problem}", _PINS_REMEDY)
        pins[key] = Digest.parse(digest)
    found = tuple(replace(w, pin=_take(pins, w)) for w in models)
    if pins:
        names = ", ".join(_key(wanted) for wanted in models)
        raise InvalidReference(f"no model {next(iter(pins))[:200]!r} among {names}", _PINS_REMEDY)
    return found


def write_pins(models: Sequence[ModelRequest]) -> str | None:
    """Format the pins for `add_pins`; None without any."""
    if len(models) == 1:
        return str(models[0].pin) if models[0].pin is not None else None
    return ",".join(f"{_key(wanted)}={wanted.pin}" for wanted in models if wanted.pin is not None) or None


def write_models(models: Iterable[ModelRequest]) -> str:
    """Format the models, without the pins, for `parse_models`."""
    return ",".join(map(str, models))


def variable_suffix(alias: str) -> str:
    """Return the end of `HOLDFAST_MODEL_PATH_<ALIAS>`: upper case, `_` for characters invalid in a variable's name."""
    return re.sub(r"[^A-Z0-9]", "_", alias.upper())


def _key(wanted: ModelRequest) -> str:
    return wanted.alias or str(wanted.ref)


def _take(pins: dict[str, Digest], wanted: ModelRequest) -> Digest | None:
    """Remove the pin by alias or by reference from `pins` and return it."""
    by_alias = pins.pop(wanted.alias, None) if wanted.alias else None
    return by_alias or pins.pop(str(wanted.ref), None)


def _parse_one(item: str) -> ModelRequest:
    alias, equals, reference = item.rpartition("=")
    if equals and not _ALIAS.fullmatch(alias):
        raise InvalidReference(f"not an alias: {alias[:100]!r} in {item[:200]!r}", _REMEDY)
    return ModelRequest(ModelRef.parse(reference), alias=alias or None)
