"""What both dashboards have: variables, links to each other, tags, the range of time.

Law: no panel is made here.
"""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as model

from tools.dashboards.panels import DATASOURCE

_TAG = "holdfast"


def make_page(title: str, uid: str, variables: Sequence[build.QueryVariable]) -> build.Dashboard:
    """Return an empty dashboard with these variables beside that of the data source."""
    others = build.DashboardLink("Holdfast").type(model.DashboardLinkType.DASHBOARDS).tags([_TAG])
    page = (
        build.Dashboard(title)
        .uid(uid)
        .tags([_TAG])
        .timezone("browser")
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(others.keep_time(True))
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in variables:
        page.with_variable(variable)
    return page


def make_variable(name: str, query: str) -> build.QueryVariable:
    """Return a variable of label values, of which several or all may be chosen."""
    return (
        build.QueryVariable(name)
        .label(name.capitalize())
        .datasource(DATASOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )
