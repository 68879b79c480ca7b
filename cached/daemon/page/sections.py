"""The sections of the page except versions and disk: daemon, figures, problems, who waits, sources, earlier errors.

Law: pure: from facts to HTML, without the present time (`markup.age`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cached.contract.program.units import format_count, format_size
from cached.contract.status import State, StatusError, timestamp
from cached.daemon.page.facts import Facts, SourceFacts, VersionFacts
from cached.daemon.page.markup import age, message, plain, text
from cached.daemon.page.rows import MOST_NAMES, describe_progress

MOVING = frozenset({State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})
_MOST_PROBLEMS = 50
_MOST_WAITING = 50
_KINDS = {
    "s3": "S3",
    "gs": "Google Cloud Storage",
    "az": "Azure Blob Storage",
    "hf": "Hugging Face Hub",
    "oci": "Registry (OCI)",
    "git": "Git",
    "ms": "ModelScope",
    "mlflow": "MLflow",
    "dvc": "DVC",
    "wandb": "Weights & Biases",
    "sagemaker": "SageMaker",
    "import": "Imported archives",
    "peer": "Other nodes",
    "dragonfly": "Dragonfly",
    "http": "HTTP",
    "file": "Local files",
    "": "Not known",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person may have to mend. `subject` and `code` are shown; `since`: UTC, None where not known."""

    subject: str
    code: str
    message: str
    remedy: str
    permanent: bool
    since: str | None = None


def list_problems(facts: Facts) -> list[Problem]:
    """Return what is wrong now, what a person must mend first."""
    found = [*_list_daemon_problems(facts), *(each for v in facts.versions for each in _list_version_problems(v))]
    return sorted(found, key=lambda each: not each.permanent)


def render_head(facts: Facts) -> str:
    """Return whether the daemon is ready, its release and since when it runs."""
    daemon, reason = facts.daemon, facts.not_ready
    state = '<span class="dot ready">Ready</span>' if reason is None else '<span class="dot failed">Not ready</span>'
    return f"{state} <small>Holdfast {text(daemon.version)}, running for {age(daemon.started)}</small>"


def render_title(facts: Facts, problems: int) -> str:
    """Return the title of the browser's tab, as plain text."""
    wrong = "" if not problems else f"{format_count(problems, 'problem')}, "
    return f"{wrong}{plain(facts.daemon.node)}: Holdfast"


def render_tiles(facts: Facts, problems: list[Problem]) -> str:
    """Return the figures at the top."""
    versions, use = facts.versions, facts.disk.use
    ready = sum(each.status.listed_state is State.READY for each in versions)
    failed = sum(each.status.state is State.FAILED for each in versions)
    moving = [each.status for each in versions if each.status.state in MOVING]
    queued = sum(each.status.state is State.QUEUED for each in versions)
    rate = sum(status.rate_bytes_per_s or 0 for status in moving)
    waiting = {pod for each in versions for pod, _ in each.waiting}
    since = min((each.waiting_since for each in versions if each.waiting_since), default=None)
    readers = format_count(len({pod for each in versions for pod in each.users}), "pod")
    used = use.capacity - use.free
    share = f"of {format_size(use.capacity)}, {100 * used // use.capacity} % full" if use.capacity else "not known now"
    return (
        "<dl class=tiles>"
        + "".join(
            (
                _tile(
                    "Versions ready",
                    f"{ready} <small>of {len(versions)}{f', {failed} failed' if failed else ''}</small>",
                ),
                _tile(
                    "Being fetched",
                    f"{len(moving)} <small>{_describe_rate(rate, len(moving), queued)}</small>",
                ),
                _tile(
                    "Pods waiting",
                    f"{len(waiting)} <small>{f'the longest for {age(since)}' if since else '&nbsp;'}</small>",
                ),
                _tile(
                    "Versions leased",
                    f"{sum(each.leased for each in versions)} <small>{readers} may read here</small>",
                ),
                _tile("Disk free", f"{format_size(use.free)} <small>{share}</small>"),
                _tile(
                    "Problems",
                    f"{len(problems)} <small>{'remedies below' if problems else 'nothing to mend'}</small>",
                    alert=any(each.permanent for each in problems),
                ),
            )
        )
        + "</dl>"
    )


