"""Credentials for HTTP: a netrc file and user information in URLs, both as Basic authentication.

Law: a secret goes into the header of a request to its own host, never into a message, a log line or a `repr`.
"""

from __future__ import annotations

import base64
import logging
import netrc
import os
from pathlib import Path

_log = logging.getLogger(__name__)


class NetrcFile:
    """The netrc file named by `NETRC`, else `~/.netrc` if it exists, read once."""

    def __init__(self) -> None:
        named = os.environ.get("NETRC")
        path = Path(named) if named else Path("~/.netrc").expanduser()
        self._entries: netrc.netrc | None = None
        if not named and not os.path.exists(path):  # also where the home is another user's
            return
        try:
            self._entries = netrc.netrc(path)
        except netrc.NetrcParseError as error:
            # The error's message quotes the file, and a token in it may be a password.
            _log.warning("the netrc file %s is ignored: it cannot be understood at line %s", path, error.lineno)
        except (OSError, UnicodeError) as error:
            _log.warning("the netrc file %s is ignored: it cannot be read (%s)", path, type(error).__name__)

    def authorization(self, host: str) -> str | None:
        """Return the `Authorization` value for `host`, if the file has one."""
        entry = self._entries.authenticators(host) if self._entries else None
        return basic(entry[0], entry[2] or "") if entry else None


def basic(user: str, password: str) -> str:
    """Return an `Authorization` or `Proxy-Authorization` value (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
