"""Why a version is as it is on this node: one paragraph from the annotation to the bytes, and what to do.

Law: pure. The facts are those of `cached/daemon/api/explain.py`, or what the status files say while the daemon is down;
a sentence is said only of a fact that is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRef

_SHOWN = 3
_ASKERS = {"pull": "`holdfast pull`", "prefetch": "the catalog's prefetch rule"}
_WAITS_FOR = {"waiting": "for pods", "pull": "for pulls", "prefetch": "ahead of pods"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """`reason`: one word, as an error's code; `text`: a paragraph; `remedy`: what to do, empty for nothing."""

    reason: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Verdict:
    reason: str
    sentence: str
    remedy: str


def explain(facts: dict[str, Any], pod: str | None) -> Explanation:
    """Explain a version, to `pod` (`namespace/name`) if one is given."""
    ref = ModelRef(facts["model"], facts["version"])
    verdict = _judge(ref, facts, pod)
    sentence = verdict.sentence
    if not facts["daemon"]["running"] and sentence.startswith("It "):  # no sentence before it names the version
        sentence = f"{ref}{sentence.removeprefix('It')}"
    sentences = [_describe_asking(ref, facts, pod), _describe_entry(facts), sentence]
    return Explanation(verdict.reason, " ".join(filter(None, sentences)), verdict.remedy)


# --- who asks, and what the catalog says ---------------------------------------------------------------------------


def _describe_asking(ref: ModelRef, facts: dict[str, Any], pod: str | None) -> str:
    if not facts["daemon"]["running"]:
        return ""
    waiting = facts["fetch"]["waiting_s"]
    waits = "" if waiting is None else f", and has been waiting for {format_duration(waiting)}"
    if pod is not None:
        mine = _find_pod(facts, pod)
        pinned = "" if mine is None or mine["digest"] is None else f", pinned to {_short(mine['digest'])}"
        own_s = None if mine is None else mine.get("waiting_s")
        waits = waits if own_s is None else f", and has been waiting for {format_duration(own_s)}"
        return f"Pod {pod} asks for {ref}{pinned}{waits if mine is not None and mine['waiting'] else ''}."
    askers = [_describe_asker(each) for each in sorted(facts["pods"], key=lambda each: -(each.get("waiting_s") or 0))]
    askers += [_ASKERS.get(each, each) for each in facts["asked_by"] if not each.startswith("pod ")]
    if not askers:
        return f"Nothing on this node asks for {ref}."
    more = f" and {len(askers) - _SHOWN} more" if len(askers) > _SHOWN else ""
    return f"{ref} is asked for by {', '.join(askers[:_SHOWN])}{more}."


def _describe_asker(pod: dict[str, Any]) -> str:
    waiting_s = pod.get("waiting_s")
    return f"pod {pod['pod']}" + ("" if waiting_s is None else f" (waiting for {format_duration(waiting_s)})")


def _describe_entry(facts: dict[str, Any]) -> str:
    catalog, status = facts["catalog"], facts["status"]
    if catalog is None or not catalog["found"]:
        return ""
    shown = catalog.get("source") or (status or {}).get("source")
    source = f" from {shown}" if shown else ""
    pinned = f", pinned to {_short(catalog['digest'])}" if catalog["digest"] else ""
    return f"The catalog has it{source}{pinned}."


# --- what holds ----------------------------------------------------------------------------------------------------


def _judge(ref: ModelRef, facts: dict[str, Any], pod: str | None) -> _Verdict:
    mine = None if pod is None else _find_pod(facts, pod)
    if mine is not None and mine["error"] is not None:
        return _from_error(mine["error"], "This pod can not have it: ")
    if facts["digest"] is not None and not (mine is not None and mine["waiting"]):
        return _judge_held(facts, pod)
    if not facts["daemon"]["running"]:
        return _judge_without_daemon(facts)
    if facts["catalog"] is None:
        why = facts["daemon"]["not_ready"] or "it is not read yet"
        return _Verdict(
            "no_catalog", f"The daemon has no catalog: {why}.", "look at the daemon's --catalog and its log"
        )
    if facts["digest"] is not None and mine is not None and facts["fetch"]["state"] == "inactive":
        text = f"This node has {_short(facts['digest'])} of it, and others ask for that: the pod's gate ends with 65."
        return _Verdict("digest_mismatch", text, "correct the pod's holdfast.dev/digest, or ask for another version")
    return _judge_fetch(ref, facts)


