"""The kinds of panels that the dashboards use, with one look for all.

Law: a panel has a title, a sentence that says what it shows and how to read it, a unit, and queries; nothing else
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_GREEN, _AMBER, _RED = "green", "orange", "red"
_STAT_HEIGHT, _HEIGHT = 4, 8
_WIDTH = 24  # of a dashboard


@dataclass(frozen=True, slots=True)
class Query:
    """An expression in PromQL, and the legend of its series (`{{label}}`)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class PanelText:
    """What every panel has: its title, what it shows, and the unit of its values in Grafana's words."""

    title: str
    text: str
    unit: str = "short"


def make_graph(about: PanelText, *queries: Query, width: int = 8, stacked: bool = False) -> timeseries.Panel:
    """Return a panel of series over time; `stacked` where their sum means something."""
    legend = common.VizLegendOptions().display_mode(look.LegendDisplayMode.LIST)
    panel = (
        timeseries.Panel()
        .title(about.title)
        .description(about.text)
        .unit(about.unit)
        .min(0)
        .no_value("0")
        .datasource(DATASOURCE)
        .height(_HEIGHT)
        .span(width)
        .fill_opacity(40 if stacked else 10)
        .show_points(look.VisibilityMode.NEVER)
        .legend(legend.placement(look.LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL))
    for query in _name(queries):
        panel.with_target(query)
    return panel


def make_stat(about: PanelText, query: Query, *, good: float | None = None, width: int = 4) -> stat.Panel:
    """Return a panel of one number; above `good` it is red."""
    limits = [model.Threshold(value=None, color=_GREEN)]
    if good is not None:
        limits.append(model.Threshold(value=good + 1e-9, color=_RED))
    return (
        stat.Panel()
        .title(about.title)
        .description(about.text)
        .unit(about.unit)
        .datasource(DATASOURCE)
        .height(_STAT_HEIGHT)
        .span(width)
        .color_mode(look.BigValueColorMode.VALUE)
        .graph_mode(look.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(limits))
        .with_target(_instant(query, "A"))
    )


def make_bars(about: PanelText, query: Query, *, most: float, width: int = 8) -> bargauge.Panel:
    """Return a panel of horizontal bars, a bar a series, up to `most`."""
    limits = [model.Threshold(value=None, color=_GREEN)]
    return (
        bargauge.Panel()
        .title(about.title)
        .description(about.text)
        .unit(about.unit)
        .min(0)
        .max(most)
        .datasource(DATASOURCE)
        .height(_HEIGHT)
        .span(width)
        .orientation(look.VizOrientation.HORIZONTAL)
        .display_mode(look.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(limits))
        .with_target(_instant(query, "A"))
    )


def make_table(about: PanelText, columns: Sequence[tuple[str, str, str]], *, hidden: Sequence[str] = ()) -> table.Panel:
    """Return a table whose rows are the series that the queries share. `columns`: title, unit and expression; labels
    are columns too, but for the `hidden` ones."""
    panel = (
        table.Panel()
        .title(about.title)
        .description(about.text)
        .datasource(DATASOURCE)
        .height(_HEIGHT)
        .span(_WIDTH)
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options=_organize(columns, hidden)))
    )
    for letter, (title, unit, expr) in zip("ABCDEFGH", columns, strict=False):
        panel.with_target(_instant(Query(expr), letter).format(PromQueryFormat.TABLE))
        panel.override_by_name(title, [model.DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def _organize(columns: Sequence[tuple[str, str, str]], hidden: Sequence[str]) -> dict[str, Any]:
    names = {f"Value #{letter}": title for letter, (title, _, _) in zip("ABCDEFGH", columns, strict=False)}
    if len(columns) == 1:
        names = {"Value": columns[0][0]}
    return {"excludeByName": {"Time": True, **dict.fromkeys(hidden, True)}, "renameByName": names}


def _name(queries: Sequence[Query]) -> list[Dataquery]:
    return [
        Dataquery()
        .ref_id(letter)
        .datasource(DATASOURCE)
        .expr(query.expr)
        .legend_format(query.legend or "__auto")
        .range()
        for letter, query in zip("ABCDEFGH", queries, strict=False)
    ]


def _instant(query: Query, letter: str) -> Dataquery:
    asked = Dataquery().ref_id(letter).datasource(DATASOURCE).expr(query.expr).instant()
    return asked.legend_format(query.legend or "__auto")
