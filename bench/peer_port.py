"""The daemon's port for other nodes in a process of its own, for the benchmarks that measure its processor time.

Law: the server is the daemon's own (`cached/peers/serving`); the process does nothing else.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.origins import loopback_environment, running
from cached.contract.layout import Layout
from cached.peers.access import PoolKeys
from cached.peers.serving.channel import ChannelMaker, ClearChannel
from cached.peers.serving.contents import Contents, NoPartials
from cached.peers.serving.server import Announces, PeerServer, ServerSettings

KEYS = PoolKeys([b"a key that is in no way a secret"])
_SWITCH_S = 0.0005  # as in the daemon


class _Uncounted:
    def sent(self, size: int) -> None:
        """Count nothing."""

    def refused(self, status: int) -> None:
        """Count nothing."""


def serve_port(root: Path, announces: Announces, port_file: Path, open_channel: ChannelMaker = ClearChannel) -> None:
    """Be the server of a root, until SIGTERM; write its port to `port_file` once it listens."""
    sys.setswitchinterval(_SWITCH_S)
    contents = Contents(Layout(root), NoPartials())
    server = PeerServer(contents, announces, lambda: KEYS, ServerSettings(), _Uncounted(), open_channel=open_channel)
    temporary = port_file.with_suffix(".tmp")
    temporary.write_text(str(server.open(("127.0.0.1", 0))[1]))
    temporary.rename(port_file)
    signal.sigwait([signal.SIGTERM])
    server.close()


@contextlib.contextmanager
def port_process(argv: list[str], log: Path, port_file: Path) -> Iterator[tuple[int, tuple[str, int]]]:
    """Run a program that calls `serve_port`, for a `with` block; yield its process id and its address."""
    signal.pthread_sigmask(
        signal.SIG_BLOCK, [signal.SIGTERM]
    )  # the server takes it by sigwait(3), from its first moment
    try:
        with running(argv, loopback_environment(), log, port_file.exists) as pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            yield pid, ("127.0.0.1", int(port_file.read_text()))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
