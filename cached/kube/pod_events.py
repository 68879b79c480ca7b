"""Turn the statuses of versions into Events on pods, each once, and into the node's summary.

Law: compares statuses with the events sent before, and passes new ones on; does no I/O. No text contains a source's
credentials, since a status has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cached.contract.errors import HoldfastError
from cached.contract.loadable.findings import Finding
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State, StatusError
from cached.core.demand import PodWant
from cached.kube.events import CHECKING, FAILED, FETCHING, READY, SUSPECT, Type
from cached.kube.pods import PodName

_FETCHING = (State.FETCHING, State.VERIFYING, State.PUBLISHING)
_MOST_NAMED = 8  # failures in a summary: a person asks `holdfast status` for more
_COARSE_PERCENT = 5  # each change of a summary is a write to the API


SendEvent = Callable[[PodName, str, str, Type], None]  # `EventQueue.add`


@dataclass(frozen=True, slots=True)
class _PodEvent:
    """An event. `key`: equal for events with different words that are sent once."""

    key: str
    reason: str
    message: str
    type: Type = "Normal"


@dataclass(slots=True)
class _SentEvents:
    since: float  # when its wait began, monotonic seconds
    waited: bool = False
    keys: set[str] = field(default_factory=set)


class PodEvents:
    """The events that each pod of this node got about each version it wants."""

    def __init__(self, send: SendEvent, find: Callable[[str], PodName | None]) -> None:
        self._send = send
        self._find = find
        self._sent: dict[tuple[str, ModelRef], _SentEvents] = {}

    def send_new(self, pods: Iterable[PodWant], find: Callable[[ModelRef], ModelStatus | None]) -> None:
        """Send new events to the pods; `find` returns a version's status. Call it at least after every change."""
        now = time.monotonic()
        current: dict[tuple[str, ModelRef], _SentEvents] = {}
        for want in pods:
            sent = self._sent.get((want.uid, want.ref)) or _SentEvents(now)
            current[want.uid, want.ref] = sent
            status = find(want.ref)
            if status is None or status.state != State.READY:
                sent.waited = True
                if READY in sent.keys:  # a lost version: all its events are new again
                    sent.keys.clear()
                    sent.since = now
            if status is not None:
                self._send_if_new(want, status, sent, now - sent.since if sent.waited else None)
        self._sent = current

    def _send_if_new(self, want: PodWant, status: ModelStatus, sent: _SentEvents, waited_s: float | None) -> None:
        if status.verdict.findings and status.state != State.FAILED:
            self._send_once(want, sent, _suspect_event(want, status.verdict.findings))
        is_usual = status.state == State.READY and READY in sent.keys and not status.refused_namespaces
        if is_usual and _is_as_pinned(want, status):
            return  # the usual case, without formatting a message
        self._send_once(want, sent, _event(want, status, waited_s))

    def _send_once(self, want: PodWant, sent: _SentEvents, event: _PodEvent | None) -> None:
        pod = self._find(want.uid)
        if event is not None and event.key not in sent.keys and pod is not None:
            sent.keys.add(event.key)
            self._send(pod, event.reason, event.message, event.type)


def refusal(send: SendEvent) -> Callable[[PodName, HoldfastError], None]:
    """Return the callback of `PodWatch` for pods with invalid annotations."""
    return lambda pod, error: send(pod, FAILED, str(error), "Warning")


