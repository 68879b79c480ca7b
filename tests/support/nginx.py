"""A real nginx with a configuration of its own, for as long as a `with` block."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port

_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format connection '$connection $status $request';
  access_log {folder}/access.log connection;
  client_body_temp_path {folder}/temp-body;
  proxy_temp_path {folder}/temp-proxy;
  fastcgi_temp_path {folder}/temp-fastcgi;
  uwsgi_temp_path {folder}/temp-uwsgi;
  scgi_temp_path {folder}/temp-scgi;
  sendfile on;
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port};
    root {root};
    {directives}
  }}
}}
"""
_START_DEADLINE_S = 100.0


@contextlib.contextmanager
def nginx(folder: Path, root: Path, directives: str = "") -> Iterator[str]:
    """Serve the files under `root`; gives the URL of the root, without a slash at its end.

    `folder`: where nginx keeps its own files (`access.log` has a line `connection status request` per request).
    `directives`: what else stands in the `server` block, as `autoindex on;`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, root=root, directives=directives))
    command = [_program(), "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_until_it_listens(process, port, folder / "error.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _program() -> str:
    """nginx lives in /usr/sbin on Debian, which is not on every user's PATH."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    return found


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise AssertionError(f"nginx does not listen: {log.read_text() if log.exists() else 'no log'}")
