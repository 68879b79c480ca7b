"""The life of one version: what an event makes of its record, and what is to be done.

Law: `handle` is a function of a record, an event and the time in monotonic seconds; it remembers nothing. Several
versions are the table's matter, which of them to fetch, evict or refuse is the planner's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.core.demand import PullWant
from cached.core.planner import Cancel, Forget, Preempt, Refuse, Reprioritize
from cached.core.retries import MAX_BAD_RESPONSES, failed_s, hopeless, pause_s
from cached.core.versions.messages import (
    Admitted,
    Answer,
    AnswerExpired,
    Arrived,
    Asked,
    CountWait,
    CountWant,
    Ended,
    Event,
    Evicted,
    Hasten,
    LogFailure,
    Looked,
    MakeRoom,
    NeedFound,
    Nudged,
    Plan,
    PodsSeen,
    Reopen,
    Resumed,
    RoomSought,
    Run,
    ShowFailed,
    ShowIdle,
    ShowQueued,
    ShowRefused,
    ShowTrouble,
    SpaceReserved,
    Started,
    Step,
    Stop,
    Stopped,
    TimePassed,
    TryFailed,
)
from cached.core.versions.record import (
    Blocked,
    Failed,
    Fetch,
    Idle,
    Paused,
    PinMismatch,
    Pull,
    Queued,
    Refused,
    Running,
    Stopping,
    Version,
    WrongPin,
    meets,
)

Result = tuple[Version, tuple[Step, ...]]


def handle(version: Version, event: Event, now: float) -> Result:
    """What an event makes of a version, and the steps to carry out, in order."""
    match event:
        case Asked() | Resumed() | PodsSeen() | Looked() | AnswerExpired() | Evicted() | NeedFound():
            return _handle_askers(version, event, now)
        case Arrived() | TryFailed() | Stopped():
            return _handle_end(version, event, now)
        case TimePassed():
            return _pass_time(version, now)
        case _:
            return _handle_fetch(version, event)


# --- those who ask -------------------------------------------------------------------------------------------------


def _handle_askers(
    version: Version, event: Asked | Resumed | PodsSeen | Looked | AnswerExpired | Evicted | NeedFound, now: float
) -> Result:
    match event:
        case Asked(pull, held):
            return _ask(version, pull, held=held)
        case Resumed(pull, recheck):
            pulls = version.pulls or (pull,)
            return replace(version, pulls=pulls, recheck=version.recheck or recheck), ()
        case PodsSeen():
            return _see_pods(version, event, now)
        case Looked():
            return _look(version, event, now)
        case AnswerExpired(id_):
            return replace(version, pulls=tuple(pull for pull in version.pulls if pull.id != id_)), ()
        case Evicted():
            return replace(version, counted=False, pulled_pin=None), ()
        case NeedFound(total_bytes):
            return replace(version, needs_bytes=max(version.needs_bytes, total_bytes)), ()


def _ask(version: Version, pull: Pull, *, held: bool) -> Result:
    recheck = version.recheck or (pull.refresh and held)
    version = replace(version, pulls=(*version.pulls, pull), counted=False, recheck=recheck)
    if version.fetch is None:
        settled = version.settled is not None
        return _forget_failures(version), (ShowIdle(version.ref),) if settled else ()
    if pull.refresh:
        return _stop(version, gives_way=False)  # its source was listed before: it starts over, with what is here of it
    return _nudge(version)


def _see_pods(version: Version, seen: PodsSeen, now: float) -> Result:
    """A wait begins with the first pod, unless the version is here. A new pod has an earlier failure tried again."""
    if version.fetch is None and {pod.uid for pod in seen.pods} - {pod.uid for pod in version.pods}:
        version = _forget_failures(version)
    version, waited = _end_wait(version, now) if seen.held else (version, ())
    if not seen.pods:
        version = replace(version, waiting_since=None)
    elif not seen.held and version.waiting_since is None:
        version = replace(version, waiting_since=now)
    pins = {pod.pin for pod in seen.pods}
    wrong = tuple(wrong for wrong in version.wrong_pins if not wrong.lapsed or wrong.pin in pins)
    return replace(version, pods=seen.pods, wrong_pins=wrong), waited


def _look(version: Version, looked: Looked, now: float) -> Result:
    ref, want, held = version.ref, looked.want, looked.held
    if version.recheck and (want is None or held is None):
        version = replace(version, recheck=False)
    version, steps = _refuse_pins(version, looked.verdicts)
    met = version.is_met(want, held)
    if want is not None and not version.counted:
        steps += (CountWant(ref, "hit" if met else "miss" if version.fetch is None else "joined"),)
    if version.counted is (want is None):
        version = replace(version, counted=want is not None)
    if held is not None:
        version, waited = _end_wait(version, now)
        steps += waited
        if met:
            version, answers = _meet_pulls(version, held.digest)
            steps += answers
    if want is None and not looked.refused and isinstance(version.state, Idle):
        pulled_pin = None if held is None else version.pulled_pin
        version = replace(version, failures=0, needs_bytes=0, pulled_pin=pulled_pin)
    return version, steps


def _end_wait(version: Version, now: float) -> Result:
    if version.waiting_since is None:
        return version, ()
    return replace(version, waiting_since=None), (CountWait(version.ref, now - version.waiting_since),)


def _refuse_pins(version: Version, verdicts: Mapping[Digest, Permanent]) -> Result:
    """Answer the pulls whose pins cannot be met: it is no other's matter."""
    wrong = [(pull, verdicts[pull.want.pin]) for pull in version.pulls if pull.want.pin and pull.want.pin in verdicts]
    return _close(version, [replace(pull, error=error) for pull, error in wrong])


