"""The files of a version and the verdict on them: from its listing before a byte is fetched, from its blobs afterwards.

Law: blocking and bounded: of each blob of weights the header, of other files an engine reads the first bytes. Versions
that no engine loads are told, and fail only where the catalog requires that they load.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.contract.loadable.findings import Finding, is_loadable, not_loadable
from cached.contract.loadable.verdict import find_name_problems, find_problems
from cached.contract.loadable.weights import Read
from cached.contract.program.units import format_size
from cached.contract.status import LeftOut, Verdict
from cached.contract.trust import Trust, least_of
from cached.core.catalog import CatalogVersion
from cached.core.demand import Want
from cached.core.filters import Rules, select_files, select_paths
from cached.core.listing import Listing, RemoteFile, format_path
from cached.core.selection.copies import summarize
from cached.core.selection.needed_files import find_losses
from cached.core.selection.presets import DEFAULT, EARLIER, Indexes, files_to_read
from cached.store.disk.durable import disk_errors
from cached.store.version.publication import Publication

_log = logging.getLogger(__name__)
_VOUCHED = {
    Trust.KNOWN: "it has a sha256",
    Trust.CHECKED: "it has a sum that is weaker than sha256",
    Trust.VERSIONED: "it has a version and no sum",
    Trust.SIZED: "it has a size at most",
}


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """The chosen files of a listing, and the verdict on them by their names."""

    files: tuple[RemoteFile, ...]
    verdict: Verdict


def rules_of(entry: CatalogVersion | Want) -> Rules:
    """Return what an entry of the catalog says about the files of a version."""
    return Rules(entry.include, entry.exclude, entry.preset)


def choose_version(listing: Listing, where: str, rules: Rules, indexes: Indexes) -> VersionFiles:
    """Return the files of a version in a listing, with the verdict by their names; raises as `select_files` does."""
    selection = select_files(listing, where, rules, indexes)
    paths = [file.path for file in selection.files]
    findings = (*find_losses(selection.dropped, paths if len(paths) < 3 else set(paths)), *find_name_problems(paths))
    sizes = {file.path: file.size for file in listing.files} if selection.left_out else {}
    kinds = summarize(selection.left_out, sizes).items()
    left_out = tuple(LeftOut(kind, count, size, first) for kind, (count, size, first) in kinds)
    return VersionFiles(selection.files, Verdict(findings, left_out, least_of(file.trust for file in selection.files)))


def choose_pinned(listing: Listing) -> VersionFiles:
    """Return all files of a listing that a pin names: they were chosen before they were pinned. Its source was not
    asked, so no trust of it is recorded."""
    paths = [file.path for file in listing.files]
    return VersionFiles(listing.files, Verdict(tuple(find_name_problems(paths)), ()))


def choose_earlier(listing: Listing, where: str, rules: Rules) -> tuple[RemoteFile, ...] | None:
    """Return the files that an earlier release would have chosen, where those may be others; else None. A digest that
    was pinned then, and a version that was fetched then, rest on these."""
    if rules.preset != DEFAULT or listing.manifest is not None:
        return None
    return select_files(listing, where, replace(rules, preset=EARLIER)).files


def list_indexes(listing: Listing, rules: Rules) -> tuple[RemoteFile, ...]:
    """Return the small files that are fetched first, since their content decides what the preset picks."""
    if rules.preset == DEFAULT:
        return ()
    names = frozenset(files_to_read(rules.preset, [file.path for file in listing.files]))
    names = names.intersection(select_paths(names, rules.include, rules.exclude))
    return tuple(file for file in listing.files if file.path in names and file.problem is None)


def blob_reader(layout: Layout, sha256s: Mapping[str, str]) -> Read:
    """Return the function that reads a part of a committed blob by the path of its file; it raises `HoldfastError`."""

    def read(path: str, offset: int, length: int) -> bytes:
        with disk_errors(f"reading {path}"), layout.blob(sha256s[path]).open("rb", buffering=0) as opened:
            opened.seek(offset)
            return opened.read(length)

    return read


def judge_blobs(layout: Layout, want: Want, publication: Publication) -> None:
    """Complete the verdict by names in the record of a version whose blobs are all committed: add the findings about
    their content. Raises `HoldfastError`, and as `report_verdict`."""
    files = publication.manifest.files
    reader = blob_reader(layout, {file.path: file.sha256 for file in files})
    found = find_problems({file.path: file.size for file in files}, reader)
    by_names = publication.record.verdict
    verdict = replace(by_names, findings=_merge(by_names.findings, found))
    publication.record = replace(publication.record, verdict=verdict)
    report_verdict(want, replace(verdict, findings=found))


def report_verdict(want: Want, verdict: Verdict) -> None:
    """Log the fatal findings; raises `Permanent` where there are some and the catalog requires a loadable version."""
    for finding in verdict.findings:
        if finding.fatal:
            _log.warning("%s: may not load: %s", want.ref, finding)
    if want.require_loadable and not is_loadable(verdict.findings):
        raise not_loadable(str(want.ref), verdict.findings)


def check_trust(want: Want, where: str, files: Sequence[RemoteFile]) -> None:
    """Raise `Permanent` (`insufficient_trust`) where the source vouches for less of a file than the catalog's entry
    accepts. A pin vouches for every byte, whatever the source says."""
    least = [file for file in files if not file.trust.meets(want.trust)]
    if want.pin is not None or not least:
        return
    offered = least_of(file.trust for file in least)
    lower = "leave `trust` out" if offered is Trust.SIZED else f"set `trust: {offered}`"
    raise Permanent(
        "insufficient_trust",
        f"{want.ref}: expected files that their source vouches for as {want.trust}, found {offered} at {where}: "
        f"{len(least)} of {len(files)} files, as {format_path(least[0].path[:200])} ({_VOUCHED[least[0].trust]})",
        "publish the version with `holdfast publish`, whose manifest makes every file known, pin its `digest` in the "
        f"catalog, or {lower} in its entry; nothing was fetched",
    )


def report_left_out(want: Want, left_out: Iterable[LeftOut]) -> None:
    """Log what was left out of a version, and how to have it."""
    said = [f"{each.kind} ({each.files}: {each.example} …, {format_size(each.bytes)})" for each in left_out]
    if said:
        _log.info("%s: left out: %s; `for: all` in the catalog takes all", want.ref, "; ".join(said))


def _merge(before: tuple[Finding, ...], after: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings by name and by content; what both say of one file counts once, by its content."""
    known = {finding.path for finding in after}
    return (*(finding for finding in before if finding.path not in known or finding.code != "incomplete"), *after)