def _judge_held(facts: dict[str, Any], pod: str | None) -> _Verdict:
    status, digest = facts["status"], _short(facts["digest"])
    state = "ready" if status is None else status["state"]
    size = "" if facts["bytes"] is None else f" ({format_size(facts['bytes'])})"
    here = f"It is on this node: {digest}{size}"
    if state == "verifying" and status["digest"] == facts["digest"]:
        share = _describe_progress(status)
        text = f"{here}, and hashed again now because a gate or a person doubted it{share}; gates wait for the verdict."
        return _Verdict("checking", text, "wait; `holdfast status` tells the outcome")
    used = ", held by a lease" if facts["leased"] else ""
    if facts["last_used"] is not None and not facts["leased"]:
        used = f", last used {facts['last_used']}"
    kept = f", pinned by {' and '.join(facts['kept_by'])}" if facts["kept_by"] else ""
    stale = _describe_stale(status)
    fatal = [each for each in (status or {}).get("findings", ()) if each["fatal"]]
    if fatal:
        text = f"{here}, ready{used}{kept}{stale}; but an engine may not load it: {fatal[0]['message']}."
        return _Verdict("not_loadable", text, fatal[0]["remedy"])
    silent = f" The daemon does not answer ({facts['daemon']['not_ready']}), which no gate needs."
    down = "" if facts["daemon"]["running"] else silent
    text = f"{here}, ready{used}{kept}{stale}.{down}"
    error = None if status is None else status["error"]
    if status is not None and status["state"] != "ready" and error is not None:
        text += f" Its newer content is not here: {error['message']}."
        return _Verdict("stale", text, error["remedy"])
    if pod is None:
        return _Verdict("ready", text, "")
    namespace, _, name = pod.partition("/")
    text += " Its gate can open: if the pod does not start, the weights are not the reason."
    return _Verdict(
        "ready", text, f"`kubectl -n {namespace} describe pod {name}`, and the log of its container holdfast-gate"
    )


def _describe_stale(status: dict[str, Any] | None) -> str:
    stale = None if status is None else status["stale"]
    if stale is None:
        return ""
    whose = "the catalog asks for" if stale["reason"] == "catalog_changed" else "its source has"
    return f", stale since {stale['since']}: {whose} other content now"


def _judge_without_daemon(facts: dict[str, Any]) -> _Verdict:
    status = facts["status"]
    silent = facts["daemon"]["not_ready"]
    text = f"It is not on this node, and the daemon does not answer ({silent}): while it is down nothing is fetched."
    remedy = "start the daemon; what it had fetched is kept"
    if status is None:
        return _Verdict("daemon_down", f"{text} It left no status of it.", remedy)
    text += f" When it stopped its state was {status['state']}{_describe_progress(status)}."
    if status["error"] is not None:
        text += f" The last error: {status['error']['message']}."
        remedy += f"; for the error: {status['error']['remedy']}" if status["error"]["remedy"] else ""
    return _Verdict("daemon_down", text, remedy)


def _judge_fetch(ref: ModelRef, facts: dict[str, Any]) -> _Verdict:
    fetch, status = facts["fetch"], facts["status"] or {}
    error = status.get("error")
    again = _describe_next(fetch)
    match fetch["state"]:
        case "refused":
            return _from_error(facts["refusal"] or error or {}, "It is refused: ")
        case "failed":
            return _from_error(error or {}, "It failed: ", f" It is tried again{again}." if again else "")
        case "blocked":
            return _judge_space(facts, again)
        case "paused":
            tries = f" after {_count(fetch['failures'], 'failed try', 'failed tries')}" if fetch["failures"] else ""
            before = f"It waits{tries}: "
            return _from_error(error or {}, before, f" The next try starts{again}.")
        case "queued":
            return _judge_queued(fetch)
        case "running" | "stopping":
            return _judge_running(status, error)
        case _:
            return _judge_unwanted(ref, facts)


