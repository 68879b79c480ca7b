"""Loaded by every Python that has this folder in PYTHONPATH: a daemon waits for other nodes of its pool for minutes.

Law: changes how long a slow node is waited for, and nothing else. A daemon asks the origin for what other nodes do not
send within seconds; on a busy machine that is how a test of what they send would end.
"""

from __future__ import annotations

from dataclasses import replace

from cached.fetch import workers
from cached.fetch.pool import holders, version
from cached.peers import swarm

_PATIENCE_S = 150.0

holders.SEARCH_S = version._PATIENCE_S = swarm.ALONE_S = _PATIENCE_S
workers.PEER_HTTP = replace(
    workers.PEER_HTTP, connect_timeout_s=_PATIENCE_S, header_timeout_s=_PATIENCE_S, stall_window_s=_PATIENCE_S
)
