"""Random lives of a node: whatever comes in whatever order, the space holds, no user loses what it uses, and what is
wanted and fits is there in the end."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.core.demand import Demand, PodWant, Priority
from cached.node.inventory import write_pins
from cached.node.recount import Recount
from cached.store.blob.ingest import allocated_bytes
from sidecar.gate.snapshot import HeldSnapshot, hold_snapshot
from tests.support.demand import compute_demand
from tests.support.in_memory import folder_in_memory
from tests.system.eviction.node import (
    ORIGIN,
    UNIT,
    Blob,
    Limits,
    Node,
    fake_time,
    is_eviction,
    manifest_of,
    nobody_knows_it,
    refused,
    unreachable,
)

REFS = [ModelRef(name, version) for name in "ab" for version in ("v1", "v2", "v3", "v4")]
BLOBS = [
    Blob(f"{kind}-{number}", units)
    for kind, sizes in (("shared", (1, 3, 6)), ("own", (2, 4, 5, 7)), ("unknown", (2, 5)), ("stream", (1, 4, 9)))
    for number, units in enumerate(sizes)
]

refs = st.sampled_from(REFS)
contents = st.lists(st.sampled_from(BLOBS), min_size=1, max_size=3, unique=True).map(tuple)
limits = st.builds(
    Limits,
    quota=st.none() | st.integers(6, 30).map(lambda units: units * UNIT),
    high=st.sampled_from([0.7, 0.9, 1.0]),
    low=st.sampled_from([0.4, 0.7]),
)
_RETRIES_S = 700  # longer than a version waits without a word for space
_TRIES = 5  # what fails for good is tried again ever more rarely, with room made for it each time
PODS = st.sampled_from(["p", "q", "r"])


pytestmark = pytest.mark.long


class Lives(RuleBasedStateMachine):
    """One node, through restarts, until nothing more comes."""

    @initialize(
        capacity=st.integers(12, 40), limits=limits, contents=st.lists(contents, min_size=len(REFS), max_size=len(REFS))
    )
    def begin(self, capacity: int, limits: Limits, contents: list[tuple[Blob, ...]]) -> None:
        self.stack = ExitStack()
        self.root = self.stack.enter_context(folder_in_memory())
        self.node = Node(self.root / "root", capacity * UNIT, self._on_job)
        self.stack.enter_context(fake_time(self.node.clock))
        for ref, content in zip(REFS, contents, strict=True):
            self.node.origin.contents[f"{ORIGIN}{ref.name}/{ref.version}"] = content
        self.limits = limits
        self.leases: dict[ModelRef, HeldSnapshot] = {}
        self.bad: set[str] = set()
        self.evicted: Counter[ModelRef] = Counter()
        self.recounted = True
        self.node.boot(limits)
        self.most = self._capacity()
        self.catalog(prefetch=frozenset(), keep=False, digests=frozenset(), wrong=frozenset())

    # --- who wants what --------------------------------------------------------------------------------------------

    @rule(
        prefetch=st.frozensets(refs, max_size=4),
        keep=st.booleans(),
        digests=st.frozensets(refs, max_size=2),
        wrong=st.frozensets(refs, max_size=1),
    )
    def catalog(
        self,
        prefetch: frozenset[ModelRef],
        keep: bool,
        digests: frozenset[ModelRef],
        wrong: frozenset[ModelRef],
    ) -> None:
        lines = ["models:"]
        for name in "ab":
            lines += [f"  {name}:", f"    pin: {str(keep and name == 'a').lower()}", "    versions:"]
            for ref in REFS:
                if ref.name == name:
                    lines.append(f"      {ref.version}:")
                    lines.append(f"        source: {ORIGIN}{ref.name}/{ref.version}")
                    if ref in wrong:
                        lines.append(f"        digest: sha256:{'f' * 64}")
                    elif ref in digests:
                        lines.append(f"        digest: {manifest_of(self.node.content(ref)).digest}")
            listed = sorted(ref.version for ref in prefetch if ref.name == name)
            if listed:
                lines.append(f"    prefetch: {{versions: [{', '.join(listed)}]}}")
        self.node.use_catalog("\n".join(lines))
        self.node.turn()

    @rule(name=PODS, ref=refs, pin=st.sampled_from(["none", "none", "none", "right", "wrong"]))
    def pod_comes(self, name: str, ref: ModelRef, pin: str) -> None:
        pins = {"none": None, "right": manifest_of(self.node.content(ref)).digest, "wrong": Digest("e" * 64)}
        self.node.cluster.wants[name] = PodWant(f"{name}-{ref}", f"default/{name}", ref, pins[pin])
        self._wake()

    @rule(name=PODS)
    def pod_goes(self, name: str) -> None:
        if self.node.cluster.wants.pop(name, None) is not None:
            self._wake()

    @rule(ref=refs)
    def pull(self, ref: ModelRef) -> None:
        self.node.reconciler.pull(ref, None, refresh=False)
        self.node.turn()

    @rule(ref=refs, keep=st.booleans())
    def pin(self, ref: ModelRef, keep: bool) -> None:
        pins = self.node.inventory.pins | {ref} if keep else self.node.inventory.pins - {ref}
        write_pins(self.node.layout, pins)
        self.node.inventory.pins = pins

    @rule(data=st.data())
    def gate_takes_a_lease(self, data: st.DataObject) -> None:
        here = sorted(self.node.inventory.models.keys() - self.leases.keys())
        if not here:
            return
        ref = data.draw(st.sampled_from(here))
        found = hold_snapshot(self.node.layout.public, ref)
        if isinstance(found, HeldSnapshot):
            self.leases[ref] = found

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def gate_ends(self, data: st.DataObject) -> None:
        self.leases.pop(data.draw(st.sampled_from(sorted(self.leases)))).lease.close()

    # --- what happens to it ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.node.jobs.waiting)
    @rule(index=st.integers(0, 3))
    def a_job_is_done(self, index: int) -> None:
        self.node.do_job(index)

    @precondition(lambda self: self.node.jobs.waiting)
    @rule()
    def all_jobs_are_done(self) -> None:
        while self.node.jobs.waiting:
            self.node.do_job(0)

    @precondition(lambda self: self.node.bytes.downloads)
    @rule(index=st.integers(0, 5), units=st.integers(1, 9))
    def bytes_come(self, index: int, units: int) -> None:
        download = self.node.bytes.downloads[index % len(self.node.bytes.downloads)]
        self.node.bytes.give(download, min(units * UNIT, _blob(download.spec.name).size))
        self.node.turn()

    @precondition(lambda self: self.node.bytes.downloads)
    @rule(index=st.integers(0, 5))
    def a_download_ends(self, index: int) -> None:
        download = self.node.bytes.downloads[index % len(self.node.bytes.downloads)]
        self.node.bytes.finish(download, _blob(download.spec.name))
        self.node.turn()

    @precondition(lambda self: self.node.bytes.downloads)
    @rule(index=st.integers(0, 5), for_good=st.booleans())
    def a_download_fails(self, index: int, for_good: bool) -> None:
        download = self.node.bytes.downloads[index % len(self.node.bytes.downloads)]
        self.node.bytes.fail(download, refused() if for_good else unreachable())
        self.node.turn()

    @rule(seconds=st.sampled_from([1.0, 20.0, 70.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.node.clock.now += seconds
        self.node.turn()

    @rule()
    def the_daemon_looks_around(self) -> None:
        """What `app` does every ten seconds."""
        self.node.begin(self.node.reconciler.update_leases())
        self.node.reconciler.retry_fitting()
        self._wake()

    @rule(units=st.integers(0, 12))
    def others_use_the_disk(self, units: int) -> None:
        reserved = self.node.ledger.compute_use().reserved  # what they take of that, no eviction gives back
        room = self.node.disk.capacity - self.node.disk.ours - reserved
        self.node.disk.others = max(0, min(units * UNIT, room))
        self._wake()

    @rule(down=st.booleans())
    def the_origin_goes_and_comes(self, down: bool) -> None:
        self.node.origin.down = unreachable() if down else None

    @precondition(lambda self: self.node.inventory.blobs)
    @rule(data=st.data())
    def a_blob_goes_bad(self, data: st.DataObject) -> None:
        known = sorted({sha for sizes in self.node.inventory.blobs.values() for sha in sizes})
        sha256 = data.draw(st.sampled_from(known))
        self.bad.add(sha256)  # a process that has it open keeps it, and no other gets it
        self.node.begin(self.node.reconciler.quarantine_blobs((sha256,)))

    @precondition(lambda self: any(self.node.layout.quarantine.iterdir()))
    @rule(data=st.data(), size=st.integers(0, 3))
    def a_person_changes_the_quarantine(self, data: st.DataObject, size: int) -> None:
        """By hand: the account does not know until the next recount."""
        path = data.draw(st.sampled_from(sorted(self.node.layout.quarantine.iterdir())))
        if size:
            path.chmod(0o600)
            os.truncate(path, min(size * UNIT, path.stat().st_size))
        else:
            path.unlink()
        self.node.disk.changed()
        self.recounted = False

    @rule()
    def recount(self) -> None:
        Recount(self.node.layout, self.node.lock, self.node.ledger, None).correct()
        self.recounted = True

    @rule()
    def gc(self) -> None:
        async def collect() -> None:
            for victim in self.node.reconciler.list_evictable():
                await self.node.reconciler.evict(victim.ref, victim.digest, "gc")
            await self.node.reconciler.sweep()

        self.node.begin(collect())

    @rule(limits=limits, synced=st.booleans())
    def crash(self, limits: Limits, synced: bool) -> None:
        self.node.crash()
        self.node.cluster.synced = synced
        self.limits = limits
        self.node.boot(limits)
        self.recounted = True
        self.most = max(self._capacity(), self.node.disk.ours)

    @precondition(lambda self: not self.node.cluster.synced)
    @rule()
    def the_first_list_comes(self) -> None:
        self.node.cluster.synced = True
        self._wake()

    # --- what always holds -----------------------------------------------------------------------------------------

    def _on_job(self, job: partial[Any]) -> None:
        """Nothing is evicted that a pod wants, that is pinned, or while that is not known; nor with its label there."""
        found = is_eviction(job)
        if found is None:
            return
        ref, digest = found
        node = self.node
        self.evicted[ref] += 1
        assert node.cluster.synced
        assert ref not in node.inventory.pins
        model = node.catalog.models.get(ref.name)
        assert model is None or not model.pin
        listed = None if model is None else model.versions.get(ref.version)
        promised = None if listed is None else listed.digest  # what a pod waits for that names no digest itself
        assert not any(w.ref == ref and (w.pin or promised) in (None, digest) for w in node.cluster.pods()), ref
        if node.inventory.names(digest) == [ref]:
            assert digest in node.cluster.held_back, "the label goes first"

    @invariant()
    def what_is_leased_is_there(self) -> None:
        for ref, held in self.leases.items():
            if self.bad & {blob.sha256 for blob in self.node.content(ref)}:
                continue
            found = hold_snapshot(self.node.layout.public, ref)
            assert isinstance(found, HeldSnapshot)
            found.lease.close()
            assert found.snapshot == held.snapshot

    @invariant()
    def what_has_a_name_is_whole(self) -> None:
        public = self.node.layout.public
        for link in public.models.glob("*/*"):
            target = link.resolve(strict=True)
            ref = ModelRef(link.parent.name, link.name)
            for blob in self.node.content(ref):
                found = os.lstat(target / blob.name)
                assert (found.st_size, found.st_nlink > 1) == (blob.size, True)

    @invariant()
    def the_space_holds(self) -> None:
        """The disk never holds more than it may, and the ledger says what the disk says."""
        node = self.node
        assert node.disk.ours <= self.most, (node.disk.ours, self.most)
        use = node.ledger.compute_use()
        assert min(use.used, use.reserved, use.dying) >= 0
        if node.bytes.downloads:
            assert use.reserved > 0 or all(download.spec.key.size is None for download in node.bytes.downloads)
        else:
            assert use.reserved == 0, "a reservation that no download has"
        if not node.jobs.waiting and self.recounted:
            assert use.used == sum(node.committed().values())
            under_way = sum(
                path.stat().st_blocks * 512
                for id_ in node.downloads.busy()
                for path in (node.layout.ingest / id_).glob("data")
            )
            assert use.dying == node.left_over() - under_way

    @invariant()
    def nothing_breaks(self) -> None:
        """No version ever fails of the disk, or of us: no part deletes what another one goes on from."""
        codes = {"disk", "internal"} | ({"blob_gone"} if not self.bad else set())
        for status in self.node.status_files.all():
            assert status.error is None or status.error.code not in codes, status

    # --- the end ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        with self.stack:
            try:
                self._come_to_rest()
                self._check_the_end()
            finally:
                for held in self.leases.values():
                    held.lease.close()
                self.node.crash()

    def _come_to_rest(self) -> None:
        node = self.node
        node.cluster.synced = True
        node.origin.down = None
        self.evicted.clear()
        quiet = begun = 0
        for _ in range(150):
            before = self._picture()
            self._work_off()
            node.clock.now += 61
            node.turn()
            if self._picture() != before:
                quiet, begun = 0, node.bytes.begun
            quiet += 1
            if quiet > _RETRIES_S / 61:
                assert node.bytes.begun - begun <= 12 * len(BLOBS), "the same bytes are fetched again and again"
                self._work_off()
                return
        raise AssertionError(f"it never comes to rest: {node.status_files.all()}, evicted {self.evicted}")

    def _work_off(self) -> None:
        """Whatever can be done without time is done."""
        self.the_daemon_looks_around()
        self.recount()
        for _ in range(100):
            if self.node.jobs.waiting:
                self.node.do_job(0)
            elif self.node.bytes.downloads:
                self.a_download_ends(0)
            else:
                break
        self.what_is_leased_is_there()
        self.what_has_a_name_is_whole()
        self.the_space_holds()
        self.nothing_breaks()

    def _check_the_end(self) -> None:
        assert all(times <= _TRIES for times in self.evicted.values()), f"evicted again and again: {self.evicted}"
        node = self.node
        demand = self._demand()
        for ref in demand.wants:
            status = node.status_files.get(ref)
            assert status is not None, f"{ref} is wanted and has no status"
            if status.state is State.FAILED:
                assert status.error is not None
                assert status.error.permanent
                assert status.error.code in ("too_large", "digest_mismatch", "not_found"), status
                if status.error.code == "too_large":
                    assert _size(node.content(ref)) > self._capacity(), "it would fit"
        for status in node.status_files.all():
            ref = ModelRef(status.model, status.version)
            if status.state in (State.READY, State.FAILED):
                continue
            assert status.error is not None, f"{ref} waits, and does not say for what"
            assert status.error.code == "no_space", status
            promised = [blob for blob in node.content(ref) if not blob.name.startswith("stream")]
            assert _size(promised) <= self._capacity(), f"{ref} never fits"
            if len(promised) < len(node.content(ref)):
                continue  # how much a stream needs shows with every try a little more
            want = demand.wants.get(ref)
            priority = Priority.PULL if want is None else want.priority
            stays = self._stays_for(priority, ref)
            here = node.publisher.claims.blobs_of(
                ref
            )  # a file without a promised digest is fetched though another version has it
            anew = {blob for blob in promised if nobody_knows_it(blob.name) and not here.get(blob.sha256)}
            least = _size((*stays, *{*promised} - anew)) + sum(blob.size for blob in anew)
            assert least > self._limit(), f"{ref} would fit beside {stays}: {self._report()}"

    def _stays_for(self, priority: Priority, waiting: ModelRef) -> tuple[Blob, ...]:
        """The blobs of what cannot be evicted for a version of this priority."""
        node = self.node
        demand = self._demand()
        kept: list[Blob] = []
        for ref, digest in node.inventory.models.items():
            model = node.catalog.models.get(ref.name)
            want = demand.wants.get(ref)
            pods = any(each.ref == ref and each.pin in (None, digest) for each in node.cluster.pods())
            met = want is not None and want.pin in (None, digest)
            kept_for_good = ref in node.inventory.pins or (model is not None and model.pin) or ref in demand.refused
            leased = ref in self.leases or digest in node.inventory.leased
            if pods or kept_for_good or leased or (met and priority is not Priority.WAITING):
                kept += node.content(ref)
        # Who waits in vain, and came first, keeps what it has.
        known, committed = {blob.sha256: blob for blob in BLOBS}, node.committed()
        for status in node.status_files.all():
            other = ModelRef(status.model, status.version)
            want = demand.wants.get(other)
            if other != waiting and (Priority.PULL if want is None else want.priority) <= priority:
                kept += [known[sha] for sha in node.publisher.claims.blobs_of(other) if sha in committed]
                theirs = node.publisher.claims.partials_of(other) - node.publisher.claims.partials_of(waiting)
                kept += [Blob(f"partial {id_}", allocated_bytes(node.layout.ingest / id_) // UNIT) for id_ in theirs]
        # What a gate reads stays on the disk, corrupt too; a right blob of the same digest needs space of its own.
        corrupt = [path.stat() for path in node.layout.quarantine.iterdir()]
        kept += [Blob(f"read {each.st_ino}", each.st_size // UNIT) for each in corrupt if each.st_nlink > 1]
        return tuple(kept)

    # --- odds and ends ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.node.reconciler.wake()
        self.node.turn()

    def _demand(self) -> Demand:
        versions = self.node.state.versions.records.values()
        pulls = [pull.want for version in versions for pull in version.pulls]
        failed = {(version.ref, pin): error for version in versions for pin, error in version.refused_pins.items()}
        return compute_demand(self.node.catalog, self.node.cluster.pods(), pulls, {}, failed)

    def _capacity(self) -> int:
        """The most that the root may ever hold, in bytes."""
        capacity = self.node.disk.capacity
        return capacity if self.limits.quota is None else min(capacity, self.limits.quota)

    def _limit(self) -> int:
        """The most that it may hold now."""
        return min(self._capacity(), self.node.disk.capacity - self.node.disk.others)

    def _report(self) -> str:
        """What there is, to look for the reason."""
        node = self.node
        here = {str(ref): [blob.name for blob in node.content(ref)] for ref in node.inventory.models}
        pods = {str(want.ref): want.pin for want in node.cluster.pods()}
        said = {
            f"{status.model}@{status.version}": (str(status.state), status.error) for status in node.status_files.all()
        }
        space = f"{node.ledger.compute_use()}, {node.disk.others} others'"
        return f"here {here}, pods {pods}, leased {list(self.leases)}, said {said}, {space}, {self.limits}"

    def _picture(self) -> object:
        """What is here, and what had to go; whatever waits or failed tries again now and then."""
        return dict(self.node.inventory.models), self.evicted.copy()


def _blob(name: str) -> Blob:
    return next(blob for blob in BLOBS if blob.name == name)


def _size(content: Iterable[Blob]) -> int:
    return sum({blob.sha256: blob.size for blob in content}.values())


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """A million log lines that say that space is short."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _live(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.timeout(600)
def test_random_lives() -> None:
    """Through any life of a node nothing used, pinned or leased goes, the budget holds, and what fits comes."""
    _live(150, 40)


@pytest.mark.slow
def test_many_random_lives() -> None:
    """The same, through many and longer lives."""
    _live(5_000, 60)
