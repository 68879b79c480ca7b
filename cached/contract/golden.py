"""Golden predictions: recorded requests and their expected answers, one of the version's own files.

Law: pure. Format: `holdfast.dev/golden/v1`, section 9 of the design. A number agrees within
`absolute + relative * |expected|`, any other value if it is equal; additional keys of an answer are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from cached.contract.errors import Permanent
from cached.contract.status import parse_timestamp

SCHEMA = "holdfast.dev/golden/v1"
GOLDEN_NAME = "holdfast-golden.json"  # in the version's folder, listed in its manifest
MAX_GOLDEN_BYTES = 16 * 1024 * 1024
MAX_CASES = 256
_MAX_NAME = 200
_MAX_DEPTH = 32
_ENVIRONMENT = ("device", "driver", "cuda", "python", "image")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest accepted distance of a number from the expected one."""

    absolute: float
    relative: float

    def __post_init__(self) -> None:
        for name, value in (("absolute", self.absolute), ("relative", self.relative)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise _refuse(f"expected the {name} tolerance as a number from 0, found {value!r}")


@dataclass(frozen=True, slots=True)
class Case:
    """One request (`path`, JSON `request`) and the expected content of its answer."""

    name: str
    path: str
    request: dict[str, Any]
    expected: dict[str, Any]
    tolerance: Tolerance


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of a recording: versions of everything that can change a number; empty text where absent."""

    python: str = ""
    device: str = ""
    cuda: str = ""
    driver: str = ""
    image: str = ""
    packages: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    @classmethod
    def read(cls, document: object) -> Environment:
        """Parse the JSON object. Raises `Permanent` (`invalid_golden`)."""
        if not isinstance(document, dict):
            raise _refuse(f"expected `environment` to be an object, found {_kind(document)}")
        packages = document.get("packages", {})
        texts = {key: document.get(key, "") for key in _ENVIRONMENT}
        if not isinstance(packages, dict) or not all(isinstance(v, str) for v in (*packages.values(), *texts.values())):
            raise _refuse("expected `environment` to map names to versions as text")
        return cls(**texts, packages=packages)

    def differences(self, other: Environment) -> list[str]:
        """Return the versions that differ as `name mine -> theirs`, one line each; hardware and Python first."""
        versions = [(name, getattr(self, name), getattr(other, name)) for name in _ENVIRONMENT]
        packages = sorted(self.packages.keys() | other.packages.keys())
        versions += [(name, self.packages.get(name), other.packages.get(name)) for name in packages]
        return [f"{name} {mine or 'none'} -> {theirs or 'none'}" for name, mine, theirs in versions if mine != theirs]


@dataclass(frozen=True, slots=True)
class Golden:
    """A version's golden predictions. Construction validates."""

    cases: tuple[Case, ...]
    environment: Environment
    model: str
    recorded_at: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.cases) <= MAX_CASES:
            raise _refuse(f"expected 1 to {MAX_CASES} cases, found {len(self.cases)}")
        names = [case.name for case in self.cases]
        if len(set(names)) != len(names):
            raise _refuse("two cases have the same name")

    @classmethod
    def parse(cls, data: bytes) -> Golden:
        """Parse a golden file, ignoring unknown keys. Raises `Permanent` (`invalid_golden`)."""
        document = _load(data)
        if document.get("schema") != SCHEMA:
            raise _refuse(f"expected schema {SCHEMA!r}, found {str(document.get('schema'))[:100]!r}")
        cases = document.get("cases")
        if not isinstance(cases, list):
            raise _refuse(f"expected `cases` to be a list, found {_kind(cases)}")
        model, recorded_at = document.get("model", ""), document.get("recorded_at")
        if not isinstance(model, str) or not isinstance(recorded_at, str):
            raise _refuse("expected `model` and `recorded_at` as text")
        try:
            parse_timestamp(recorded_at)
        except ValueError as error:
            raise _refuse(f"expected `recorded_at` as a time: {error}") from error
        environment = Environment.read(document.get("environment", {}))
        return cls(tuple(_case(number, item) for number, item in enumerate(cases)), environment, model, recorded_at)

    def encode(self) -> bytes:
        """Return the file's bytes: indented JSON, so that a review can compare two."""
        document = {
            "schema": SCHEMA,
            "model": self.model,
            "recorded_at": self.recorded_at,
            "environment": self.environment.document(),
            "cases": [
                {
                    "name": case.name,
                    "path": case.path,
                    "request": case.request,
                    "tolerance": asdict(case.tolerance),
                    "expected": case.expected,
                }
                for case in self.cases
            ],
        }
        return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of a comparison: the largest difference of a number, its key (`at`), and `mismatch`, None if equal."""

    largest: float
    at: str
    mismatch: str | None

    @property
    def agrees(self) -> bool:
        return self.mismatch is None


def compare(case: Case, answer: object) -> Agreement:
    """Compare an answer with the expected one. `mismatch` names the first differing value that is no number, else the
    number that exceeds its tolerance most."""
    largest, at, mismatch, worst = 0.0, "", None, 0.0
    other: str | None = None
    for where, expected, found in _pairs(case.expected, answer, ""):
        if not (_is_number(expected) and _is_number(found)):
            if other is None and (expected != found or type(expected) is not type(found)):
                other = f"{where}: expected {_shown(expected)}, found {_shown(found)}"
            continue  # even where a text differs, the numbers show by how much
        difference = _distance(expected, found)
        if not difference <= largest:  # NaN counts as the largest
            largest, at = difference, where
        allowed = case.tolerance.absolute + case.tolerance.relative * _distance(0.0, expected)
        excess = difference - allowed
        if not excess <= worst:
            worst = excess
            mismatch = f"{where}: expected {expected!r}, found {found!r}: {difference:.3g} apart, {allowed:.3g} allowed"
    return Agreement(largest, at, other or mismatch)


class _Missing:
    """The value of a key that the answer lacks."""

    def __repr__(self) -> str:
        return "nothing"


_MISSING = _Missing()


def _pairs(expected: object, found: object, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield every leaf of `expected` with the found value; a structure that differs is a leaf itself."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            yield from _pairs(value, found.get(key, _MISSING), f"{where}.{key}" if where else key)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (value, other) in enumerate(zip(expected, found, strict=True)):
            yield from _pairs(value, other, f"{where}[{index}]")
    else:
        yield where or "the answer", expected, found


def _distance(expected: float, found: float) -> float:
    try:
        return abs(float(found) - float(expected))
    except OverflowError:  # JSON has integers of any length
        return math.inf


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(item, levels - 1) for item in inner))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _case(number: int, item: object) -> Case:
    where = f"case {number}"
    if not isinstance(item, dict):
        raise _refuse(f"{where}: expected an object, found {_kind(item)}")
    name, path, tolerance = item.get("name"), item.get("path"), item.get("tolerance")
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME:
        raise _refuse(f"{where}: expected `name` as 1 to {_MAX_NAME} characters")
    if not isinstance(path, str) or not path.startswith("/") or not path.isascii() or not path.isprintable():
        raise _refuse(f"{where} ({name}): expected `path` as an URL's path such as /v1/embeddings")
    if not isinstance(item.get("request"), dict) or not isinstance(item.get("expected"), dict) or not item["expected"]:
        raise _refuse(f"{where} ({name}): expected `request` and `expected` to be objects, `expected` not empty")
    if _is_deeper(item, _MAX_DEPTH):
        raise _refuse(f"{where} ({name}): nested more than {_MAX_DEPTH} deep")
    if not isinstance(tolerance, dict) or set(tolerance) != {"absolute", "relative"}:
        raise _refuse(f"{where} ({name}): expected `tolerance` with `absolute` and `relative`")
    return Case(name, path, item["request"], item["expected"], Tolerance(**tolerance))


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_GOLDEN_BYTES:
        raise _refuse(f"{len(data)} bytes, at most {MAX_GOLDEN_BYTES} are read")

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        document = json.loads(data.decode("utf-8"), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _refuse(f"not JSON in UTF-8: {error}") from error
    if not isinstance(document, dict):
        raise _refuse(f"expected a JSON object, found {_kind(document)}")
    return document


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _shown(value: object) -> str:
    text = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) <= _MAX_NAME else text[:_MAX_NAME] + "…"


def _refuse(message: str) -> Permanent:
    return Permanent(
        "invalid_golden", f"golden predictions: {message}", "record them again with `holdfast golden record`"
    )