def render_problems(problems: list[Problem]) -> str:
    """Return the section of what is wrong now; empty where nothing is."""
    if not problems:
        return ""
    kind = "problems" if any(each.permanent for each in problems) else "notices"
    items = "".join(_render_problem(each) for each in problems[:_MOST_PROBLEMS])
    left = len(problems) - _MOST_PROBLEMS
    more = f"<li class=soft>and {left} more: <code>holdfast status</code> has all</li>" if left > 0 else ""
    return (
        f'<section class="{kind}" aria-labelledby=h-problems><h2 id=h-problems>Problems</h2>'
        f"<ul class=list>{items}{more}</ul></section>"
    )


def render_waiting(versions: Iterable[VersionFacts]) -> str:
    """Return the section of pods and pulls that wait, the longest first; empty where none does."""
    waiting = [each for each in versions if each.waiting or each.pulls]
    if not waiting:
        return ""
    waiting.sort(key=lambda each: (each.waiting_since is None, each.waiting_since or ""))
    rows = "".join(_render_waiting(each) for each in waiting[:_MOST_WAITING])
    left = len(waiting) - _MOST_WAITING
    more = f"<p class=soft>and {format_count(left, 'version')} more</p>" if left > 0 else ""
    columns = (("w0", "Version"), ("w0", "Pods and pulls"), ("", "Why"))
    head = "".join(f'<th role=columnheader scope=col class="{width}">{name}</th>' for width, name in columns)
    return (
        "<section aria-labelledby=h-waiting><h2 id=h-waiting>Waiting</h2>"
        f"<table role=table class=cards aria-labelledby=h-waiting><thead role=rowgroup><tr role=row>{head}</tr></thead>"
        f"<tbody role=rowgroup>{rows}</tbody></table>{more}</section>"
    )


def render_sources(sources: Iterable[SourceFacts]) -> str:
    """Return the section of where bytes come from."""
    rows = "".join(map(_render_source, sources))
    body = (
        "<table role=table aria-labelledby=h-sources><thead role=rowgroup><tr role=row>"
        "<th role=columnheader scope=col>Source</th><th role=columnheader scope=col class=n>Here now</th>"
        "<th role=columnheader scope=col class=n>Received</th>"
        f"</tr></thead><tbody role=rowgroup>{rows}</tbody></table>"
        if rows
        else "<p class=soft>Nothing was fetched yet.</p>"
    )
    return f"<h2 id=h-sources>Sources</h2><p class=soft>Received: since the daemon started</p>{body}"


def render_earlier(facts: Facts) -> str:
    """Return the section of errors since the start that are over; empty where there are none."""
    now = {
        (each.status.model, each.status.version, each.status.error.code) for each in facts.versions if each.status.error
    }
    over = [each for each in facts.recent_errors if (each.ref.name, each.ref.version, each.error.code) not in now]
    if not over:
        return ""
    items = "".join(
        _render_problem(
            Problem(
                str(each.ref) + (f", {each.count} times" if each.count > 1 else ""),
                each.error.code,
                each.ref.drop_name(each.error.message),
                each.error.remedy,
                each.error.permanent,
                timestamp(each.at),
            ),
            is_over=True,
        )
        for each in over
    )
    return (
        "<section aria-labelledby=h-earlier><details data-key=earlier><summary>"
        f"<span id=h-earlier>Earlier errors ({len(over)})</span></summary>"
        "<p class=soft>Since the daemon started; none of these holds now.</p>"
        f"<ul class=list>{items}</ul></details></section>"
    )


def _list_daemon_problems(facts: Facts) -> Iterator[Problem]:
    if facts.disk_error is not None:
        error = facts.disk_error
        yield Problem("The disk", error.code, error.message, error.remedy, error.permanent)
    elif facts.not_ready is not None and facts.catalog_error is None:
        remedy = "it goes on by itself; its log says more where it does not"
        yield Problem("The daemon is not ready", "not_ready", facts.not_ready, remedy, permanent=False)
    if facts.catalog_error is not None:
        error = facts.catalog_error
        text_ = f"{error.message}; {'the last good catalog stays' if facts.has_catalog else 'no catalog is'} in force"
        yield Problem("The catalog", error.code, text_, error.remedy, permanent=True)
    for where, line, reason in facts.rejected:
        remedy = "correct this entry; the others are in force"
        yield Problem(f"The catalog, line {line}: {where}", "rejected", reason, remedy, permanent=True)
    if facts.disconnected_since is not None:
        yield Problem(
            "The Kubernetes API",
            "kube_disconnected",
            "the watch of this node's pods does not stand; the pods known last stay in force",
            "check that the API server answers this node",
            permanent=False,
            since=facts.disconnected_since,
        )


