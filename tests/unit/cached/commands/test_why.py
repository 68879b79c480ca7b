"""`holdfast why`: which sentence each set of facts gets, and the status files in place of a daemon."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import pytest

from cached.commands import why
from cached.commands.reasons import explain
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from tests.support.control import ControlServer, model_status, write_heartbeat, write_status
from tests.unit.cached.commands.conftest import publish

REF = ModelRef("tiny", "v1")
DIGEST = "sha256:" + "a" * 64
TROUBLE = StatusError("unauthorized", "401 at the origin", "give the daemon a token", permanent=True)
ERROR = asdict(TROUBLE)
IDLE = {
    "state": "inactive",
    "priority": None,
    "failures": 0,
    "next_try_s": None,
    "ahead": None,
    "waiting_s": None,
    "needed_bytes": None,
    "free_bytes": None,
}
ENTRY: dict[str, Any] = {
    "found": True,
    "error": None,
    "source": "s3://models/tiny/v1/",
    "digest": None,
    "prefetch": False,
    "node_selector": {},
    "selects_node": False,
    "namespaces": None,
}


def facts(**more: Any) -> dict[str, Any]:
    """Facts of a version that nothing asks for; `fetch`, `catalog` and `status` change some of theirs."""
    status = more.pop("status", None)
    if status is not None:
        made = model_status(REF, State(status.pop("state")), **status)
        status = made.document()
    return {
        "model": REF.name,
        "version": REF.version,
        "daemon": {"running": True, "node": "n", "not_ready": None},
        "status": status,
        "digest": None,
        "bytes": None,
        "last_used": None,
        "leased": False,
        "kept_by": [],
        "pods": [],
        "asked_by": [],
        "pulls": 0,
        "refusal": None,
        "catalog": {**ENTRY, **more.pop("catalog", {})},
        "fetch": {**IDLE, **more.pop("fetch", {})},
        **more,
    }


def pod(
    name: str = "a/p",
    *,
    waiting: bool = True,
    waiting_s: float | None = None,
    error: dict[str, Any] | None = None,
    digest: str | None = None,
) -> dict[str, Any]:
    return {"pod": name, "digest": digest, "waiting": waiting, "waiting_s": waiting_s, "error": error}


CASES: dict[str, tuple[dict[str, Any], str | None, str, list[str]]] = {
    "nothing asks": (facts(), None, "not_wanted", ["Nothing on this node asks", "holdfast pull tiny@v1"]),
    "another node's rule": (
        facts(catalog={"prefetch": True, "node_selector": {"gpu": "h100"}}),
        None,
        "not_wanted",
        ["gpu=h100", "label the node"],
    ),
    "no entry": (
        facts(catalog={"found": False, "error": {**ERROR, "code": "unknown_model", "message": "tiny@v1: expected it"}}),
        None,
        "unknown_model",
        ["in no catalog entry: expected it"],
    ),
    "no catalog": (facts() | {"catalog": None}, None, "no_catalog", ["--catalog"]),
    "a turn to come": (
        facts(fetch={"state": "queued", "ahead": 3, "priority": "waiting"}, pods=[pod()]),
        "a/p",
        "queued",
        ["3 fetches, more urgent or older, come first", "for pods"],
    ),
    "the next turn": (facts(fetch={"state": "queued", "ahead": 0}), None, "queued", ["it is the next one"]),
    "a pause": (
        facts(
            fetch={"state": "paused", "failures": 2, "next_try_s": 4.2},
            status={"state": "queued", "error": StatusError("refused", "no answer", "start it", False)},
        ),
        None,
        "refused",
        ["after 2 failed tries: no answer. The next try starts in 4s.", "start it"],
    ),
    "no space": (
        facts(fetch={"state": "blocked", "needed_bytes": 2**30, "free_bytes": 2**20}, status={"state": "queued"}),
        None,
        "no_space",
        ["1.0 GiB must be free, 1.0 MiB are", "holdfast ls", "--quota"],
    ),
    "a fetch": (
        facts(
            fetch={"state": "running", "waiting_s": 65.0},
            status={"state": "fetching", "bytes_total": 200, "bytes_done": 50, "eta_s": 9.0},
            pods=[pod(waiting_s=65.0), pod("a/q", waiting_s=600.0)],
        ),
        "a/p",
        "fetching",
        ["Pod a/p asks for tiny@v1, and has been waiting for 1m05s.", "(25 %)", "9s left"],
    ),
    "several pods": (
        facts(
            fetch={"state": "running", "waiting_s": 600.0},
            status={"state": "fetching"},
            pods=[pod(waiting=False), pod("b/new", waiting_s=3.0), pod("b/old", waiting_s=600.0)],
        ),
        None,
        "fetching",
        ["asked for by pod b/old (waiting for 10m00s), pod b/new (waiting for 3s), pod a/p."],
    ),
    "a fetch in trouble": (
        facts(fetch={"state": "running"}, status={"state": "fetching", "error": TROUBLE}),
        None,
        "unauthorized",
        ["tries again: 401 at the origin", "give the daemon a token"],
    ),
    "a failure": (
        facts(fetch={"state": "failed", "next_try_s": 60.0}, status={"state": "failed", "error": TROUBLE}),
        None,
        "unauthorized",
        ["It failed: 401 at the origin. It is tried again in 1m00s."],
    ),
    "a refused pod": (
        facts(pods=[pod(error={**ERROR, "code": "forbidden_namespace"})], digest=DIGEST, bytes=1),
        "a/p",
        "forbidden_namespace",
        ["This pod can not have it"],
    ),
    "ready for a pod": (
        facts(pods=[pod(waiting=False)], digest=DIGEST, bytes=2048, leased=True, status={"state": "ready"}),
        "a/p",
        "ready",
        ["It is on this node: sha256:aaaaaaaaaaaa (2.0 KiB), ready, held by a lease", "kubectl -n a describe pod p"],
    ),
    "ready and pinned": (
        facts(digest=DIGEST, bytes=1, kept_by=["holdfast pin"], status={"state": "ready"}),
        None,
        "ready",
        ["pinned by holdfast pin"],
    ),
    "hashed again": (
        facts(digest=DIGEST, bytes=1, status={"state": "verifying", "digest": DIGEST, "held": DIGEST}),
        None,
        "checking",
        ["hashed again now"],
    ),
    "another pin than what is here": (
        facts(digest=DIGEST, bytes=1, pods=[pod(digest="sha256:" + "b" * 64)], status={"state": "ready"}),
        "a/p",
        "digest_mismatch",
        ["pinned to sha256:bbbbbbbbbbbb", "This node has sha256:aaaaaaaaaaaa"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_cause_has_its_reason_and_its_remedy(case: str) -> None:
    """A cause is told by one word, a sentence with its facts, and what to do."""
    given, asker, reason, parts = CASES[case]
    found = explain(given, asker)
    assert found.reason == reason
    for part in parts:
        assert part in f"{found.text} {found.remedy}"
    assert "None" not in found.text


def say(layout: Layout, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = why.main([*arguments, "--root", str(layout.root)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_without_a_daemon_the_status_files_answer(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """What failed, what is ready and what was never wanted is told from the files, with the daemon's absence. Each
    paragraph names its version."""
    write_heartbeat(layout, time.time() - 300)
    write_status(layout, model_status(REF, State.FAILED, error=TROUBLE))
    publish(layout, ModelRef("here", "v1"), {"a": b"a"})
    code, said = say(layout, capsys, "tiny@v1")
    assert code == 0
    assert "its last heartbeat was 5m0" in said
    assert "401 at the origin" in said
    assert "start the daemon" in said
    assert "here@v1 is on this node" in (text := say(layout, capsys, "here@v1")[1])
    assert "ready" in text
    assert "left no status" in say(layout, capsys, "never@v1")[1]
    code, said = say(layout, capsys, "team-a/llm-0")
    assert code == 1
    assert "it alone knows the pods" in said
    assert "tiny" not in said.partition("not ready:")[0]
    assert f"\n{REF} is not on this node" in said
    assert "401 at the origin" in said


def test_what_is_neither_pod_nor_version_is_a_usage_error(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """The error says both forms."""
    for text in ("@v1", "-x@v1", "Not/A/Pod", "bad pod"):
        with pytest.raises(SystemExit) as ended:
            why.main(["--root", str(layout.root), "--", text])
        assert ended.value.code == 2
    assert "expected a pod as namespace/name or name, or a version as name@version" in capsys.readouterr().err


def test_the_daemons_own_errors_are_told(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod that the daemon does not know is its error, exit 1; an answer is the JSON object with reason and text."""
    control.answers["POST /v1/explain"] = 400, {"error": {**ERROR, "code": "unknown_pod", "message": "no pod p"}}
    assert say(layout, capsys, "p") == (1, "holdfast why: no pod p\n  what to do: give the daemon a token\n")
    control.answers["POST /v1/explain"] = 200, {"node": "n", "pod": None, "versions": [facts()]}
    code, said = say(layout, capsys, "tiny@v1", "--json")
    assert code == 0
    (version,) = json.loads(said)["versions"]
    assert (version["reason"], version["catalog"]) == ("not_wanted", ENTRY)
