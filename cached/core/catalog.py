"""The catalog: the models, the sources of their versions, and the versions to prefetch.

Law: pure: text in, `Catalog` out; opens no file. No message repeats a source, because its user information is a
credential. Format: section 6 of the design.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import yaml

from cached.contract.digest import Digest
from cached.contract.errors import InvalidReference, Permanent
from cached.contract.namespaces import is_namespace
from cached.contract.reference import ModelRef, check_name, check_version
from cached.contract.trust import Trust
from cached.core import yaml_nodes as nodes
from cached.core.selection.presets import DEFAULT, Preset, parse_preset
from cached.core.yaml_nodes import InvalidNode

_SOURCE = re.compile(r"[a-z][a-z0-9+.-]+:[^\s:].*")  # some have no `//`: models:/name/3
_MODEL_KEYS = (
    *("exclude", "follow", "for", "include", "link", "namespaces", "pin", "prefetch", "require", "source", "trust"),
    "versions",
)
_VERSION_KEYS = ("digest", "follow", "for", "link", "require", "source", "trust")
_DEFAULT_KEYS = ("for", "require", "source", "trust")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """One version and what its fetch asks of the source. `source` has `{name}` and `{version}` filled in and may carry
    credentials; `preset`: its `for`; `require_loadable`: its `require: loadable`; `trust`: the least that the source
    must vouch for; `link`: share the bytes of local files where that can be, which changes no content."""

    ref: ModelRef
    source: str = field(repr=False)
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    preset: Preset = DEFAULT
    require_loadable: bool = False
    trust: Trust = Trust.SIZED
    link: bool = False

    @property
    def request(self) -> str:
        """The hash of the fetch request, by `hash_request`."""
        return hash_request(
            self.source,
            self.include,
            self.exclude,
            self.preset,
            self.trust,
            require_loadable=self.require_loadable,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogVersion(FetchRequest):
    """One version with the settings that apply to it. `keep`: the model's `pin: true`, never evict; `follow`: fetch
    what the source has later, too."""

    digest: Digest | None
    keep: bool
    follow: bool


@lru_cache(maxsize=1 << 14)  # called for each version in each plan
def hash_request(
    source: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    preset: Preset,
    trust: Trust,
    *,
    require_loadable: bool,
) -> str:
    """Return the hash of a fetch request for the fetch record: a hash, because `source` may carry credentials.

    It covers everything that may change the source's answer, credentials and parameters too: a source that differs in
    these only counts as another one and is listed again, which is cheap. `for`, `require` and `trust` count only where
    they are there: a request without them has the hash that earlier releases recorded.
    """
    more = [["for", str(preset)]] if preset != DEFAULT else []
    more += [["require", "loadable"]] if require_loadable else []
    more += [["trust", trust.value]] if trust is not Trust.SIZED else []
    text = json.dumps(["holdfast-request", source, include, exclude, *more])
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Rejection:
    """One rejected entry. `where`: the model, or `model@version`; `line` counts from 1."""

    where: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One entry under `models`. `source`: the entry's own template, which takes precedence over the catalog's default.

    `prefetch`: versions to prefetch on nodes that have every label of `node_selector` (empty: all nodes). `rejected`:
    versions whose own entry is bad and was never good. No template applies to them, because the error in the entry may
    concern the pin. `namespaces`: those whose pods may have the model; None: all.
    """

    name: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    versions: Mapping[str, CatalogVersion]
    prefetch: tuple[str, ...]
    node_selector: Mapping[str, str]
    pin: bool
    follow: bool
    source: str | None = field(repr=False)
    rejected: Mapping[str, Rejection]
    preset: Preset = DEFAULT
    require_loadable: bool = False
    trust: Trust = Trust.SIZED
    link: bool = False
    namespaces: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """All models by name, and the source template of `defaults`. Its `for`, `require` and `trust` are in each model.

    `rejected`: models whose own entry is bad and was never good.
    """

    models: Mapping[str, CatalogModel]
    default_source: str | None = field(repr=False)
    rejected: Mapping[str, Rejection] = field(default_factory=dict)

    def find_rejection(self, ref: ModelRef) -> Rejection | None:
        """Return why the catalog lacks `ref`, if it is that the entry of the model or of the version is bad."""
        model = self.models.get(ref.name)
        return self.rejected.get(ref.name) if model is None else model.rejected.get(ref.version)

    def find(self, ref: ModelRef) -> CatalogVersion | None:
        """Return the entry of `ref`: a listed version, or any other version of a listed model with a source template
        that has `{version}`; else None."""
        model = self.models.get(ref.name)
        return None if model is None else _find(model, ref.version, self.default_source)