def _list_version_problems(version: VersionFacts) -> Iterator[Problem]:
    status = version.status
    name = f"{status.model}@{status.version}"
    if status.error is not None:
        yield _of_error(name, "", status.error, status.since if status.error.permanent else None)
    for pin, error in status.refused_pins.items():
        yield _of_error(name, f", for pods that pin {plain(pin)[:19]}…", error)
    for namespace, error in status.refused_namespaces.items():
        yield _of_error(name, f", for pods of {namespace}", error)
    for finding in status.verdict.findings:
        if finding.fatal:
            yield Problem(f"{name} may not load", finding.code, finding.message, finding.remedy, permanent=True)


def _of_error(name: str, whom: str, error: StatusError, since: str | None = None) -> Problem:
    text_ = error.message.removeprefix(f"{name}: ")
    return Problem(f"{name}{whom}", error.code, text_, error.remedy, error.permanent, since)


def _render_problem(problem: Problem, *, is_over: bool = False) -> str:
    when = "" if problem.since is None else f", {age(problem.since)} ago" if is_over else f", for {age(problem.since)}"
    what = "" if is_over else "" if problem.permanent else ", is tried again"
    remedy = f"<p class=remedy>{message(problem.remedy)}</p>" if problem.remedy else ""
    return (
        f"<li><h3>{message(problem.subject)}</h3> <small><code>{text(problem.code)}</code>{what}{when}</small>"
        f"<p>{message(problem.message)}</p>{remedy}</li>"
    )


def _render_waiting(version: VersionFacts) -> str:
    status = version.status
    who = "<br>".join(_render_waiting_pod(name, since) for name, since in version.waiting[:MOST_NAMES])
    more = len(version.waiting) - MOST_NAMES
    who += f"<small>and {more} more</small>" if more > 0 else ""
    if version.pulls:
        who += ("<br>" if who else "") + format_count(version.pulls, "<code>holdfast pull</code>")
    return (
        f"<tr role=row><th role=rowheader scope=row>{text(status.model)}@<b>{text(status.version)}</b></th>"
        f'<td role=cell data-l="Pods and pulls">{who}</td>'
        f'<td role=cell data-l="Why" class=num>{_explain(version)}</td></tr>'
    )


def _render_waiting_pod(name: str, since: str | None) -> str:
    return text(name) + ("" if since is None else f" <span class=soft>for {age(since)}</span>")


def _explain(version: VersionFacts) -> str:
    """Return why a pod of this version still waits."""
    status = version.status
    if status.error is not None:
        again = "" if status.error.permanent else ", is tried again"
        return f"{status.state.value}: <code>{text(status.error.code)}</code>{again}"
    if status.refused_pins or status.refused_namespaces:
        return "refused: see Problems"
    progress = describe_progress(status)
    words = {State.QUEUED: "queued: others go first", State.READY: "its digest is not the pod's pin"}
    return words.get(status.state, status.state.value) + (f", {progress}" if progress else "")


def _describe_rate(rate: float, moving: int, queued: int) -> str:
    known = f"{format_size(rate)}/s" if rate else "no rate yet" if moving else "nothing moves"
    return f"{known}, {queued} queued" if queued else known


def _render_source(source: SourceFacts) -> str:
    failed = f"<small>{format_count(source.failures, 'failed try', 'failed tries')}</small>" if source.failures else ""
    versions = f"<small>{format_count(source.versions, 'version')}</small>"
    return (
        f"<tr role=row><th role=rowheader scope=row>{text(_KINDS.get(source.kind, source.kind))}</th>"
        f'<td role=cell class="num n">{format_size(source.held_bytes)}{versions}</td>'
        f'<td role=cell class="num n">{format_size(source.received_bytes)}{failed}</td></tr>'
    )


def _tile(name: str, value: str, *, alert: bool = False) -> str:
    return f"<div{' class=alert' if alert else ''}><dt>{name}</dt><dd>{value}</dd></div>"
