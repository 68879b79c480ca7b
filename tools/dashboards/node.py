"""The dashboard of one node. Law: a row is a question of an operator, its panels the answer."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build

from tools.dashboards.page import make_page, make_variable
from tools.dashboards.panels import PanelText, Query, make_bars, make_graph, make_stat, make_table

UID = "holdfast-node"
_N = 'node=~"$node"'
_NAME = "{{model}}@{{version}}"
_LABELS = ("__name__", "container", "endpoint", "instance", "job", "namespace", "node", "pod")


def make_node() -> build.Dashboard:
    """Return the dashboard."""
    page = make_page(
        "Holdfast / Node", UID, [make_variable("node", "label_values(holdfast_store_capacity_bytes, node)")]
    )
    _add_summary(page)
    _add_versions(page)
    _add_pods(page)
    _add_disk(page)
    _add_bytes(page)
    _add_daemon(page)
    return page


def _add_summary(page: build.Dashboard) -> None:
    page.with_row(build.Row("Is anything wrong here?"))
    for about, expr, good in (
        (PanelText("Ready versions", "Versions that are published here."), f"sum(holdfast_model_ready{{{_N}}})", None),
        (
            PanelText("Waiting pods", "Pods whose weights are not here yet."),
            f"sum(holdfast_pods_waiting{{{_N}}})",
            None,
        ),
        (
            PanelText("Refused pods", "Pods that wait until a person corrects something."),
            f"sum(holdfast_pods_refused{{{_N}}}) or vector(0)",
            0,
        ),
        (
            PanelText("Missing space", "What must become free before fetches can go on.", "bytes"),
            f"sum(holdfast_space_short_bytes{{{_N}}})",
            0,
        ),
        (
            PanelText("Refused entries", "Entries of the catalog that are refused here."),
            f"sum(holdfast_catalog_rejected_entries{{{_N}}})",
            0,
        ),
        (
            PanelText("Out of touch", "1 while the daemon cannot watch its pods."),
            f"1 - min(holdfast_kube_connected{{{_N}}})",
            0,
        ),
    ):
        page.with_panel(make_stat(about, Query(expr), good=good))


def _add_versions(page: build.Dashboard) -> None:
    page.with_row(build.Row("What is here, and in which state?"))
    by = "by (model, version)"
    page.with_panel(
        make_table(
            PanelText("Versions", "State and reason; own bytes are what an eviction frees."),
            [
                ("State", "short", f"max by (model, version, state, reason) (holdfast_model_state{{{_N}}})"),
                ("Size", "bytes", f"max {by} (holdfast_model_bytes{{{_N}}})"),
                ("Own bytes", "bytes", f"max {by} (holdfast_model_exclusive_bytes{{{_N}}})"),
                ("Shared bytes", "bytes", f"max {by} (holdfast_model_shared_bytes{{{_N}}})"),
                ("Unused for", "s", f"time() - max {by} (holdfast_model_last_used_timestamp_seconds{{{_N}}})"),
                ("Pinned", "bool_yes_no", f"max {by} (holdfast_model_pinned{{{_N}}})"),
            ],
            hidden=_LABELS,
        )
    )
    page.with_panel(
        make_bars(
            PanelText("Fill progress", "Bytes that are there of what is being fetched or hashed again.", "percentunit"),
            Query(f"holdfast_model_fetched_bytes{{{_N}}} / holdfast_model_expected_bytes{{{_N}}}", _NAME),
            most=1,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Fetches", "By state; no_room: nothing can be evicted for it."),
            Query(f"holdfast_fetches{{{_N}}}", "{{state}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Digests", "Content of each version: where a name moves, one line ends and another begins."),
            Query(f"holdfast_model_info{{{_N}}}", _NAME + " {{digest}}"),
        )
    )


def _add_pods(page: build.Dashboard) -> None:
    page.with_row(build.Row("Who waits?"))
    page.with_panel(
        make_graph(
            PanelText("Waiting pods", "By version."), Query(f"holdfast_model_pods_waiting{{{_N}}}", _NAME), stacked=True
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Longest wait", "Of the first pod that waits for a version.", "s"),
            Query(f"time() - holdfast_model_waiting_since_timestamp_seconds{{{_N}}}", _NAME),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Refused pods", "By the code of the refusal."),
            Query(f"holdfast_pods_refused{{{_N}}}", "{{reason}}"),
            stacked=True,
        )
    )


def _add_disk(page: build.Dashboard) -> None:
    page.with_row(build.Row("What fills the disk?"))
    page.with_panel(
        make_graph(
            PanelText("Own bytes of versions", "What the eviction of each would free.", "bytes"),
            Query(f"holdfast_model_exclusive_bytes{{{_N}}}", _NAME),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Store", "Committed, reserved for fetches, dying (quarantine and the like), and free.", "bytes"),
            Query(f"holdfast_store_bytes{{{_N}}}", "{{state}}"),
            Query(f"holdfast_store_free_bytes{{{_N}}}", "free"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Evictions", "Evicted versions, by why."),
            Query(f"increase(holdfast_evictions_total{{{_N}}}[$__rate_interval])", "{{reason}}"),
            stacked=True,
        )
    )


def _add_bytes(page: build.Dashboard) -> None:
    page.with_row(build.Row("Bytes: from where, and are they right?"))
    page.with_panel(
        make_graph(
            PanelText("Traffic", "Bytes from origins and peers, by the kind of source.", "Bps"),
            Query(f"rate(holdfast_fetch_bytes_total{{{_N}}}[$__rate_interval])", "{{source}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Blob fetch time", "95 % of the blobs, from the first request to the commit.", "s"),
            Query(
                "histogram_quantile(0.95, sum by (source, le)"
                f" (rate(holdfast_fetch_seconds_bucket{{{_N}}}[$__rate_interval])))",
                "{{source}}",
            ),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Failed attempts", "By source and error."),
            Query(f"increase(holdfast_fetch_errors_total{{{_N}}}[$__rate_interval])", "{{source}} {{reason}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Other nodes", "Members of the pool, each in one state, by what this node saw of it last."),
            Query(f"holdfast_peers{{{_N}}}", "{{state}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText(
                "Last answer of a source", "Since a source of this kind last told what a version consists of.", "s"
            ),
            Query(f"time() - holdfast_source_resolved_timestamp_seconds{{{_N}}}", "{{source}}"),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Wrong checksums", "By where they were found."),
            Query(f"increase(holdfast_verify_failures_total{{{_N}}}[$__rate_interval])", "{{where}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Scrub", "Bytes a second that are hashed again.", "Bps"),
            Query(f"rate(holdfast_scrub_bytes_total{{{_N}}}[$__rate_interval])", "hashed"),
        )
    )


def _add_daemon(page: build.Dashboard) -> None:
    page.with_row(build.Row("The daemon"))
    job = f'{_N},job=~".*holdfast-daemon"'
    page.with_panel(
        make_graph(
            PanelText("Processor", "Cores in use.", "short"),
            Query(f"rate(process_cpu_seconds_total{{{job}}}[$__rate_interval])", "daemon"),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Memory", "Resident.", "bytes"), Query(f"process_resident_memory_bytes{{{job}}}", "daemon")
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Failures at the API server", "Of the pod watch, the node's labels and Events."),
            Query(f"increase(holdfast_kube_watch_failures_total{{{_N}}}[$__rate_interval])", "watch"),
            Query(f"increase(holdfast_kube_node_failures_total{{{_N}}}[$__rate_interval])", "labels"),
            Query(f"increase(holdfast_kube_event_failures_total{{{_N}}}[$__rate_interval])", "Events"),
            stacked=True,
        )
    )
