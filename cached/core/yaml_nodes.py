"""YAML nodes with their line, from files that people write and that may be hostile.

Law: pure: text in, nodes and values out. Composes only, so no tag builds an object; bounded in size and depth, without
aliases. Scalars keep their text, because YAML takes the versions `1.0` and `2024-07-23` for a float and a date. No
message repeats a URI: its user information is a credential.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import yaml
from yaml.reader import ReaderError

MAX_CHARACTERS = 1024 * 1024  # a ConfigMap holds no more bytes than this
MAX_DEPTH = 16  # composing is recursive; a catalog needs six
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULL_TAG = "tag:yaml.org,2002:null"
_BOOL_TAG = "tag:yaml.org,2002:bool"


class InvalidNode(Exception):
    """A refused part of the file, with its line from 1; caught where the affected entry is known."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class _Loader(yaml.SafeLoader):
    """Composes nodes without aliases (the billion laughs) and of limited depth (the interpreter's stack)."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML leaves it bare
        line = _line(event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            reason = "anchors (`&`) and aliases (`*`) are not read; a pattern that begins with `*` needs quotes"
            raise InvalidNode(line, reason)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise InvalidNode(line, f"nested more than {MAX_DEPTH} deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def compose(text: str) -> yaml.Node | None:
    """Parse the one document in `text`; None without any. Raises `InvalidNode`."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidNode(1, f"the file has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    if hasattr(yaml, "CSafeLoader"):
        # What libyaml cannot read is left to PyYAML's own parser, which says why.
        with contextlib.suppress(yaml.YAMLError, ValueError, OverflowError):
            if _is_plain(text):
                composed: yaml.Node | None = yaml.compose(text, Loader=yaml.CSafeLoader)
                return composed
    try:
        # A stream, because the marks of a string quote it in the error's message, with credentials.
        return yaml.compose(io.StringIO(text), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        hint = "; a pattern that begins with `*` needs quotes" if "alias" in (error.context or "") else ""
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise InvalidNode(_line(error.problem_mark or error.context_mark), f"not YAML: {reason}{hint}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InvalidNode(line, f"not YAML: {error.reason}") from error
    except (ValueError, OverflowError) as error:
        # PyYAML 6.0 raises these for `"\UFFFFFFFF"` and for a `%YAML` directive with thousands of digits.
        raise InvalidNode(1, "not YAML: a number or an escape out of range") from error


def _is_plain(text: str) -> bool:
    """Return whether libyaml may compose `text`, which it does twenty times as fast, but recursively, and with aliases.
    Raises the errors of its parser."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth >= MAX_DEPTH or isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            return False
    return True


def pairs(node: yaml.Node | None, what: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the keys and values of a mapping, with duplicates; empty for None and `null`. Raises `InvalidNode`."""
    if node is None or is_null(node):
        return []
    if not isinstance(node, yaml.MappingNode):
        raise InvalidNode(line_of(node), f"expected {what} to be a mapping, found {kind(node)}")
    listed: list[tuple[yaml.Node, yaml.Node]] = node.value
    return listed


def fields(node: yaml.Node | None, what: str, known: tuple[str, ...]) -> dict[str, yaml.Node]:
    """Return the values of a mapping by key. Raises `InvalidNode`, also for duplicate keys and keys not in `known`."""
    found: dict[str, yaml.Node] = {}
    for key, value in pairs(node, what):
        name = text(key, f"a key of {what}")
        if name not in known:
            raise InvalidNode(line_of(key), f"unknown key {name[:200]!r} in {what}; known: {', '.join(known)}")
        if name in found:
            raise InvalidNode(line_of(key), f"the key {name!r} is there twice in {what}")
        found[name] = value
    return found


def required(found: dict[str, yaml.Node], key: str, what: str, line: int) -> yaml.Node:
    """Return the value of `key` in the `fields` of `what`, which begins on `line`. Raises `InvalidNode`."""
    if key not in found:
        raise InvalidNode(line, f"{what} needs the key `{key}`")
    return found[key]


def items(node: yaml.Node | None, what: str) -> list[yaml.Node]:
    """Return the items of a list; empty for None and `null`. Raises `InvalidNode`."""
    if node is None or is_null(node):
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise InvalidNode(line_of(node), f"expected {what} to be a list, found {kind(node)}")
    listed: list[yaml.Node] = node.value
    return listed


def text(node: yaml.Node, what: str) -> str:
    """Return a scalar's text. Raises `InvalidNode`, also for a URI, since messages repeat such texts."""
    value = uri_text(node, what)
    if "://" in value:
        raise InvalidNode(line_of(node), f"expected {what}, found a URI")
    return value


def uri_text(node: yaml.Node, what: str) -> str:
    """Return a scalar's text, which may be a URI with credentials: no message may repeat it. Raises `InvalidNode`."""
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        raise InvalidNode(line_of(node), f"expected {what} as text, found {kind(node)}")
    value: str = node.value
    if not value.isprintable():
        raise InvalidNode(line_of(node), f"{what} has a control character, or another that cannot be shown")
    return value


def flag(node: yaml.Node | None, what: str) -> bool:
    """Return a YAML boolean; False for None and `null`. Raises `InvalidNode`, also for a quoted `"true"`."""
    if node is None or is_null(node):
        return False
    if node.tag != _BOOL_TAG or not isinstance(node, yaml.ScalarNode) or node.value.lower() not in _FLAGS:
        raise InvalidNode(line_of(node), f"expected {what} to be true or false, found {kind(node)}")
    return _FLAGS[node.value.lower()]


def shown(node: yaml.Node) -> str:
    """Return a key of any kind for a message."""
    if not isinstance(node, yaml.ScalarNode):
        return kind(node)
    return "a URI" if "://" in node.value else str(node.value[:200])


def kind(node: yaml.Node) -> str:
    """Return the kind of a node for a message."""
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if is_null(node) else "a text or number"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def is_null(node: yaml.Node) -> bool:
    """Return whether a node is YAML's null, explicit or empty."""
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG


def line_of(node: yaml.Node) -> int:
    """Return the first line of a node, from 1."""
    return _line(node.start_mark)


def _line(mark: Any) -> int:  # PyYAML's and libyaml's marks have no common base class
    return 1 if mark is None else int(mark.line) + 1
