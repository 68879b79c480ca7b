"""Write the dashboards' JSON. Run `python -m tools.dashboards` (`make generated`)."""

from __future__ import annotations

import sys

from tools.dashboards.files import FILES, encode

for _path, _make in FILES.items():
    _path.write_text(encode(_make()))
sys.exit(0)