def _meet_pulls(version: Version, digest: Digest) -> Result:
    """The version is here as it is wanted: answer its pulls; one that pins another digest is told so."""
    answered, pulled_pin = [], version.pulled_pin
    for pull in version.pulls:
        if pull.want.pin in (None, digest):
            answered.append(replace(pull, digest=digest, error=None))
            pulled_pin = pull.want.pin
        else:
            answered.append(replace(pull, error=_other(pull.want, digest)))
    version, steps = _close(version, answered)
    return (replace(version, pulled_pin=pulled_pin) if answered else version), steps


def _end_refreshes(version: Version, error: HoldfastError) -> Result:
    """The source could not be asked again, or has what may not be taken; what is here stays, so only those pulls that
    had it asked again are told."""
    return _close(version, [replace(pull, error=error) for pull in version.pulls if pull.refresh])


def _close(version: Version, answered: Collection[Pull]) -> Result:
    """These pulls have their answer, and ask no more."""
    if not answered:
        return version, ()
    ids = {pull.id for pull in answered}
    left = tuple(pull for pull in version.pulls if pull.id not in ids)
    return replace(version, pulls=left), tuple(Answer(version.ref, pull, asks=False) for pull in answered)


def _fail_pulls(version: Version, error: HoldfastError) -> Result:
    """No pull can be met, as far as is known; each asks on until its answer is old."""
    pulls = tuple(replace(pull, digest=None, error=error) for pull in version.pulls)
    return replace(version, pulls=pulls), tuple(Answer(version.ref, pull, asks=True) for pull in pulls)


def _reopen_pulls(version: Version) -> Result:
    answered = [pull for pull in version.pulls if pull.error is not None]
    pulls = tuple(replace(pull, error=None) for pull in version.pulls)
    return replace(version, pulls=pulls), tuple(Reopen(version.ref, pull) for pull in answered)


# --- the fetch -----------------------------------------------------------------------------------------------------


