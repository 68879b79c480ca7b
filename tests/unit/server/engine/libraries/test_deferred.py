"""Packages whose `__init__` runs at its first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server.engine.libraries.deferred import Deferral, defer

_NUMBERS = count()
_RAN = "import sys\nsys.modules['runs_of_inits'].names.append(__name__)\n"


class Package:
    """A package on `sys.path`, under a name that no test had before."""

    def __init__(self, folder: Path) -> None:
        self.name = f"deferred_package_{next(_NUMBERS)}"
        self._folder = folder / self.name
        self.write("__init__", "value = 1\n")

    def write(self, module: str, source: str) -> None:
        """Write a module; that of the package notes each run."""
        path = self._folder / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((_RAN if path.stem == "__init__" else "") + source.replace("PACKAGE", self.name))

    def load(self, submodule: str = "") -> Any:
        return importlib.import_module(f"{self.name}.{submodule}" if submodule else self.name)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packages whose `__init__` ran."""
    notes: Any = ModuleType("runs_of_inits")
    notes.names = []
    monkeypatch.setitem(sys.modules, "runs_of_inits", notes)
    return notes.names  # type: ignore[no-any-return]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = Package(tmp_path)
    yield found
    for name in [name for name in sys.modules if name.partition(".")[0] == found.name]:
        del sys.modules[name]


def test_the_first_attribute_runs_the_init_once(package: Package, runs: list[str]) -> None:
    """An import runs nothing; the first attribute runs the `__init__`, and the package is then any other's like."""
    defer(Deferral(package.name, alone=frozenset()))
    found = package.load()
    assert runs == []
    assert not hasattr(found, "__wrapped__")
    assert runs == []
    assert found.value == 1
    assert found.value == 1
    assert runs == [package.name]
    assert type(found) is ModuleType
    assert found is package.load()
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = found.missing


def test_a_submodule_that_needs_the_init_has_it_run_first(package: Package, runs: list[str]) -> None:
    """A submodule in `alone` is imported without the `__init__`; another one after it, and once."""
    package.write("__init__", "from PACKAGE.other import Class\n")
    package.write("light", "value = 2\n")
    package.write("other", "class Class: pass\n")
    defer(Deferral(package.name, alone=frozenset({"light"})))
    assert package.load("light").value == 2
    assert runs == []
    other = package.load("other")
    assert runs == [package.name]
    assert other is sys.modules[f"{package.name}.other"]
    assert other.Class is package.load().Class
    assert find_spec(other.__name__) is other.__spec__
    assert type(other.__loader__).__name__ == "SourceFileLoader"


def test_a_package_that_replaces_itself_is_found_by_every_reference(package: Package, runs: list[str]) -> None:
    """An `__init__` that puts another object in its place: earlier references lead there, with the same submodules."""
    package.write("__init__", "from types import ModuleType\nlazy = sys.modules[__name__] = ModuleType(__name__)\n")
    package.write("inner.__init__", "class Lazy(type(sys)): value = 4\nsys.modules[__name__] = Lazy(__name__)\n")
    package.write("inner.light", "value = 3\n")
    package.write("early", "value = 5\n")
    defer(Deferral(package.name))
    defer(Deferral(f"{package.name}.inner"))
    outer, light = package.load(), package.load("inner.light")
    early = outer.early  # as a lazy package has it, without an import of it
    assert (light.value, early.value, runs) == (3, 5, [])
    inner = outer.inner
    assert inner.value == 4
    assert runs == [inner.__name__]
    assert outer.inner is sys.modules[inner.__name__]
    with pytest.raises(AttributeError):
        _ = outer.missing
    assert runs == [inner.__name__, package.name]
    current: Any = package.load()
    assert current is not outer
    assert (current.early, current.inner) == (early, sys.modules[inner.__name__])
    assert outer.inner is current.inner


def test_decorators_take_effect_when_the_init_runs(package: Package, runs: list[str]) -> None:
    """Before, a marked function is itself and a wrapped one does what it does; then the package's own decorators count,
    also for a reference that was taken before."""
    package.write(
        "__init__",
        "def mark(function):\n    function.marked = True\n    return function\n"
        "def wrap(function=None, more=0):\n    return lambda *of: ('wrapped', more, function(*of))\n",
    )
    defer(Deferral(package.name, alone=frozenset(), marks=frozenset({"mark"}), wrappers=frozenset({"wrap"})))
    found = package.load()

    def double(number: int) -> int:
        """Its text."""
        return 2 * number

    taken = found.mark
    assert found.mark(double) is double
    wrapped, with_options = found.wrap(double), found.wrap(more=7)(double)
    assert (wrapped(2), with_options(3), wrapped.__doc__) == (4, 6, "Its text.")
    assert runs == []
    assert not hasattr(double, "marked")
    assert found.wrap is not None
    _ = hasattr(found, "anything")
    assert runs == [package.name]
    assert vars(double)["marked"]
    assert (wrapped(2), with_options(3)) == (("wrapped", 0, 4), ("wrapped", 7, 6))
    assert taken(lambda: None).marked


def test_a_class_is_decorated_by_the_package_itself(package: Package, runs: list[str]) -> None:
    """What is no function is not marked later: the `__init__` runs for it."""
    package.write("__init__", "def mark(one):\n    return (one, 'marked')\n")
    defer(Deferral(package.name, alone=frozenset(), marks=frozenset({"mark"})))
    assert package.load().mark(dict) == (dict, "marked")
    assert runs == [package.name]


def test_an_error_of_the_init_is_shown_each_time(package: Package, runs: list[str]) -> None:
    """An `__init__` that fails does so for each importer, and is run again for the next."""
    package.write("__init__", "import a_package_that_is_not_there\n")
    package.write("light", "")
    defer(Deferral(package.name, alone=frozenset({"light"})))
    found = package.load()
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
            _ = found.value
    assert runs == [package.name] * 2


def test_a_package_without_metadata_is_imported_plainly(package: Package, runs: list[str]) -> None:
    """A release that cannot be told, or a first submodule that fails, is the `__init__`'s own to report."""
    defer(Deferral(package.name, versioned=True))
    assert package.load().value == 1
    assert runs == [package.name]


def test_a_package_that_is_imported_already_stays_as_it_is(package: Package, runs: list[str]) -> None:
    """Deferring changes later imports only."""
    before = package.load()
    defer(Deferral(package.name))
    assert package.load() is before
    assert type(before) is ModuleType
    assert runs == [package.name]


def test_names_that_an_init_adds_are_found(package: Package, runs: list[str]) -> None:
    """A submodule that only the `__init__` can find is found by it, as after a plain import."""
    package.write("__init__", "import types\nsys.modules['PACKAGE.alias'] = types.ModuleType('PACKAGE.alias')\n")
    package.write("light", "")
    defer(Deferral(package.name))
    package.load("light")
    assert runs == []
    assert importlib.import_module(f"{package.name}.alias") is sys.modules[f"{package.name}.alias"]
    assert runs == [package.name]
    with pytest.raises(ModuleNotFoundError):
        package.load("nowhere")