EMPTY_CATALOG = Catalog({}, None)


@dataclass(frozen=True, slots=True)
class ParsedCatalog:
    """The catalog in force, and the rejected entries of the file."""

    catalog: Catalog
    rejected: tuple[Rejection, ...]


def parse_catalog(text: str, last_good: Catalog) -> ParsedCatalog:
    """Parse a catalog. A bad model or version is rejected alone and keeps its definition in `last_good`, if any.

    Raises `Permanent` (`invalid_catalog`, with the line) if the whole file is unreadable: the caller keeps the last
    good catalog. A file of the maximum size takes seconds: do not call this on the event loop.
    """
    rejected: list[Rejection] = []
    try:
        top = nodes.fields(nodes.compose(text), "the catalog", ("defaults", "models"))
        defaults = nodes.fields(top.get("defaults"), "`defaults`", _DEFAULT_KEYS)
        default_source = _template(defaults.get("source"))
        choice = _choice(defaults, _Choice())
        listed = nodes.required(top, "models", "the catalog", 1)
        models, bad = _models(listed, Catalog(last_good.models, default_source), choice, rejected)
    except InvalidNode as error:
        raise Permanent(
            "invalid_catalog",
            f"catalog, line {error.line}: {error.reason}",
            "correct the file; until then the last good catalog stays in force",
        ) from error
    return ParsedCatalog(Catalog(models, default_source, bad), tuple(rejected))


@dataclass(frozen=True, slots=True)
class _Choice:
    """`for`, `require` and `trust`, as an entry has them or takes them from the entry around it."""

    preset: Preset = DEFAULT
    require_loadable: bool = False
    trust: Trust = Trust.SIZED


def _choice(fields: Mapping[str, yaml.Node], around: _Choice) -> _Choice:
    """Return the entry's own `for`, `require` and `trust`, where it has them (null: none), else those around it."""
    if fields.keys().isdisjoint(_DEFAULT_KEYS):
        return around
    return _Choice(
        _preset(fields["for"]) if "for" in fields else around.preset,
        _requires_loadable(fields["require"]) if "require" in fields else around.require_loadable,
        _trust(fields["trust"]) if "trust" in fields else around.trust,
    )


def _models(
    node: yaml.Node, known: Catalog, default: _Choice, rejected: list[Rejection]
) -> tuple[dict[str, CatalogModel], dict[str, Rejection]]:
    """`known` has the last good models and the default source of this file, `default` its `for`, `require`, `trust`.
    Returns the models in force, and those without a good entry."""
    models: dict[str, CatalogModel] = {}
    bad: dict[str, Rejection] = {}
    claimed: dict[str, str] = {}
    for key, value in nodes.pairs(node, "`models`"):
        try:
            name = _model_name(key, claimed)
        except InvalidNode as error:
            rejected.append(Rejection(nodes.shown(key), error.line, error.reason))
            continue
        try:
            models[name] = _model(name, value, known, default, rejected)
        except InvalidNode as error:
            rejected.append(Rejection(name, error.line, error.reason))
            if name in known.models:
                models[name] = known.models[name]
            else:
                bad[name] = rejected[-1]
    return models, bad


def _model_name(key: yaml.Node, claimed: dict[str, str]) -> str:
    """Return the name of an entry. Raises `InvalidNode` if `claimed` has it already, also in another case."""
    name = nodes.text(key, "a model's name")
    try:
        check_name(name)
    except InvalidReference as error:
        raise InvalidNode(nodes.line_of(key), str(error)) from error
    first = claimed.get(name.casefold())
    if first is not None:
        problem = "is listed twice" if first == name else f"differs from {first!r}, listed before it, in case only"
        raise InvalidNode(nodes.line_of(key), f"the model {name!r} {problem}; the first stands")
    claimed[name.casefold()] = name
    return name


