"""The dashboards' files under `manifests`: of the component, and as Helm's chart ships them.

Law: the only module that knows where they lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards.fleet import make_fleet
from tools.dashboards.node import make_node

_MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
FILES: Mapping[Path, Callable[[], Dashboard]] = {
    _MANIFESTS / folder / name: make
    for folder in ("components/grafana", "chart/files")
    for name, make in (("fleet.json", make_fleet), ("node.json", make_node))
}


def encode(dashboard: Dashboard) -> str:
    """Return the dashboard's JSON, as Grafana imports it; panels are numbered in their order."""
    built = dashboard.build()
    for number, panel in enumerate(built.panels or (), 1):
        panel.id_val = number
    return json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
