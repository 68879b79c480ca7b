"""What pods and nodes are told of the versions they wait for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.loadable.findings import Finding
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State, StatusError, Verdict
from cached.core.demand import PodWant
from cached.kube.pod_events import PodEvents, refusal, summary
from cached.kube.pods import PodName

LLAMA = ModelRef("llama", "v3")
A, B = Digest("a" * 64), Digest("b" * 64)
GIB = 1 << 30
FETCHING = ModelStatus("llama", "v3", State.FETCHING, None, False, "s3://b/p", 2 * GIB, GIB, 1.0, 1.0, "", "", None)
QUEUED = replace(FETCHING, state=State.QUEUED, bytes_total=None, bytes_done=0)
READY = replace(FETCHING, state=State.READY, digest=str(A), bytes_done=2 * GIB)
CHECKING = replace(READY, state=State.VERIFYING, held=str(A), bytes_done=0)
WANT = PodWant("uid-1", "default/p", LLAMA, None)


def troubled(error: HoldfastError) -> ModelStatus:
    state = State.FAILED if error.permanent else State.QUEUED
    return replace(QUEUED, state=state, error=StatusError.of(error))


class Pods:
    """Who heard what."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str, str]] = []
        self.telling = PodEvents(self.tell, lambda uid: PodName(uid, "default", uid.replace("uid", "pod")))

    def tell(self, pod: PodName, reason: str, message: str, type: Any = "Normal") -> None:
        self.heard.append((pod.name, type, reason, message))

    def look(self, *statuses: ModelStatus, wants: tuple[PodWant, ...] = (WANT,)) -> list[tuple[str, str, str, str]]:
        before = len(self.heard)
        by_ref = {ModelRef(status.model, status.version): status for status in statuses}
        self.telling.send_new(wants, by_ref.get)
        return self.heard[before:]


def test_a_pod_hears_each_step_once() -> None:
    """Fetching with size and source, then ready with seconds, each once, however often one looks."""
    pods = Pods()
    assert pods.look() == pods.look(QUEUED) == []
    assert pods.look(FETCHING) == [("pod-1", "Normal", "WeightsFetching", "fetching llama@v3: 2.0 GiB from s3://b/p")]
    assert pods.look(replace(FETCHING, bytes_done=3)) == []
    [(_, kind, reason, message)] = pods.look(READY)
    assert (kind, reason) == ("Normal", "WeightsReady")
    assert message.startswith("llama@v3 is ready: 2.0 GiB, after ")
    assert message.endswith(" s")
    assert pods.look(READY) == []


def test_a_pod_hears_once_that_a_version_may_not_load() -> None:
    """A warning names the file and the remedy, as soon as it is known, beside the other steps; a note is no event."""
    pods = Pods()
    pointer = Finding("lfs_pointer", "a.safetensors", "a.safetensors is a pointer", "git lfs pull")
    note = Finding("filtered_vocabulary", "merges.txt", "left out", "add it", fatal=False)
    suspect = replace(FETCHING, verdict=Verdict((pointer,)))
    assert len(pods.look(replace(FETCHING, verdict=Verdict((note,))))) == 1
    [(_, kind, reason, message)] = pods.look(suspect)
    assert (kind, reason) == ("Warning", "WeightsSuspect")
    assert message == "llama@v3 may not load: a.safetensors is a pointer (git lfs pull)"
    assert [reason for _, _, reason, _ in pods.look(replace(READY, verdict=Verdict((pointer,))))] == ["WeightsReady"]
    assert pods.look(replace(READY, verdict=Verdict((pointer,)))) == []


def test_a_pod_on_a_warm_node_hears_so() -> None:
    """A pod that need not wait hears that its weights were here, and a second pod hears it for itself."""
    pods = Pods()
    second = replace(WANT, uid="uid-2")
    assert [message for *_, message in pods.look(READY)] == ["llama@v3 is ready: 2.0 GiB, was on this node already"]
    assert [name for name, *_ in pods.look(READY, wants=(WANT, second))] == ["pod-2"]


def test_a_failure_is_told_with_its_remedy() -> None:
    """What can never be is a warning with reason and remedy, once; what is tried again says so."""
    pods = Pods()
    trouble = troubled(Transient("source_busy", "503 from the source", "wait"))
    assert pods.look(trouble)[0][1:] == (
        "Warning",
        "WeightsFetching",
        "llama@v3: trying again: 503 from the source (wait)",
    )
    assert pods.look(trouble) == []
    failure = troubled(Permanent("unknown_model", "not in the catalog", "add it"))
    assert pods.look(failure)[0][1:] == ("Warning", "WeightsFailed", "llama@v3: not in the catalog (add it)")
    assert pods.look(failure) == []