def _model(name: str, node: yaml.Node, known: Catalog, default: _Choice, rejected: list[Rejection]) -> CatalogModel:
    fields = nodes.fields(node, "a model", _MODEL_KEYS)
    choice = _choice(fields, default)
    listed, selector = _prefetch(fields.get("prefetch"))
    model = CatalogModel(
        name=name,
        include=_include(fields.get("include")),
        exclude=_patterns(fields.get("exclude"), "`exclude`"),
        versions={},
        prefetch=(),
        node_selector=selector,
        pin=nodes.flag(fields.get("pin"), "`pin`"),
        follow=nodes.flag(fields.get("follow"), "`follow`"),
        source=_template(fields.get("source")),
        rejected={},
        preset=choice.preset,
        require_loadable=choice.require_loadable,
        trust=choice.trust,
        link=nodes.flag(fields.get("link"), "`link`"),
        namespaces=_namespaces(fields.get("namespaces")),
    )
    model = _with_versions(model, fields.get("versions"), known, rejected)
    return replace(model, prefetch=_prefetched(model, listed, known.default_source, rejected))


def _with_versions(
    model: CatalogModel, node: yaml.Node | None, known: Catalog, rejected: list[Rejection]
) -> CatalogModel:
    last_good = known.models[model.name].versions if model.name in known.models else {}
    around = _Choice(model.preset, model.require_loadable, model.trust)
    good: dict[str, CatalogVersion] = {}
    bad: dict[str, Rejection] = {}
    for key, value in _version_pairs(node):
        version = nodes.shown(key)
        where = f"{model.name}@{version}"
        if version in good or version in bad:
            rejected.append(Rejection(where, nodes.line_of(key), "this version is listed twice; the first stands"))
            continue
        try:
            good[version] = _version(model, around, key, value, known.default_source)
        except InvalidNode as error:
            rejected.append(Rejection(where, error.line, error.reason))
            if version in last_good:
                good[version] = last_good[version]
            else:
                bad[version] = rejected[-1]
    return replace(model, versions=good, rejected=bad)


def _version_pairs(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node | None]]:
    """Yield the entries of `versions`, a mapping, or a list of versions without settings."""
    if isinstance(node, yaml.SequenceNode):
        yield from ((item, None) for item in nodes.items(node, "`versions`"))
    else:
        yield from nodes.pairs(node, "`versions`")


def _version(
    model: CatalogModel, around: _Choice, key: yaml.Node, value: yaml.Node | None, default_source: str | None
) -> CatalogVersion:
    """`around`: the model's `for`, `require` and `trust`."""
    version = _version_text(key)
    fields = nodes.fields(value, "a version", _VERSION_KEYS)
    template = _template(fields.get("source")) or model.source or default_source
    if template is None:
        raise InvalidNode(nodes.line_of(key), "no `source`: neither the version, nor its model, nor `defaults` has one")
    follow = nodes.flag(fields["follow"], "`follow`") if "follow" in fields else model.follow
    link = nodes.flag(fields["link"], "`link`") if "link" in fields else model.link
    ref, choice = ModelRef(model.name, version), _choice(fields, around)
    return _apply(model, ref, template, choice, digest=_digest(fields.get("digest")), follow=follow, link=link)


def _version_text(node: yaml.Node) -> str:
    version = nodes.text(node, "a version")
    try:
        check_version(version)
    except InvalidReference as error:
        raise InvalidNode(nodes.line_of(node), str(error)) from error
    return version


def _prefetch(node: yaml.Node | None) -> tuple[list[yaml.Node], dict[str, str]]:
    """Return the items of `versions`, and the node selector."""
    if node is None or nodes.is_null(node):
        return [], {}
    fields = nodes.fields(node, "`prefetch`", ("nodeSelector", "versions"))
    versions = nodes.required(fields, "versions", "`prefetch`", nodes.line_of(node))
    selector: dict[str, str] = {}
    for key, value in nodes.pairs(fields.get("nodeSelector"), "`nodeSelector`"):
        label = nodes.text(key, "a label")
        if label in selector:
            raise InvalidNode(nodes.line_of(key), f"the label {label[:200]!r} is there twice in `nodeSelector`")
        selector[label] = nodes.text(value, "a label's value")
    return nodes.items(versions, "`prefetch.versions`"), selector


def _prefetched(
    model: CatalogModel, listed: list[yaml.Node], default_source: str | None, rejected: list[Rejection]
) -> tuple[str, ...]:
    """Return the listed versions that have a source; each of the others is rejected alone."""
    versions: dict[str, None] = {}
    for node in listed:
        try:
            version = _version_text(node)
        except InvalidNode as error:
            rejected.append(Rejection(model.name, error.line, f"`prefetch.versions`: {error.reason}"))
            continue
        if _find(model, version, default_source) is not None:
            versions[version] = None
        elif version not in model.rejected:  # whose own rejection has the more precise reason
            reason = f"`prefetch.versions`: {version!r} is not listed, and no `source` with {{version}} applies to it"
            rejected.append(Rejection(model.name, nodes.line_of(node), reason))
    return tuple(versions)


