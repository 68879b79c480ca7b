"""Nodes of YAML: the fast parser and the one that explains read the same."""

from __future__ import annotations

import json

import pytest
import yaml

from cached.core import yaml_nodes
from cached.core.yaml_nodes import MAX_DEPTH, InvalidNode

_DOCUMENTS = {
    "none": "",
    "a comment": "# nothing\n",
    "plain": "models:\n  m:\n    versions:\n      2024-07-23: {source: s3://a/b/}\n      1.0:\n      null: yes\n",
    "flow": '{"models": {"m": {"versions": {"v1": {"source": "s3://a/b/", "digest": "sha256:00"}}}}}',
    "JSON": json.dumps({"a": [1, 2.5, None, True, "é\u2028\U0001f600"], "b": {}}, indent=1),
    "blocks": "a: |\n  one\n  two\nb: >-\n  three\n  four\nc: 'it''s'\nd: \"\\u00e9\\n\"\n? e\n: [f, g]\n",
    "lists": "- - - a\n    - b\n- c: d\n  e:\n  - f\n",
    "tags": "a: !!str 1\nb: !custom {c: d}\n",
    "twice": "a: 1\na: 2\n",
    "carriage returns": "a: 1\r\nb:\r\n  - c\r\n",
    "a start": "--- {a: b}\n...\n",
    "deep": "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1),
    "deeper": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "far too deep": "[" * 100_000,
    "an alias": "a: &x 1\nb: *x\n",
    "an anchor": "a: &x {b: c}\n",
    "two documents": "a: 1\n--- \nb: 2\n",
    "broken": "a: [b\nc: d\n",
    "a tab": "a:\n\tb: c\n",
    "a control character": "a: \x01\n",
    "a large escape": 'a: "\\UFFFFFFFF"\n',
    "a directive": "%YAML 1.1\n---\na: b\n",
}


def _read(text: str) -> object:
    try:
        return _shape(yaml_nodes.compose(text))
    except InvalidNode as error:
        return error.line, error.reason


def _shape(node: yaml.Node | None) -> object:
    if node is None:
        return None
    value = node.value
    if isinstance(node, yaml.MappingNode):
        value = [(_shape(key), _shape(each)) for key, each in node.value]
    elif isinstance(node, yaml.SequenceNode):
        value = [_shape(each) for each in node.value]
    return type(node).__name__, node.tag, yaml_nodes.line_of(node), value


@pytest.mark.parametrize("name", _DOCUMENTS)
def test_both_parsers_read_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With libyaml and without it a document has the same nodes and lines, or is refused with the same words."""
    fast = _read(_DOCUMENTS[name])
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert fast == _read(_DOCUMENTS[name])
