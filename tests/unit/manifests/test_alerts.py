"""The alerts: each fires for what it names and for nothing else, its metrics exist, and the runbook says what to do."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cached.contract.metrics import daemon, injector
from tests.support.manifests import REPOSITORY, objects, one
from tests.support.promtool import needs_promtool
from tests.support.runbook import RUNBOOK

GROUPS: list[dict[str, Any]] = one(objects("overlays/gpu"), "PrometheusRule", "holdfast")["spec"]["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in RULES if "record" in rule}
_GATES = "kube_pod_init_container_status"
ELSEWHERE = {
    *("up", "kube_pod_info", "kube_pod_status_phase"),
    *(f"{_GATES}_running", f"{_GATES}_restarts_total", f"{_GATES}_terminated_reason"),
}
PARTS = ("Meaning.", "Confirm.", "Cause.", "Remedy.")

_HERE = 'job="holdfast/holdfast-daemon",instance="10.0.0.1:9400",node="n1",namespace="holdfast",pod="daemon-x"'
_THERE = 'job="holdfast/holdfast-daemon",instance="10.0.0.2:9400",node="n2",namespace="holdfast",pod="daemon-y"'
_TINY = f'{_HERE},model="acme/tiny",version="v1"'
_POD = 'namespace="team",pod="p",uid="u"'
_GATE_OF_POD = f'{_POD},container="holdfast-gate"'
_NODE = {"node": "n1", "instance": "10.0.0.1:9400"}
_VERSION = {"model": "acme/tiny", "version": "v1"}
_DAY = 86400


@dataclass(frozen=True, slots=True)
class Case:
    """What `fires` an alert at the minute `at` with these labels, and what is like it and does not (`quiet`); series of
    one sample a minute, in promtool's notation."""

    alert: str
    at: int
    labels: Mapping[str, str]
    fires: Mapping[str, str]
    quiet: Mapping[str, str]
    too_early: int | None = field(default=None)


