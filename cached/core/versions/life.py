"""The life of one version: a record and an event give the next record and the steps to carry out.

Law: `handle` is a function of a record, an event and the time in monotonic seconds, without state. The table handles
several versions; the planner decides which of them to fetch, evict or refuse.
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
    AnswerExpired,
    AnswerPull,
    Arrived,
    CountWait,
    CountWant,
    DemandUpdated,
    Ended,
    Event,
    Evicted,
    FetchEvent,
    LogFailure,
    NeedFound,
    PauseEnded,
    Plan,
    PodsSeen,
    Pulled,
    Reopen,
    Resumed,
    SetPriority,
    ShowFailed,
    ShowIdle,
    ShowQueued,
    ShowRefused,
    ShowTrouble,
    SpacePlanned,
    SpaceReserved,
    Started,
    StartTry,
    Step,
    Stopped,
    StopTry,
    TimePassed,
    TryEnd,
    TryFailed,
)
from cached.core.versions.record import (
    Blocked,
    Failed,
    Fetch,
    Inactive,
    Paused,
    PinMismatch,
    Pull,
    Queued,
    RefusedWants,
    Running,
    Stopping,
    Version,
    WrongPin,
    meets,
)

_SMALL_BYTES, _SMALL_FILES = 64 << 20, 64  # of a fetch that is over within about a second once its files are listed

Result = tuple[Version, tuple[Step, ...]]


def handle(version: Version, event: Event, now: float) -> Result:
    """Return the record after an event, and the steps to carry out, in order."""
    match event:
        case Pulled(pull, held):
            return _pull(version, pull, held=held)
        case Resumed(pull, refresh):
            return replace(version, pulls=version.pulls or (pull,), refresh_due=version.refresh_due or refresh), ()
        case PodsSeen():
            return _see_pods(version, event, now)
        case DemandUpdated():
            return _update_demand(version, event, now)
        case AnswerExpired(id_):
            return replace(version, pulls=tuple(pull for pull in version.pulls if pull.id != id_)), ()
        case Evicted():
            return replace(version, counted=False, pulled_pin=None), ()
        case NeedFound(total_bytes):
            return replace(version, needs_bytes=max(version.needs_bytes, total_bytes)), ()
        case Arrived() | TryFailed() | Stopped():
            return _handle_end(version, event, now)
        case TimePassed():
            return _pass_time(version, now)
        case _:
            return _handle_fetch(version, event)


# --- wants ---------------------------------------------------------------------------------------------------------


def _pull(version: Version, pull: Pull, *, held: bool) -> Result:
    refresh_due = version.refresh_due or (pull.refresh and held)
    version = replace(version, pulls=(*version.pulls, pull), counted=False, refresh_due=refresh_due)
    if version.fetch is None:
        return _forget_failures(version), (ShowIdle(version.ref),) if version.failure is not None else ()
    if pull.refresh:
        return _stop(version, preempted=False)  # it starts over with a new listing; its bytes stay
    return _end_pause(version)


def _see_pods(version: Version, seen: PodsSeen, now: float) -> Result:
    """Record the pods: a wait begins with the first one, unless the node holds the version; a new pod resets an earlier
    failure."""
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


def _update_demand(version: Version, update: DemandUpdated, now: float) -> Result:
    ref, want, held = version.ref, update.want, update.held
    if version.refresh_due and (want is None or held is None):
        version = replace(version, refresh_due=False)
    version, steps = _refuse_pins(version, update.refused_pins)
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
    if want is None and not update.refused and isinstance(version.state, Inactive):
        pulled_pin = None if held is None else version.pulled_pin
        version = replace(version, failures=0, needs_bytes=0, pulled_pin=pulled_pin)
    return version, steps


def _end_wait(version: Version, now: float) -> Result:
    if version.waiting_since is None:
        return version, ()
    return replace(version, waiting_since=None), (CountWait(version.ref, now - version.waiting_since),)


def _refuse_pins(version: Version, refused_pins: Mapping[Digest, Permanent]) -> Result:
    """Answer the pulls whose pins cannot be met, and no others."""
    wrong = [
        (pull, refused_pins[pull.want.pin]) for pull in version.pulls if pull.want.pin and pull.want.pin in refused_pins
    ]
    return _close(version, [replace(pull, error=error) for pull, error in wrong])


def _meet_pulls(version: Version, digest: Digest) -> Result:
    """Answer the pulls of a version that the node holds as wanted: with an error where a pull pins another digest."""
    answered, pulled_pin = [], version.pulled_pin
    for pull in version.pulls:
        if pull.want.pin in (None, digest):
            answered.append(replace(pull, digest=digest, error=None))
            pulled_pin = pull.want.pin
        else:
            answered.append(replace(pull, error=_pin_error(pull.want, digest)))
    version, steps = _close(version, answered)
    return (replace(version, pulled_pin=pulled_pin) if answered else version), steps


def _close(version: Version, answered: Collection[Pull]) -> Result:
    """Remove these pulls with their final answers."""
    if not answered:
        return version, ()
    ids = {pull.id for pull in answered}
    left = tuple(pull for pull in version.pulls if pull.id not in ids)
    return replace(version, pulls=left), tuple(AnswerPull(pull, asks=False) for pull in answered)


def _fail_pulls(version: Version, error: HoldfastError) -> Result:
    """Answer all pulls with an error; each stays in the record until its answer expires."""
    pulls = tuple(replace(pull, digest=None, error=error) for pull in version.pulls)
    return replace(version, pulls=pulls), tuple(AnswerPull(pull, asks=True) for pull in pulls)


def _reopen_pulls(version: Version) -> Result:
    answered = [pull for pull in version.pulls if pull.error is not None]
    pulls = tuple(replace(pull, error=None) for pull in version.pulls)
    return replace(version, pulls=pulls), tuple(Reopen(pull) for pull in answered)


# --- the fetch -----------------------------------------------------------------------------------------------------


def _handle_fetch(version: Version, event: FetchEvent) -> Result:
    state = version.state
    match event, state:
        case Started(want, order), Inactive() | Failed() | RefusedWants():
            version, steps = _reopen_pulls(replace(version, state=Queued(Fetch(want, order))))
            return version, (*steps, ShowQueued(version.ref, want))
        case Admitted(), Queued(fetch):
            return replace(version, state=Running(fetch)), (StartTry(version.ref, fetch.want),)
        case Cancel(), _:
            return _stop(version, preempted=False)
        case Preempt(), _:
            return _stop(version, preempted=True)
        case Refuse(_, error), _:
            return _refuse(version, error)
        case Forget(), Failed() | RefusedWants():
            return replace(version, state=Inactive(), failures=0), (ShowIdle(version.ref),)
        case Forget(), Stopping():
            return replace(version, state=replace(state, refused=None)), ()
        case Reprioritize(want), Queued() | Running() | Paused() | Blocked() | Stopping():
            state = replace(state, fetch=replace(state.fetch, want=want))
            return replace(version, state=state), (SetPriority(version.ref, want),)
        case SpaceReserved(size_bytes, files), Running(fetch):
            is_small = size_bytes <= _SMALL_BYTES and files <= _SMALL_FILES
            return replace(version, state=Running(replace(fetch, lacks_space=False), is_small)), ()
        case PauseEnded(), _:
            return _end_pause(version)
        case SpacePlanned(found), Blocked(fetch) if fetch.skipped is found:
            return replace(version, state=replace(state, fetch=replace(fetch, skipped=not found))), ()
        case _:
            return version, ()  # too late: a fetch that is stopping ends, and is planned again


def _stop(version: Version, *, preempted: bool) -> Result:
    match version.state:
        case Queued(fetch) | Running(fetch) | Paused(fetch) | Blocked(fetch):
            return replace(version, state=Stopping(fetch, preempted)), (StopTry(version.ref, preempted),)
        case Stopping() as stopping:
            return replace(version, state=replace(stopping, preempted=stopping.preempted or preempted)), ()
        case _:
            return version, ()


def _refuse(version: Version, error: Permanent) -> Result:
    version, steps = _stop(version, preempted=False)
    if isinstance(version.state, Stopping):
        return replace(version, state=replace(version.state, refused=error)), steps
    version, told = _fail_pulls(replace(version, state=RefusedWants(error)), error)
    return version, (*told, ShowRefused(version.ref, error))


def _end_pause(version: Version) -> Result:
    match version.state:
        case Paused(fetch) | Blocked(fetch):
            return replace(version, state=Queued(replace(fetch, skipped=False))), ()
        case Queued(fetch) | Running(fetch) as state if fetch.skipped:
            return replace(version, state=replace(state, fetch=replace(fetch, skipped=False))), ()
        case _:
            return version, ()


def _pass_time(version: Version, now: float) -> Result:
    """End a pause, a failure or the refusal of a pin that is due; drop the refusals of pins that no pod has."""
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
            return replace(version, state=Inactive()), (Plan(version.ref),)
        case Paused(fetch, until) | Blocked(fetch, until) if until <= now:
            return replace(version, state=Queued(fetch)), steps
        case _:
            return version, steps


# --- the end of a try ----------------------------------------------------------------------------------------------


def _handle_end(version: Version, event: TryEnd, now: float) -> Result:
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
            return _end(version, Inactive())
        case _:
            return version, ()


def _arrive(version: Version, digest: Digest | None) -> Result:
    """Keep the refusals of other pins: another try would fetch the same content again."""
    wrong = tuple(each for each in version.wrong_pins if each.pin != digest)
    version, ended = _end(replace(version, refresh_due=False, failures=0, wrong_pins=wrong), Inactive())
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
        return replace(version, state=Blocked(fetch, until, error)), (shown, Plan(version.ref))
    return replace(version, state=Paused(fetch, until)), (shown,)


def _fail_for_good(version: Version, fetch: Fetch, failed: TryFailed, now: float) -> Result:
    """End a fetch by a permanent error. A wrong pin fails for the pods and pulls with that pin only; the refresh that
    another pull asked for stays due. A refresh of content that still meets the want fails for its refreshing pulls
    only; any other error fails the version."""
    ref, error, want = version.ref, failed.error, fetch.want
    refreshed, version = version.refresh_due, replace(version, refresh_due=False)
    if isinstance(error, PinMismatch) and want.pin is not None and not want.pin_promised:
        still = refreshed and any(pull.refresh and pull.want.pin != want.pin for pull in version.pulls)
        version, ended = _end_and_show(_judge_pin(replace(version, refresh_due=still), want.pin, error, now))
        return version, (LogFailure(ref, error), *ended)
    if refreshed and meets(failed.held, failed.want):
        version, told = _close(
            replace(version, failures=0), [replace(pull, error=error) for pull in version.pulls if pull.refresh]
        )
        version, ended = _end(version, Inactive())
        return version, (LogFailure(ref, error), ShowIdle(ref), *told, *ended)
    failures = version.failures + 1
    pause = failed_s(error, failures, awaited=version.waiting_since is not None)
    version, told = _fail_pulls(replace(version, failures=failures), error)
    version, ended = _end(version, Failed(want, now + pause))
    return version, (LogFailure(ref, error), ShowFailed(ref, error), *told, *ended)


def _judge_pin(version: Version, pin: Digest, error: Permanent, now: float) -> Version:
    before = next((each.failures for each in version.wrong_pins if each.pin == pin), 0)
    others = tuple(each for each in version.wrong_pins if each.pin != pin)
    verdict = WrongPin(pin, error, before + 1, now + failed_s(error, before + 1, awaited=False))
    return replace(version, wrong_pins=(*others, verdict))


def _end(version: Version, state: Inactive | Failed) -> Result:
    """End the fetch; after a preemption keep the known need of space."""
    preempted = isinstance(version.state, Stopping) and version.state.preempted
    needs_bytes = version.needs_bytes if preempted else 0
    return replace(version, state=state, needs_bytes=needs_bytes), (Ended(version.ref),)


def _end_and_show(version: Version) -> Result:
    """End the fetch without a failure of the version, and show its status."""
    refused = version.failure
    version, ended = _end(version, Inactive())
    if isinstance(refused, Permanent):
        version, shown = _refuse(version, refused)
        return version, (*ended, *shown)
    return version, (*ended, ShowIdle(version.ref))


def _forget_failures(version: Version) -> Version:
    """Reset failures and refused pins, as before the first try."""
    return replace(version, state=Inactive(), failures=0, wrong_pins=())


def _pin_error(want: PullWant, found: Digest) -> DigestMismatch:
    return DigestMismatch(
        f"{want.ref}: the manifest digest",
        f"{want.pin} (the pull's pin)",
        f"{found} (on this node)",
        "correct the digest, or ask for another version",
    )