def _judge_space(facts: dict[str, Any], again: str) -> _Verdict:
    fetch, error = facts["fetch"], (facts["status"] or {}).get("error") or {}
    text = f"It has no space: {error.get('message', 'the disk is full')}."
    if fetch["needed_bytes"] is not None:
        needed, free = format_size(fetch["needed_bytes"]), format_size(fetch["free_bytes"])
        text = f"It has no space: {needed} must be free, {free} are, and nothing here may go for it: all else is "
        text += "wanted, in use or pinned."
    text += f" It goes on as soon as there is enough{', and is tried' + again if again else ''}."
    remedy = (
        "`holdfast ls` says what holds the disk, and what keeps it there: unpin or delete what is not needed, raise "
    )
    remedy += "--quota, or give the node a larger disk"
    return _Verdict("no_space", text, remedy)


def _judge_queued(fetch: dict[str, Any]) -> _Verdict:
    ahead = fetch["ahead"] or 0
    others = f"{_count(ahead, 'fetch', 'fetches')}, more urgent or older, {'comes' if ahead == 1 else 'come'} first"
    whom = _WAITS_FOR.get(fetch["priority"] or "")
    text = (
        f"It waits for its turn{f' to be fetched {whom}' if whom else ''}: {others if ahead else 'it is the next one'}."
    )
    return _Verdict("queued", text, "`holdfast status` lists what is fetched now")


def _judge_running(status: dict[str, Any], error: dict[str, Any] | None) -> _Verdict:
    state = status.get("state", "queued")
    doing = {
        "queued": "begins",
        "resolving": "waits for its source to list its files",
        "fetching": "is being fetched",
        "verifying": "has all its bytes, which are being hashed and committed",
        "publishing": "is being published",
    }.get(state, f"is {state}")
    text = f"It {doing}{_describe_progress(status)}."
    if error is not None:
        return _from_error(error, f"{text} There is trouble, and the daemon tries again: ")
    return _Verdict(state, text, "wait; `holdfast status --watch` follows it")


def _judge_unwanted(ref: ModelRef, facts: dict[str, Any]) -> _Verdict:
    catalog = facts["catalog"]
    if not catalog["found"]:
        error = {**catalog["error"], "message": ref.drop_name(catalog["error"]["message"])}
        return _from_error(error, "It is in no catalog entry: ")
    if catalog["prefetch"] and not catalog["selects_node"]:
        wanted = ", ".join(f"{key}={value}" for key, value in sorted(catalog["node_selector"].items()))
        text = f"It is not here: its prefetch rule is for nodes with {wanted}, and this node is none."
        return _Verdict("not_wanted", text, f"label the node, or fetch it now: `holdfast pull {ref}`")
    return _Verdict(
        "not_wanted",
        "It is not here: nothing is fetched before something asks for it, and what nothing wants may be evicted.",
        f"annotate a pod, add `prefetch` to its entry, or fetch it now: `holdfast pull {ref}`",
    )


# --- words ---------------------------------------------------------------------------------------------------------


def _from_error(error: dict[str, Any], before: str, after: str = "") -> _Verdict:
    message = error.get("message", "no reason was given").rstrip(".")
    return _Verdict(error.get("code", "unknown"), f"{before}{message}.{after}", error.get("remedy", ""))


def _find_pod(facts: dict[str, Any], pod: str) -> dict[str, Any] | None:
    return next((each for each in facts["pods"] or () if each["pod"] == pod), None)


def _describe_next(fetch: dict[str, Any]) -> str:
    seconds = fetch["next_try_s"]
    return "" if seconds is None else " at once" if seconds < 1 else f" in {format_duration(seconds)}"


def _describe_progress(status: dict[str, Any]) -> str:
    total, done = status.get("bytes_total"), status.get("bytes_done") or 0
    if not total:
        return ""
    text = f": {format_size(done)} of {format_size(total)} ({100 * done // total} %)"
    if status.get("rate_bytes_per_s"):
        text += f", {format_size(status['rate_bytes_per_s'])}/s"
    if status.get("eta_s") is not None:
        text += f", {format_duration(status['eta_s'])} left"
    return text


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]