_GATE = {
    f"{_GATES}_running{{{_GATE_OF_POD}}}": "1+0x60",
    f'kube_pod_status_phase{{{_POD},phase="Pending"}}': "1+0x60",
    f'kube_pod_info{{{_POD},node="n1"}}': "1+0x60",
}
CASES = [
    Case(  # 30 GB at 50 MB/s and five minutes: fifteen
        "HoldfastPodWaitsTooLong",
        18,
        _NODE | _VERSION,
        {
            f"holdfast_model_waiting_since_timestamp_seconds{{{_TINY}}}": "0+0x60",
            f"holdfast_model_expected_bytes{{{_TINY}}}": "30e9+0x60",
        },
        {
            f"holdfast_model_waiting_since_timestamp_seconds{{{_TINY}}}": "0+0x60",
            f"holdfast_model_expected_bytes{{{_TINY}}}": "90e9+0x60",
        },
        too_early=14,
    ),
    Case(  # its files are not listed yet
        "HoldfastPodWaitsTooLong",
        8,
        _NODE | _VERSION,
        {f"holdfast_model_waiting_since_timestamp_seconds{{{_TINY}}}": "0+0x60"},
        {f"holdfast_model_waiting_since_timestamp_seconds{{{_TINY}}}": "0+60x60"},
        too_early=4,
    ),
    Case(
        "HoldfastFetchFailing",
        12,
        {**_NODE, **_VERSION, "state": "failed", "reason": "unauthorized"},
        {f'holdfast_model_state{{{_TINY},state="failed",reason="unauthorized"}}': "1+0x60"},
        {
            f'holdfast_model_state{{{_TINY},state="ready",reason=""}}': "1+0x60",
            f'holdfast_model_state{{{_TINY},state="ready",reason="source_changed"}}': "1+0x60",
            f'holdfast_model_state{{{_TINY},state="queued",reason="no_space"}}': "1+0x60",
        },
        too_early=9,
    ),
    Case(  # what is held still serves, and its successor cannot be fetched
        "HoldfastFetchFailing",
        12,
        {**_NODE, **_VERSION, "state": "ready", "reason": "digest_mismatch"},
        {f'holdfast_model_state{{{_TINY},state="ready",reason="digest_mismatch"}}': "1+0x60"},
        {f'holdfast_model_state{{{_TINY},state="fetching",reason="http_error"}}': "1+0x5 _x54"},
    ),
    Case(
        "HoldfastChecksumFailure",
        10,
        {**_NODE, "where": "scrub"},
        {f'holdfast_verify_failures_total{{{_HERE},where="scrub"}}': "0+0x5 1+0x60"},
        {f'holdfast_verify_failures_total{{{_HERE},where="scrub"}}': "7+0x60"},
    ),
    Case(
        "HoldfastDiskShort",
        12,
        _NODE,
        {f'holdfast_fetches{{{_HERE},state="no_room"}}': "1+0x60"},
        {
            f'holdfast_fetches{{{_HERE},state="no_room"}}': "0+0x60",
            f'holdfast_fetches{{{_HERE},state="blocked"}}': "3+0x60",
        },
        too_early=9,
    ),
    Case(
        "HoldfastCatalogRejected",
        7,
        _NODE,
        {
            f"holdfast_catalog_rejected_entries{{{_HERE}}}": "2+0x60",
            f"holdfast_catalog_unusable{{{_HERE}}}": "0+0x60",
        },
        {
            f"holdfast_catalog_rejected_entries{{{_HERE}}}": "0+0x60",
            f"holdfast_catalog_unusable{{{_HERE}}}": "0+0x60",
        },
        too_early=4,
    ),
    Case(
        "HoldfastCatalogRejected",
        7,
        _NODE,
        {
            f"holdfast_catalog_rejected_entries{{{_HERE}}}": "0+0x60",
            f"holdfast_catalog_unusable{{{_HERE}}}": "1+0x60",
        },
        {f"holdfast_catalog_unusable{{{_HERE}}}": "1+0x2 0+0x60"},
    ),
    Case(  # the injector's copy
        "HoldfastCatalogRejected",
        7,
        _NODE,
        {f"holdfast_injector_catalog_unusable{{{_HERE}}}": "1+0x60"},
        {f"holdfast_injector_catalog_unusable{{{_HERE}}}": "0+0x60"},
    ),
    Case(
        "HoldfastDigestsDiffer",
        62,
        _VERSION,
        {
            f'holdfast_model_info{{{_TINY},digest="aaa"}}': "1+0x90",
            f'holdfast_model_info{{{_THERE},model="acme/tiny",version="v1",digest="bbb"}}': "1+0x90",
        },
        {
            f'holdfast_model_info{{{_TINY},digest="aaa"}}': "1+0x90",
            f'holdfast_model_info{{{_THERE},model="acme/tiny",version="v1",digest="aaa"}}': "1+0x90",
            f'holdfast_model_info{{{_THERE},model="acme/tiny",version="v2",digest="bbb"}}': "1+0x90",
        },
        too_early=58,
    ),
    Case(  # no daemon was ever scraped there
        "HoldfastDaemonAbsent",
        7,
        {"node": "n1"},
        {**_GATE, f"up{{{_THERE}}}": "1+0x60"},
        {**_GATE, f"up{{{_HERE}}}": "1+0x60"},
        too_early=4,
    ),
    Case(  # a gate that is a sidecar goes on running in a pod that runs
        "HoldfastDaemonAbsent",
        7,
        {"node": "n1"},
        {**_GATE, f"up{{{_HERE}}}": "0+0x60"},
        {**_GATE, f'kube_pod_status_phase{{{_POD},phase="Pending"}}': "0+0x60"},
    ),
    Case(
        "HoldfastTargetDown",
        12,
        {**_NODE, "job": "holdfast/holdfast-daemon"},
        {f"up{{{_HERE}}}": "0+0x60"},
        {f"up{{{_HERE}}}": "1+0x60", 'up{job="other",instance="x"}': "0+0x60"},
        too_early=9,
    ),
    Case(
        "HoldfastCertificateExpires",
        17,
        _NODE,
        {f"holdfast_injector_certificate_expiry_timestamp_seconds{{{_HERE}}}": f"{6 * _DAY}+0x60"},
        {f"holdfast_injector_certificate_expiry_timestamp_seconds{{{_HERE}}}": f"{30 * _DAY}+0x60"},
        too_early=14,
    ),
    Case(  # none was ever made
        "HoldfastCertificateExpires",
        17,
        _NODE,
        {f"holdfast_injector_certificate_expiry_timestamp_seconds{{{_HERE}}}": "0+0x60"},
        {f"holdfast_injector_certificate_expiry_timestamp_seconds{{{_HERE}}}": f"0+0x3 {90 * _DAY}+0x60"},
    ),
    Case(
        "HoldfastScrubTooOld",
        62,
        _NODE,
        {
            f"holdfast_scrub_oldest_age_seconds{{{_HERE}}}": f"{11 * _DAY}+60x90",
            f"holdfast_scrub_period_seconds{{{_HERE}}}": f"{7 * _DAY}+0x90",
        },
        {
            f"holdfast_scrub_oldest_age_seconds{{{_HERE}}}": f"{9 * _DAY}+60x90",
            f"holdfast_scrub_period_seconds{{{_HERE}}}": f"{7 * _DAY}+0x90",
        },
        too_early=58,
    ),
    Case(
        "HoldfastGateRefused",
        7,
        {**_NODE, "reason": "unknown_model"},
        {f'holdfast_pods_refused{{{_HERE},reason="unknown_model"}}': "2+0x60"},
        {f"holdfast_pods_waiting{{{_HERE}}}": "2+0x60"},
        too_early=4,
    ),
    Case(
        "HoldfastGateExits",
        10,
        {"namespace": "team", "pod": "p"},
        {f"{_GATES}_restarts_total{{{_GATE_OF_POD}}}": "0+0x5 1+0x60"},
        {f'kube_pod_init_container_status_restarts_total{{{_POD},container="other"}}': "0+0x5 1+0x60"},
    ),
    Case(  # a pod that is not started again
        "HoldfastGateExits",
        10,
        {"namespace": "team", "pod": "p"},
        {
            f'{_GATES}_terminated_reason{{{_GATE_OF_POD},reason="{reason}"}}': on
            for reason, on in (("Completed", "0+0x60"), ("Error", "1+0x60"))
        },
        {
            f'{_GATES}_terminated_reason{{{_GATE_OF_POD},reason="{reason}"}}': on
            for reason, on in (("Completed", "1+0x60"), ("Error", "0+0x60"))
        },
    ),
    Case(
        "HoldfastSnapshotDoubted",
        10,
        {**_NODE, "outcome": "restored"},
        {f'holdfast_rechecks_total{{{_HERE},outcome="restored"}}': "0+0x5 1+0x60"},
        {f'holdfast_rechecks_total{{{_HERE},outcome="right"}}': "0+0x5 1+0x60"},
    ),
    Case(
        "HoldfastNodeOutOfTouch",
        17,
        _NODE,
        {
            f"holdfast_kube_connected{{{_HERE}}}": "0+0x60",
            f"holdfast_kube_node_in_force{{{_HERE}}}": "1+0x60",
        },
        {
            f"holdfast_kube_connected{{{_HERE}}}": "1+0x60",
            f"holdfast_kube_node_in_force{{{_HERE}}}": "1+0x60",
        },
        too_early=14,
    ),
]