def _handle_fetch(
    version: Version,
    event: (
        Started | Cancel | Forget | Refuse | Preempt | Reprioritize | Admitted | SpaceReserved | Nudged | RoomSought
    ),
) -> Result:
    state = version.state
    match event, state:
        case Started(want, order), Idle() | Failed() | Refused():
            version, steps = _reopen_pulls(replace(version, state=Queued(Fetch(want, order))))
            return version, (*steps, ShowQueued(version.ref, want))
        case Admitted(), Queued(fetch):
            return replace(version, state=Running(fetch)), (Run(version.ref, fetch.want),)
        case Cancel(), _:
            return _stop(version, gives_way=False)
        case Preempt(), _:
            return _stop(version, gives_way=True)
        case Refuse(_, error), _:
            return _refuse(version, error)
        case Forget(), Failed() | Refused():
            return replace(version, state=Idle(), failures=0), (ShowIdle(version.ref),)
        case Forget(), Stopping():
            return replace(version, state=replace(state, refused=None)), ()
        case Reprioritize(want), Queued() | Running() | Paused() | Blocked() | Stopping():
            state = replace(state, fetch=replace(state.fetch, want=want))
            return replace(version, state=state), (Hasten(version.ref, want),)
        case SpaceReserved(), Running(fetch):
            return replace(version, state=Running(replace(fetch, lacks_space=False))), ()
        case Nudged(), _:
            return _nudge(version)
        case RoomSought(found), Blocked(fetch) if fetch.passed is found:
            return replace(version, state=replace(state, fetch=replace(fetch, passed=not found))), ()
        case _:
            return version, ()  # it comes too late: a fetch that is stopping ends, and is planned again


def _stop(version: Version, *, gives_way: bool) -> Result:
    match version.state:
        case Queued(fetch) | Running(fetch) | Paused(fetch) | Blocked(fetch):
            return replace(version, state=Stopping(fetch, gives_way)), (Stop(version.ref, gives_way),)
        case Stopping() as stopping:
            return replace(version, state=replace(stopping, gives_way=stopping.gives_way or gives_way)), ()
        case _:
            return version, ()


def _refuse(version: Version, error: Permanent) -> Result:
    version, steps = _stop(version, gives_way=False)
    if isinstance(version.state, Stopping):
        return replace(version, state=replace(version.state, refused=error)), steps
    version, told = _fail_pulls(replace(version, state=Refused(error)), error)
    return version, (*told, ShowRefused(version.ref, error))


def _nudge(version: Version) -> Result:
    match version.state:
        case Paused(fetch) | Blocked(fetch):
            return replace(version, state=Queued(replace(fetch, passed=False))), ()
        case Queued(fetch) | Running(fetch) as state if fetch.passed:
            return replace(version, state=replace(state, fetch=replace(fetch, passed=False))), ()
        case _:
            return version, ()


def _pass_time(version: Version, now: float) -> Result:
    """A pause ends, and a failure or a verdict is looked at again. Verdicts that no pod would meet again are gone."""
    pinned = {pod.pin for pod in version.pods}
    wrong = tuple(
        replace(each, lapsed=True) if each.retry_at <= now else each
        for each in version.wrong_pins
        if each.retry_at > now or each.pin in pinned
    )
    steps: tuple[Step, ...] = () if wrong == version.wrong_pins else (Plan(version.ref),)
    version = replace(version, wrong_pins=wrong)
    match version.state:
        case Failed(retry_at=at) if at <= now:
            return replace(version, state=Idle()), (Plan(version.ref),)
        case Paused(fetch, until) | Blocked(fetch, until) if until <= now:
            return replace(version, state=Queued(fetch)), steps
        case _:
            return version, steps


# --- its end -------------------------------------------------------------------------------------------------------


def _handle_end(version: Version, event: Arrived | TryFailed | Stopped, now: float) -> Result:
    match event, version.state:
        case Arrived(digest), Running() | Stopping():
            return _arrive(version, digest)
        case TryFailed(), Running(fetch):
            return _fail(version, fetch, event, now)
        case TryFailed(error), Stopping(fetch) if isinstance(error, Permanent):
            return _fail_for_good(version, fetch, event, now)
        case ((Stopped() | TryFailed()), Stopping()):
            return _end_and_show(version)
        case Stopped(), Running():  # the daemon ends
            return _end(version, Idle())
        case _:
            return version, ()


