"""Files that a model needs, that its source has, and that the entry's own globs leave out.

Law: pure, by name, so that it is known before a byte is fetched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cached.contract.loadable.findings import Finding, describe_names
from cached.contract.loadable.names import (
    CONFIG,
    WHOLE_TOKENIZERS,
    folder_of,
    index_format,
    is_weights,
    name_of,
    role_of,
    shard_sets,
)

# Without these some engines load the model nevertheless, and what comes out is the same.
_LESS = ("code",)
_FEW = 8


def find_losses(dropped: Sequence[str], chosen: Collection[str]) -> tuple[Finding, ...]:
    """Return the findings about `dropped`, the files that the globs leave out beside the `chosen` ones. Clutter and
    copies of the same weights are not among them."""
    weights = [path for path in chosen if is_weights(path)]
    if not weights:
        lost = [path for path in dropped if is_weights(path)]
        if CONFIG in chosen and lost:
            return (_finding("filtered_weights", lost, "the weights themselves", fatal=True),)
        return ()
    findings = []
    for shards in shard_sets([*weights, *filter(is_weights, dropped)]).values():
        lost = [path for path in shards.found if path not in chosen]
        if lost and len(lost) < len(shards.found):
            findings.append(_finding("filtered_shard", lost, f"of {shards.count} files {shards.pattern}", fatal=True))
    by_role: dict[str, list[str]] = {}
    folders = {"", *map(folder_of, weights)}
    for path in dropped:
        role = role_of(path)
        if role is not None and (folder_of(path) in folders or role == "chat template"):
            by_role.setdefault(role, []).append(path)
    for role, lost in by_role.items():
        if role == "index":
            lost = [path for path in lost if _has_format(path, weights)]
        is_whole = any(name_of(path) in WHOLE_TOKENIZERS for path in chosen)
        fatal = role not in _LESS and not (role == "vocabulary" and is_whole)
        if lost:
            findings.append(_finding(f"filtered_{role.replace(' ', '_')}", lost, _WHAT[role], fatal=fatal))
    return tuple(findings)


_WHAT = {
    "configuration": "the model's configuration",
    "tokenizer": "the tokenizer",
    "vocabulary": "the tokenizer's vocabulary",
    "chat template": "the model's chat template",
    "code": "the model's own code",
    "index": "the index of its shards",
}


def _has_format(index: str, weights: Collection[str]) -> bool:
    """Return whether shards of the index's format are chosen in its folder or below it."""
    return any(path.startswith(folder_of(index)) and path.endswith(f".{index_format(index)}") for path in weights)


def _finding(code: str, lost: Sequence[str], what: str, *, fatal: bool) -> Finding:
    names = ", ".join(f'"{path}"' for path in sorted(lost)[:_FEW]) + (", …" if len(lost) > _FEW else "")
    message = f"the filters leave out {describe_names(sorted(lost))} ({what}), which the source has"
    return Finding(code, min(lost), message, f"add to `include`, or take out of `exclude`: {names}", fatal)