@needs_promtool
@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_for_what_it_names_and_for_nothing_else(tmp_path: Path, name: str) -> None:
    """The alert fires with its labels and its text when its time has passed, not before, and not for what is alike."""
    cases = [case for case in CASES if case.alert == name]
    assert cases, f"no case for {name}"
    groups = []
    for case in cases:
        annotations = _fill(ALERTS[name]["annotations"], case.labels)
        labels = {**case.labels, **ALERTS[name]["labels"]}
        groups.append(_group(case, case.fires, case.at, [{"exp_labels": labels, "exp_annotations": annotations}]))
        groups.append(_group(case, case.quiet, case.at, []))
        if case.too_early is not None:
            groups.append(_group(case, case.fires, case.too_early, []))
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": GROUPS}))
    (tmp_path / "tests.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": groups}))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    """`promtool check rules` finds no fault in expressions and templates, and nothing that comes twice."""
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": GROUPS}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_every_metric_of_a_rule_exists() -> None:
    """A rule names metrics of the tables, rules that are recorded, and those of Prometheus and kube-state-metrics."""
    known = {metric.name for metric in (*daemon.ALL, *injector.ALL)} | RECORDS.keys() | ELSEWHERE
    for rule in RULES:
        named = set(re.findall(r"\b(?:\w+:)?(?:holdfast|kube)_\w+(?::\w+)?|\bup\b(?={)", rule["expr"]))
        assert named and named <= known, (rule, named - known)


@pytest.mark.parametrize("name", ALERTS)
def test_the_runbook_says_what_to_do(name: str) -> None:
    """Each alert leads to its own section of the runbook, which has the meaning, a way to confirm it, causes and a
    remedy."""
    page, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")
    assert (REPOSITORY / page, anchor) == (RUNBOOK, name.lower())
    _, found, rest = RUNBOOK.read_text().partition(f"\n## {name}\n")
    assert found, name
    section = rest.partition("\n## ")[0]
    assert [part for part in PARTS if f"**{part}**" in section] == list(PARTS)


def test_the_runbook_has_no_other_alerts() -> None:
    """A section named like an alert belongs to one."""
    sections = re.findall(r"^## (Holdfast\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(ALERTS)


def _group(case: Case, series: Mapping[str, str], minute: int, expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": f"{case.alert} at {minute} min",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": expected}],
    }


def _fill(annotations: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations with labels in place of `{{ $labels.name }}`."""
    return {
        key: re.sub(r"{{ \$labels\.(\w+) }}", lambda match: labels.get(match[1], ""), text)
        for key, text in annotations.items()
    }