def test_a_pin_that_differs_is_told_to_the_pod_that_has_it() -> None:
    """A pod whose pin is not what is published never starts, and hears why; others are told that they are ready."""
    pods = Pods()
    [first, second] = pods.look(READY, wants=(replace(WANT, pin=B), replace(WANT, uid="uid-2", pin=A)))
    assert first[:3] == ("pod-1", "Warning", "WeightsFailed")
    assert str(A) in first[3]
    assert str(B) in first[3]
    assert second[:3] == ("pod-2", "Normal", "WeightsReady")


def test_weights_that_were_lost_are_news_again() -> None:
    """When a version goes bad and is fetched again, the pods that want it hear all of it again."""
    pods = Pods()
    pods.look(FETCHING)
    pods.look(READY)
    assert [reason for _, _, reason, _ in pods.look(FETCHING)] == ["WeightsFetching"]
    assert [reason for _, _, reason, _ in pods.look(READY)] == ["WeightsReady"]


def test_a_pod_that_is_gone_is_forgotten() -> None:
    """Nothing is kept of pods that want nothing any more."""
    pods = Pods()
    pods.look(READY)
    pods.look(READY, wants=())
    assert len(pods.look(READY)) == 1


def test_bad_annotations_are_told_on_the_pod() -> None:
    """A pod that asks wrongly gets a warning that says how to ask."""
    pods = Pods()
    refusal(pods.tell)(PodName("uid-1", "default", "pod-1"), Permanent("invalid_annotations", "wrong", "write x"))
    assert pods.heard == [("pod-1", "Warning", "WeightsFailed", "wrong (write x)")]


def test_the_summary_is_for_a_person() -> None:
    """One line says how much is here, what is under way, and what failed; progress is coarse."""
    failed = replace(troubled(Permanent("x", "y", "z")), model="lora")
    assert summary([READY], 1 << 30, 4 << 30) == "1 version, 1.0 GiB of 4.0 GiB"
    assert summary([], 0, 4 << 30) == "0 versions, 0 B of 4.0 GiB"
    fetching = replace(FETCHING, bytes_done=int(0.47 * 2 * GIB))
    assert summary([fetching, fetching, QUEUED, failed], 0, 1 << 40) == (
        "4 versions, 0 B of 1.0 TiB; fetching llama@v3 45 % and 1 more; 1 queued; 1 failed (lora@v3)"
    )


def test_the_summary_names_every_failure() -> None:
    """Each failed version is named, of very many how many more; one that is here and could not be replaced is too."""
    failed = troubled(Permanent("x", "y", "z"))
    some = [replace(failed, model=f"m{number}") for number in range(10)]
    assert summary(some[:3], 0, 1 << 40) == "3 versions, 0 B of 1.0 TiB; 3 failed (m0@v3, m1@v3, m2@v3)"
    assert summary(some, 0, 1 << 40).endswith(
        "10 failed (m0@v3, m1@v3, m2@v3, m3@v3, m4@v3, m5@v3, m6@v3, m7@v3 and 2 more)"
    )
    kept = replace(failed, held=str(A))
    assert summary([kept, READY], 0, 1 << 40) == (
        "2 versions, 0 B of 1.0 TiB; 1 here, but what should replace them failed (llama@v3)"
    )


def test_the_summary_counts_what_ls_lists() -> None:
    """A held version counts as ready while something else is fetched under its name, and not while it is hashed."""
    replaced = replace(FETCHING, held=str(B))
    checked = replace(CHECKING, bytes_done=GIB)
    assert summary([replaced, READY], 0, 1 << 40) == "2 versions, 0 B of 1.0 TiB"
    assert summary([checked, READY], 0, 1 << 40) == ("2 versions, 0 B of 1.0 TiB; 1 ready; checking llama@v3 50 %")


def test_no_name_comes_twice() -> None:
    """A failure or an error whose message begins with the version's name is told with that name once, and one without a
    remedy without brackets."""
    pods = Pods()
    unknown = troubled(Permanent("unknown_model", f"{LLAMA}: expected the model in the catalog", "add it"))
    assert pods.look(unknown)[0][3] == "llama@v3: expected the model in the catalog (add it)"
    again = troubled(Transient("interrupted", f"{LLAMA}: a download was cancelled", ""))
    assert pods.look(again)[0][3] == "llama@v3: trying again: a download was cancelled"


def test_a_pod_hears_that_its_version_is_hashed_again() -> None:
    """While the held files are hashed again that is told, as no warning and as no fetch, and then that it is ready."""
    pods = Pods()
    pods.look(READY)
    assert pods.look(CHECKING) == [
        ("pod-1", "Normal", "WeightsChecking", "llama@v3: its files were doubted: 2.0 GiB are hashed again now")
    ]
    assert pods.look(replace(CHECKING, bytes_done=1)) == []
    assert [reason for _, _, reason, _ in pods.look(READY)] == ["WeightsReady"]