def _arrive(version: Version, digest: Digest | None) -> Result:
    """Other pins are as wrong as before: to try them again would fetch it again."""
    wrong = tuple(each for each in version.wrong_pins if each.pin != digest)
    version, ended = _end(replace(version, recheck=False, failures=0, wrong_pins=wrong), Idle())
    return version, (*ended, ShowIdle(version.ref))


def _fail(version: Version, fetch: Fetch, failed: TryFailed, now: float) -> Result:
    if not isinstance(failed.error, Transient):
        return _fail_for_good(version, fetch, failed, now)
    error, failures = failed.error, fetch.failures + 1
    bad_responses = fetch.bad_responses + 1 if error.code == "bad_response" else 0
    if bad_responses >= MAX_BAD_RESPONSES:
        return _fail_for_good(version, fetch, replace(failed, error=hopeless(error)), now)
    short = error.code == "no_space"
    fetch = replace(fetch, failures=failures, bad_responses=bad_responses, lacks_space=short)
    until = now + pause_s(error, failures, failed.jitter)
    shown = ShowTrouble(version.ref, error)
    if short:
        return replace(version, state=Blocked(fetch, until, error)), (shown, MakeRoom(version.ref))
    return replace(version, state=Paused(fetch, until)), (shown,)


def _fail_for_good(version: Version, fetch: Fetch, failed: TryFailed, now: float) -> Result:
    """What is here and is what is asked for stays, though its source has other content now, or none: that is for those
    who had it asked again. A wrong pin is for those who pin so."""
    ref, error, want = version.ref, failed.error, fetch.want
    rechecked, version = version.recheck, replace(version, recheck=False)
    if rechecked and meets(failed.held, failed.want):
        version, told = _end_refreshes(replace(version, failures=0), error)
        version, ended = _end(version, Idle())
        return version, (LogFailure(ref, error), ShowIdle(ref), *told, *ended)
    if isinstance(error, PinMismatch) and want.pin is not None and not want.pin_promised:
        version, ended = _end_and_show(_judge_pin(version, want.pin, error, now))
        return version, (LogFailure(ref, error), *ended)
    failures = version.failures + 1
    version, told = _fail_pulls(replace(version, failures=failures), error)
    version, ended = _end(version, Failed(want, now + failed_s(failures)))
    return version, (LogFailure(ref, error), ShowFailed(ref, error), *told, *ended)


def _judge_pin(version: Version, pin: Digest, error: Permanent, now: float) -> Version:
    before = next((each.failures for each in version.wrong_pins if each.pin == pin), 0)
    others = tuple(each for each in version.wrong_pins if each.pin != pin)
    verdict = WrongPin(pin, error, before + 1, now + failed_s(before + 1))
    return replace(version, wrong_pins=(*others, verdict))


def _end(version: Version, state: Idle | Failed) -> Result:
    """The fetch is over; one that was called off to make room keeps what is known of its needs."""
    gives_way = isinstance(version.state, Stopping) and version.state.gives_way
    needs_bytes = version.needs_bytes if gives_way else 0
    return replace(version, state=state, needs_bytes=needs_bytes), (Ended(version.ref),)


def _end_and_show(version: Version) -> Result:
    """End the fetch without a failure of the version, and show its status."""
    refused = version.settled
    version, ended = _end(version, Idle())
    if isinstance(refused, Permanent):
        version, shown = _refuse(version, refused)
        return version, (*ended, *shown)
    return version, (*ended, ShowIdle(version.ref))


def _forget_failures(version: Version) -> Version:
    """All of it is tried again, pins too, as for the first time."""
    return replace(version, state=Idle(), failures=0, wrong_pins=())


def _other(want: PullWant, found: Digest) -> DigestMismatch:
    return DigestMismatch(
        f"{want.ref}: the manifest digest",
        f"{want.pin} (the pull's pin)",
        f"{found} (on this node)",
        "correct the digest, or ask for another version",
    )
