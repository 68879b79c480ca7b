"""`holdfast why POD|NAME@VERSION`: explain in one paragraph why a version waits, failed, is ready or is not here.

Law: asks the daemon, which knows pods, catalog and queue; where it does not answer, reads the status files and says so.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from cached.commands.reasons import Explanation, explain
from cached.commands.shared.common import (
    add_timeout_option,
    command_parser,
    get_layout,
    get_public_tree,
    parse_reference,
    print_json,
    report_errors,
)
from cached.commands.shared.control_client import ControlClient
from cached.commands.shared.style import paint, wrap
from cached.commands.shared.tree import (
    find_held_version,
    list_leased,
    list_model_statuses,
    read_daemon_status,
    read_model_status,
    seconds_since,
)
from cached.contract.errors import HoldfastError
from cached.contract.layout import PublicLayout
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.units import format_duration
from cached.contract.reference import ModelRef
from cached.contract.status import State

_ANSWER_S = 10.0
_POD = re.compile(r"([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?")  # RFC 1123, as Kubernetes has it
_UNANSWERED = frozenset({"no_daemon", "daemon_silent", "daemon_unreachable", "no_permission"})
_LATE_S = 15.0  # of the heartbeat, which moves at least every 5 s


@report_errors("why")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast why POD|NAME@VERSION [--json]`; return the exit code: 1 where nothing can be said of it."""
    parser = command_parser("why", "Explain why a version waits, failed, is ready or is not on this node.")
    parser.add_argument(
        "target",
        metavar="POD|NAME@VERSION",
        type=_parse_target,
        help="a pod of this node, as namespace/name or name, or a version",
    )
    add_timeout_option(parser, _ANSWER_S)
    parser.switch("--json", help="print one JSON object with the facts instead of text")
    options = parser.parse_args(argv)
    target: ModelRef | str = options.target
    public = get_public_tree(options)
    try:
        document = ControlClient(get_layout(options), options.timeout).explain(target)
    except HoldfastError as error:
        if error.code not in _UNANSWERED:
            raise
        document = _read_facts(public, target, error)
    document = {"node": None, "pod": None, **document}
    explained = [explain(facts, _pod_of(document)) for facts in document["versions"]]
    document["versions"] = [
        {**facts, "reason": each.reason, "text": each.text, "remedy": each.remedy}
        for facts, each in zip(document["versions"], explained, strict=True)
    ]
    if options.json:
        print_json(document)
    else:
        sys.stdout.write(_as_text(document, explained))
    return EXIT_FAILED if isinstance(target, str) and document["pod"] is None else EXIT_DONE


def _parse_target(text: str) -> ModelRef | str:
    if "@" in text:
        return parse_reference(text)
    if _POD.fullmatch(text) is None:
        expected = "a pod as namespace/name or name, or a version as name@version"
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text[:200]!r}")
    return text


def _pod_of(document: dict[str, Any]) -> str | None:
    name: str | None = None if document["pod"] is None else document["pod"]["pod"]
    return name


def _as_text(document: dict[str, Any], explained: list[Explanation]) -> str:
    paragraphs = []
    pod, error = document["pod"], document.get("error")
    if pod is not None and pod["error"] is not None:
        said = f"its annotations are not understood: {pod['error']['message']}"
        problem = f"Pod {pod['pod']} asks for weights, and {said}."
        paragraphs.append(_paragraph(problem, pod["error"]["remedy"]))
    elif pod is not None and pod["ending"]:
        paragraphs.append(_paragraph(f"Pod {pod['pod']} is being deleted: it wants nothing any more.", ""))
    if error is not None:
        paragraphs.append(_paragraph(error["message"], error["remedy"]))
    paragraphs += [_paragraph(each.text, each.remedy) for each in explained]
    return "\n".join(paragraphs)


def _paragraph(text: str, remedy: str) -> str:
    advice = f"{wrap(f'what to do: {remedy}', '  ')}\n" if remedy else ""
    return f"{wrap(text)}\n{advice.replace('what to do:', paint('what to do:', 'bold'), 1)}"


# --- without the daemon --------------------------------------------------------------------------------------------


def _read_facts(public: PublicLayout, target: ModelRef | str, error: HoldfastError) -> dict[str, Any]:
    """Return what the public tree says in place of the daemon."""
    daemon, state = read_daemon_status(public), error.message
    if daemon is not None:
        late_s = seconds_since(daemon.updated)
        state = (
            f"its last heartbeat was {format_duration(late_s)} ago"
            if late_s > _LATE_S
            else f"its heartbeat moves, but {error.message}"
        )
    node = None if daemon is None else daemon.node
    if isinstance(target, ModelRef):
        return {"node": node, "versions": [_read_version(public, target, state)]}
    waiting = [
        ModelRef(status.model, status.version)
        for status in list_model_statuses(public)
        if status.listed_state is not State.READY
    ]
    message = f"The daemon does not answer ({state}), and it alone knows the pods of this node."
    message += " These versions are not ready:" if waiting else " All versions that it has a status of are ready."
    remedy = error.remedy or "start the daemon, and ask again"
    problem = {"code": error.code, "message": message, "remedy": remedy, "permanent": error.permanent}
    return {"node": node, "error": problem, "versions": [_read_version(public, ref, state) for ref in waiting]}


def _read_version(public: PublicLayout, ref: ModelRef, state: str) -> dict[str, Any]:
    held, status = find_held_version(public, ref), read_model_status(public, ref)
    return {
        "model": ref.name,
        "version": ref.version,
        "daemon": {"running": False, "node": None, "not_ready": state},
        "status": None if status is None else status.document(),
        "digest": None if held is None else str(held.digest),
        "bytes": None if held is None else held.size_bytes,
        "last_used": None,
        "leased": held is not None and held.digest.hex in (list_leased(public) or ()),
        "kept_by": [],
        "pods": None,
        "asked_by": None,
        "pulls": None,
        "refusal": None,
        "catalog": None,
        "fetch": None,
    }