def summary(statuses: Iterable[ModelStatus], used: int, capacity: int) -> str:
    """Return `12 versions, 1.2 TiB of 3.5 TiB; 10 ready; fetching llama@v3 45 %; 1 failed (lora@v3)`, for people: as
    many versions as `holdfast ls` lists, each under the state that it lists. Sizes in bytes."""
    by_state: dict[State, list[ModelStatus]] = {}
    not_renewed = []  # held, and what its name should lead to now failed
    count = 0
    for status in statuses:
        count += 1
        by_state.setdefault(status.listed_state, []).append(status)
        if status.state is State.FAILED and status.listed_state is State.READY:
            not_renewed.append(status)
    parts = [f"{count} {'version' if count == 1 else 'versions'}, {format_size(used)} of {format_size(capacity)}"]
    if 0 < (ready := len(by_state.get(State.READY, ()))) < count:
        parts.append(f"{ready} ready")
    for word, states in (("fetching", _FETCHING), ("checking", (State.VERIFYING,))):
        checked = word == "checking"
        busy = [each for state in states for each in by_state.get(state, ()) if each.is_checked_again is checked]
        if busy:
            more = f" and {len(busy) - 1} more" if len(busy) > 1 else ""
            parts.append(f"{word} {_progress(busy[0])}{more}")
    queued = len(by_state.get(State.QUEUED, ())) + len(by_state.get(State.RESOLVING, ()))
    parts += [f"{queued} queued"] if queued else []
    parts += _name_all("failed", by_state.get(State.FAILED, ()))
    parts += _name_all("here, but what should replace them failed", not_renewed)
    return "; ".join(parts)


def _name_all(what: str, statuses: Sequence[ModelStatus]) -> list[str]:
    if not statuses:
        return []
    names = [f"{status.model}@{status.version}" for status in statuses]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return [f"{len(names)} {what} ({', '.join(names[:_MOST_NAMED])}{more})"]


def _event(want: PodWant, status: ModelStatus, waited_s: float | None) -> _PodEvent | None:
    """Return the event for a status, None for none. `waited_s`: the pod's wait in seconds, None without a wait."""
    error, forbidden = status.error, status.refused_namespaces.get(want.namespace)
    if forbidden is not None:
        return _PodEvent("forbidden", FAILED, f"{forbidden.message} ({forbidden.remedy})", "Warning")
    if status.state == State.READY:
        if not _is_as_pinned(want, status):
            problem = f"{want.ref}: the pod pins {want.pin}, here and in the catalog is {status.digest}"
            return _PodEvent("pin", FAILED, f"{problem} (correct the pin, or ask for another version)", "Warning")
        took = f"after {waited_s:.1f} s" if waited_s is not None else "was on this node already"
        return _PodEvent(READY, READY, f"{want.ref} is ready: {format_size(status.bytes_done)}, {took}")
    if status.is_checked_again:
        size = format_size(status.bytes_total or 0)
        return _PodEvent("checking", CHECKING, f"{want.ref}: its files were doubted: {size} are hashed again now")
    if error is not None and status.state == State.FAILED:
        return _PodEvent(f"failed {error.code}", FAILED, f"{want.ref}: {_explain(want.ref, error)}", "Warning")
    if error is not None:
        message = f"{want.ref}: trying again: {_explain(want.ref, error)}"
        return _PodEvent(f"retry {error.code}", FETCHING, message, "Warning")
    if status.state in _FETCHING and status.bytes_total is not None:
        size = format_size(status.bytes_total)
        return _PodEvent("fetching", FETCHING, f"fetching {want.ref}: {size} from {status.source}")
    return None


def _explain(ref: ModelRef, error: StatusError) -> str:
    """Return message and remedy for a line that names `ref` already."""
    message = ref.drop_name(error.message)
    return f"{message} ({error.remedy})" if error.remedy else message


def _suspect_event(want: PodWant, findings: Sequence[Finding]) -> _PodEvent | None:
    """Return the event for a version that an engine may not load, None where nothing is fatal."""
    fatal = [finding for finding in findings if finding.fatal]
    if not fatal:
        return None
    more = f" (and {len(fatal) - 1} more: `holdfast inspect {want.ref}` names them)" if len(fatal) > 1 else ""
    key = "suspect " + " ".join(sorted({f"{finding.code} {finding.path}" for finding in fatal}))
    return _PodEvent(key, SUSPECT, f"{want.ref} may not load: {fatal[0]}{more}", "Warning")


def _is_as_pinned(want: PodWant, status: ModelStatus) -> bool:
    return want.pin is None or status.digest in (None, str(want.pin))


def _progress(status: ModelStatus) -> str:
    name = f"{status.model}@{status.version}"
    if not status.bytes_total:
        return name
    return f"{name} {100 * status.bytes_done // status.bytes_total // _COARSE_PERCENT * _COARSE_PERCENT} %"