def _find(model: CatalogModel, version: str, default_source: str | None) -> CatalogVersion | None:
    listed = model.versions.get(version)
    template = model.source or default_source
    if listed is not None or version in model.rejected or template is None or "{version}" not in template:
        return listed
    ref, choice = ModelRef(model.name, version), _Choice(model.preset, model.require_loadable, model.trust)
    return _apply(model, ref, template, choice, digest=None, follow=model.follow, link=model.link)


def _apply(
    model: CatalogModel,
    ref: ModelRef,
    template: str,
    choice: _Choice,
    *,
    digest: Digest | None,
    follow: bool,
    link: bool,
) -> CatalogVersion:
    source = template.replace("{name}", ref.name).replace("{version}", ref.version)
    return CatalogVersion(
        ref=ref,
        source=source,
        digest=digest,
        include=model.include,
        exclude=model.exclude,
        keep=model.pin,
        follow=follow,
        preset=choice.preset,
        require_loadable=choice.require_loadable,
        trust=choice.trust,
        link=link,
    )


def _preset(node: yaml.Node) -> Preset:
    if nodes.is_null(node):
        return DEFAULT
    try:
        return parse_preset(nodes.text(node, "`for`"))
    except ValueError as error:
        raise InvalidNode(nodes.line_of(node), f"`for`: {error}") from error


def _requires_loadable(node: yaml.Node) -> bool:
    if nodes.is_null(node):
        return False
    found = nodes.text(node, "`require`")
    if found != "loadable":
        raise InvalidNode(nodes.line_of(node), f"`require`: expected loadable, found {found[:100]!r}")
    return True


def _trust(node: yaml.Node) -> Trust:
    if nodes.is_null(node):
        return Trust.SIZED
    found = nodes.text(node, "`trust`")
    accepted = [trust.value for trust in Trust if trust is not Trust.SIZED]
    if found not in accepted:
        raise InvalidNode(nodes.line_of(node), f"`trust`: expected {', '.join(accepted)}, found {found[:100]!r}")
    return Trust(found)


def _namespaces(node: yaml.Node | None) -> frozenset[str] | None:
    """Return the listed namespaces, None without the key. A key without any is refused: it would be read as all."""
    if node is None:
        return None
    found = set()
    for item in nodes.items(node, "`namespaces`"):
        name = nodes.text(item, "a namespace")
        if not is_namespace(name):
            reason = f"`namespaces`: expected a namespace such as team-a, found {name[:100]!r}"
            raise InvalidNode(nodes.line_of(item), reason)
        found.add(name)
    if not found:
        reason = "an empty `namespaces` gives the model to no pod; leave the key out to give it to all"
        raise InvalidNode(nodes.line_of(node), reason)
    return frozenset(found)


def _include(node: yaml.Node | None) -> tuple[str, ...]:
    patterns = _patterns(node, "`include`")
    if isinstance(node, yaml.SequenceNode) and not patterns:
        reason = "an empty `include` selects nothing; leave the key out to select everything"
        raise InvalidNode(nodes.line_of(node), reason)
    return patterns


def _patterns(node: yaml.Node | None, what: str) -> tuple[str, ...]:
    patterns = []
    for item in nodes.items(node, what):
        pattern = nodes.text(item, f"a pattern of {what}")
        if not pattern or pattern.startswith(("/", "./", "../")):
            reason = f"{what}: {pattern[:200]!r} matches nothing; paths look like `folder/file.json`"
            raise InvalidNode(nodes.line_of(item), reason)
        patterns.append(pattern)
    return tuple(patterns)


def _template(node: yaml.Node | None) -> str | None:
    if node is None or nodes.is_null(node):
        return None
    source = nodes.uri_text(node, "`source`")
    if re.search(r"[{}]", source.replace("{name}", "").replace("{version}", "")):
        raise InvalidNode(nodes.line_of(node), "`source` may have {name} and {version} in braces, and nothing else")
    if not _SOURCE.fullmatch(source):
        raise InvalidNode(nodes.line_of(node), "expected `source` to be a URI such as s3://bucket/folder/, found none")
    return source


def _digest(node: yaml.Node | None) -> Digest | None:
    if node is None or nodes.is_null(node):
        return None
    try:
        return Digest.parse(nodes.text(node, "`digest`"))
    except InvalidReference as error:
        raise InvalidNode(nodes.line_of(node), str(error)) from error
