"""The dashboard of all nodes. Law: a row is a question of an operator, its panels the answer."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build

from tools.dashboards.page import make_page, make_variable
from tools.dashboards.panels import PanelText, Query, make_bars, make_graph, make_stat, make_table

UID = "holdfast-fleet"
_M = 'model=~"$model"'
_V = "by (model, version)"
_NAME = "{{model}}@{{version}}"


def make_fleet() -> build.Dashboard:
    """Return the dashboard."""
    page = make_page("Holdfast / Fleet", UID, [make_variable("model", "label_values(holdfast_model_ready, model)")])
    _add_summary(page)
    _add_versions(page)
    _add_pods(page)
    _add_traffic(page)
    _add_disk(page)
    _add_integrity(page)
    _add_differences(page)
    _add_serving(page)
    return page


def _add_summary(page: build.Dashboard) -> None:
    page.with_row(build.Row("Is anything wrong?"))
    page.with_panel(
        make_stat(PanelText("Nodes", "Daemons that give metrics."), Query("count(holdfast_store_capacity_bytes)"))
    )
    page.with_panel(
        make_stat(
            PanelText("Waiting pods", "Pods whose weights are not on their node yet."),
            Query("sum(holdfast_pods_waiting)"),
        )
    )
    page.with_panel(
        make_stat(
            PanelText("Refused pods", "Pods that wait until a person corrects the catalog or their annotations."),
            Query("sum(holdfast_pods_refused) or vector(0)"),
            good=0,
        )
    )
    page.with_panel(
        make_stat(
            PanelText("Versions with an error", "Versions that cannot be fetched on some node, or not yet."),
            Query('count(count by (model, version) (holdfast_model_state{reason!~"|.*_changed"})) or vector(0)'),
            good=0,
        )
    )
    page.with_panel(
        make_stat(
            PanelText("Wrong checksums, 24 h", "Bytes with a wrong digest, in fetches and on disks."),
            Query("sum(increase(holdfast_verify_failures_total[24h]))"),
            good=0,
        )
    )
    page.with_panel(
        make_stat(
            PanelText("Alerts", "Alerts of Holdfast that fire now."),
            Query('count(ALERTS{alertname=~"Holdfast.*",alertstate="firing"}) or vector(0)'),
            good=0,
        )
    )


def _add_versions(page: build.Dashboard) -> None:
    page.with_row(build.Row("Is the model there, and where?"))
    page.with_panel(
        make_table(
            PanelText(
                "Versions", "Nodes with a version, and nodes that want it and lack it. One digest is what should be."
            ),
            [
                ("Ready nodes", "short", f"sum {_V} (holdfast_model_ready{{{_M}}})"),
                ("Missing nodes", "short", f"sum {_V} (1 - holdfast_model_ready{{{_M}}})"),
                ("Size", "bytes", f"max {_V} (holdfast_model_bytes{{{_M}}})"),
                ("Digests", "short", f"count {_V} (count by (model, version, digest) (holdfast_model_info{{{_M}}}))"),
                ("Stale nodes", "short", f"sum {_V} (holdfast_model_stale{{{_M}}})"),
            ],
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Ready copies", "Nodes that have each version."),
            Query(f"sum {_V} (holdfast_model_ready{{{_M}}})", _NAME),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Missing copies", "Nodes that want a version and do not have it."),
            Query(f"sum {_V} (1 - holdfast_model_ready{{{_M}}}) > 0", _NAME),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("States", "Versions on nodes, by state and reason."),
            Query("count by (state, reason) (holdfast_model_state)", "{{state}} {{reason}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_bars(
            PanelText("Fill progress", "Bytes that are there of the versions that are being fetched.", "percentunit"),
            Query(
                f"sum {_V} (holdfast_model_fetched_bytes{{{_M}}}) / sum {_V} (holdfast_model_expected_bytes{{{_M}}})",
                _NAME,
            ),
            most=1,
        )
    )


def _add_pods(page: build.Dashboard) -> None:
    page.with_row(build.Row("Who waits, for how long, and why?"))
    page.with_panel(
        make_graph(
            PanelText("Waiting pods", "Pods that wait for each version."),
            Query(f"sum {_V} (holdfast_model_pods_waiting{{{_M}}})", _NAME),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Longest wait", "How long the first pod has waited for each version on a node.", "s"),
            Query(f"max {_V} (time() - holdfast_model_waiting_since_timestamp_seconds{{{_M}}})", _NAME),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Refused pods", "By the code of the refusal."),
            Query("sum by (reason) (holdfast_pods_refused)", "{{reason}}"),
            stacked=True,
        )
    )
    fill = "sum by (le) (rate(holdfast_pod_fill_seconds_bucket[$__rate_interval]))"
    page.with_panel(
        make_graph(
            PanelText(
                "Pods filled in", "From a pod's binding until all its versions are there; 0 on a warm node.", "s"
            ),
            Query(f"histogram_quantile(0.5, {fill})", "median"),
            Query(f"histogram_quantile(0.95, {fill})", "95 %"),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Wants", "New wants of versions: there (hit), to fetch (miss), being fetched (joined)."),
            Query("sum by (result) (increase(holdfast_requests_total[$__rate_interval]))", "{{result}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Fetches", "Fetches of versions by state; no_room: nothing can be evicted for it."),
            Query("sum by (state) (holdfast_fetches)", "{{state}}"),
            stacked=True,
        )
    )


def _add_traffic(page: build.Dashboard) -> None:
    page.with_row(build.Row("Where do the bytes come from, and what did the roll-out cost?"))
    page.with_panel(
        make_graph(
            PanelText("Traffic", "Bytes from origins and peers, by the kind of source.", "Bps"),
            Query("sum by (source) (rate(holdfast_fetch_bytes_total[$__rate_interval]))", "{{source}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Bytes in the range", "Bytes of the last hour, by the kind of source.", "bytes"),
            Query("sum by (source) (increase(holdfast_fetch_bytes_total[1h]))", "{{source}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Failed attempts", "By source and error."),
            Query(
                "sum by (source, reason) (increase(holdfast_fetch_errors_total[$__rate_interval]))",
                "{{source}} {{reason}}",
            ),
            stacked=True,
        )
    )


def _add_disk(page: build.Dashboard) -> None:
    page.with_row(build.Row("What fills the disks?"))
    page.with_panel(
        make_graph(
            PanelText("Store", "Bytes of all stores by state, and what they may hold.", "bytes"),
            Query("sum by (state) (holdfast_store_bytes)", "{{state}}"),
            Query("sum(holdfast_store_capacity_bytes)", "capacity"),
        )
    )
    page.with_panel(
        make_bars(
            PanelText("Fullest nodes", "The ten fullest stores.", "percentunit"),
            Query(
                "topk(10, sum by (node, instance) (holdfast_store_bytes)"
                " / sum by (node, instance) (holdfast_store_capacity_bytes))",
                "{{node}} {{instance}}",
            ),
            most=1,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Evictions", "Evicted versions, by why."),
            Query("sum by (reason) (increase(holdfast_evictions_total[$__rate_interval]))", "{{reason}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Missing space", "Bytes that must become free before fetches can go on.", "bytes"),
            Query("sum by (node, instance) (holdfast_space_short_bytes)", "{{node}} {{instance}}"),
        )
    )


def _add_integrity(page: build.Dashboard) -> None:
    page.with_row(build.Row("Are the bytes right?"))
    page.with_panel(
        make_graph(
            PanelText("Wrong checksums", "By where they were found."),
            Query("sum by (where) (increase(holdfast_verify_failures_total[$__rate_interval]))", "{{where}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Snapshots hashed on demand", "Because a gate or a person doubted them, by outcome."),
            Query("sum by (outcome) (increase(holdfast_rechecks_total[$__rate_interval]))", "{{outcome}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText(
                "Oldest hash", "Age of the oldest hash on a node, in scrub periods; above 1 the scrub is late.", "short"
            ),
            Query("max by (node) (holdfast_scrub_oldest_age_seconds / holdfast_scrub_period_seconds)", "{{node}}"),
        )
    )


def _add_differences(page: build.Dashboard) -> None:
    page.with_row(build.Row("Which node is different?"))
    page.with_panel(
        make_graph(
            PanelText("Catalogs", "Nodes by the catalog in force."),
            Query("count by (digest) (holdfast_catalog_info)", "{{digest}}"),
            stacked=True,
            width=6,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Refused entries", "Entries of the catalog that are refused, by node."),
            Query("max by (node) (holdfast_catalog_rejected_entries)", "{{node}}"),
            width=6,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Releases", "Daemons and injectors by release."),
            Query("count by (version) (holdfast_build_info)", "{{version}}"),
            stacked=True,
            width=6,
        )
    )
    page.with_panel(
        make_graph(
            PanelText(
                "In touch with the cluster", "Nodes that watch their pods, and whose labels are as they should be."
            ),
            Query("sum(holdfast_kube_connected)", "watching"),
            Query("sum(holdfast_kube_node_in_force)", "labelled"),
            width=6,
        )
    )


def _add_serving(page: build.Dashboard) -> None:
    page.with_row(build.Row("Admission and serving"))
    page.with_panel(
        make_graph(
            PanelText("Reviews", "Pods that the injector has seen, by what became of them.", "reqps"),
            Query("sum by (result) (rate(holdfast_injector_reviews_total[$__rate_interval]))", "{{result}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_stat(
            PanelText("Certificate ends in", "The injector's serving certificate.", "s"),
            Query("min(holdfast_injector_certificate_expiry_timestamp_seconds) - time()"),
        )
    )
    page.with_panel(
        make_stat(PanelText("Ready servers", "`holdfast serve`, by its /readyz."), Query("sum(holdfast_server_ready)"))
    )
    page.with_panel(
        make_graph(
            PanelText("Requests", "Answers of the servers, by status.", "reqps"),
            Query("sum by (status) (rate(holdfast_server_requests_total[$__rate_interval]))", "{{status}}"),
            stacked=True,
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Answer time", "95 % of the answers, by model.", "s"),
            Query(
                "histogram_quantile(0.95, sum by (model, le)"
                " (rate(holdfast_server_request_seconds_bucket[$__rate_interval])))",
                "{{model}}",
            ),
        )
    )
    page.with_panel(
        make_graph(
            PanelText("Loads", "Bytes a second of each server's last load.", "Bps"),
            Query("holdfast_load_bytes_per_second", "{{instance}}"),
        )
    )
