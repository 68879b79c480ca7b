"""Packages whose `__init__` runs at its first use, while their submodules can be imported before.

Law: standard library only, and knows no library. Once an `__init__` has run, all is as a plain import leaves it.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import Any

_Path = Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Deferral:
    """How the `__init__` of the package `name` is deferred.

    `alone`: the submodules that can be imported before it, None for all of a package that imports a submodule when it
    is asked for one; any other submodule has the `__init__` run first. `first`: a submodule that the `__init__` begins
    with, imported at once. `versioned`: the package says its release as `__version__`. `home_of` returns the submodule
    that has an attribute of the package, None to run the `__init__` for it. `marks`: its decorators that return the
    function they are given; `wrappers`: those that return another. Both take effect when the `__init__` runs; until
    then no code of the package could heed them.
    """

    name: str
    alone: frozenset[str] | None = None
    first: str | None = None
    versioned: bool = False
    home_of: Callable[[str], str | None] | None = None
    marks: frozenset[str] = frozenset()
    wrappers: frozenset[str] = frozenset()


def defer(deferral: Deferral) -> None:
    """Defer a package from its next import on; has no effect on one that is imported already."""
    if deferral.name in sys.modules:
        return
    finder = next((one for one in sys.meta_path if isinstance(one, _DeferredFinder)), None)
    if finder is None:
        finder = _DeferredFinder()
        sys.meta_path.insert(0, finder)
    finder.deferrals[deferral.name] = deferral


class _Init:
    """The `__init__` of a deferred package, which has not run."""

    def __init__(self, package: ModuleType, loader: Loader, deferral: Deferral) -> None:
        self._package = package
        self._loader = loader
        self._lock = threading.RLock()
        self._runs = False
        self._marked: list[tuple[str, Callable[..., Any]]] = []
        self.deferral = deferral
        self.done = False
        self._stand_ins = {
            **{name: functools.partial(self._mark, name) for name in deferral.marks},
            **{name: functools.partial(self._wrap, name) for name in deferral.wrappers},
        }
        vars(package).update(self._stand_ins)

    def run(self) -> None:
        """Run the `__init__` now; do nothing where it has run, or where this thread is running it."""
        with self._lock:
            if self.done or self._runs:
                return
            self._runs = True
            try:
                for name in self._stand_ins:
                    vars(self._package).pop(name, None)
                self._loader.exec_module(self._package)
            except BaseException:
                vars(self._package).update(self._stand_ins)
                raise
            finally:
                self._runs = False
            self._complete()

    def _complete(self) -> None:
        self.done = True
        current = self.current
        if current is self._package:
            self._package.__class__ = ModuleType
        else:  # the `__init__` put another object in its place
            _hand_over(self._package, current)
        for name, function in self._marked:
            getattr(current, name)(function)

    @property
    def current(self) -> ModuleType:
        """The package as an import finds it."""
        return sys.modules[self._package.__name__]

    def _mark(self, decorator: str, function: Any) -> Any:
        if self.done or not isinstance(function, FunctionType):
            self.run()
            return getattr(self.current, decorator)(function)
        self._marked.append((decorator, function))
        return function

    def _wrap(self, decorator: str, function: Any = None, *args: Any, **options: Any) -> Any:
        if function is None and not self.done:
            return lambda found: self._wrap(decorator, found, *args, **options)
        if self.done or not isinstance(function, FunctionType):
            self.run()
            return getattr(self.current, decorator)(function, *args, **options)
        wrapped: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def call(*own: Any, **named: Any) -> Any:
            if not self.done:
                return function(*own, **named)
            if not wrapped:
                wrapped.append(getattr(self.current, decorator)(function, *args, **options))
            return wrapped[0](*own, **named)

        return call


_INITS: dict[str, _Init] = {}  # of the deferred packages, by name


class _DeferredPackage(ModuleType):
    """A package that has its name, its path and the submodules that are imported, and runs its `__init__` for more."""

    def __getattr__(self, name: str) -> Any:
        if name != "__all__" and name.startswith("__"):  # as programs ask of every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        init = _INITS[self.__name__]
        if not init.done:
            home = init.deferral.home_of(name) if init.deferral.home_of is not None else None
            if home is not None:
                return getattr(importlib.import_module(home), name)
            submodule = f"{self.__name__}.{name}"
            if init.deferral.alone is None and find_spec(submodule) is not None:
                return importlib.import_module(submodule)
            init.run()
        current = init.current
        if current is self:  # by this thread, or just now by another
            return object.__getattribute__(self, name)
        return getattr(current, name)


def _hand_over(package: ModuleType, current: ModuleType) -> None:
    """Set on `current` what imports set on `package` before it: its submodules; and `current` on the parent."""
    for name, value in list(vars(package).items()):
        if value is sys.modules.get(f"{package.__name__}.{name}", _DeferredPackage):
            setattr(current, name, value)
    parent, _, name = package.__name__.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], name, current)


class _DeferredFinder(MetaPathFinder):
    """Finds deferred packages, and runs the `__init__` of one for a submodule that needs it."""

    def __init__(self) -> None:
        self.deferrals: dict[str, Deferral] = {}

    def find_spec(self, fullname: str, path: _Path, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a deferred package; None leaves a name to the other finders."""
        if fullname in self.deferrals:
            spec = self._find_elsewhere(fullname, path, target)
            if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
                spec.loader = _DeferringLoader(spec.loader, self.deferrals[fullname])
            return spec
        parent, _, child = fullname.rpartition(".")
        init = _INITS.get(parent)
        if init is None or init.done or self._is_importable_alone(init.deferral, child, fullname, path):
            return None
        init.run()
        found = sys.modules.get(fullname)
        if found is None:
            return self._find_elsewhere(fullname, path, target)
        spec = ModuleSpec(fullname, _LoadedModule(found), is_package=hasattr(found, "__path__"))
        found.__spec__ = spec  # of a module that appears during the search, the import system takes the module's own
        return spec

    def _is_importable_alone(self, deferral: Deferral, child: str, fullname: str, path: _Path) -> bool:
        if deferral.alone is not None:
            return child in deferral.alone
        # An `__init__` may add finders for names of its own.
        return self._find_elsewhere(fullname, path, None) is not None

    def _find_elsewhere(self, fullname: str, path: _Path, target: ModuleType | None) -> ModuleSpec | None:
        finders = [finder for finder in sys.meta_path if finder is not self]
        return next((spec for one in finders if (spec := one.find_spec(fullname, path, target)) is not None), None)


class _DeferringLoader(Loader):
    """Makes a package without running its `__init__`; the rest is its own loader."""

    def __init__(self, own: Loader, deferral: Deferral) -> None:
        self._own = own
        self._deferral = deferral

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the package."""
        return _DeferredPackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Set what the package has before its `__init__`; run that where it cannot be deferred."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        init = _INITS[module.__name__] = _Init(module, self._own, self._deferral)
        try:
            if self._deferral.versioned:
                vars(module)["__version__"] = version(module.__name__)
            if self._deferral.first is not None:
                importlib.import_module(f"{module.__name__}.{self._deferral.first}")
        except (ImportError, PackageNotFoundError):  # the `__init__` itself has the error to show, if any
            init.run()


class _LoadedModule(Loader):
    """Gives an import the module that was loaded while the import looked for it."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 - of the protocol
        """Return the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is."""
        module.__spec__ = self._spec
