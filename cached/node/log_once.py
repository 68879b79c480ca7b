"""Log an error when it begins, changes or ends, not each time it occurs.

Law: writes log lines and remembers the last one of each subject; decides nothing. Thread-safe.
"""

from __future__ import annotations

import logging
import threading

from cached.contract.program.logs import Described, about


class LogOnce:
    """The current errors, by subject: a few words that stay the same while the error message changes."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._messages: dict[str, str] = {}

    def log_error(self, subject: str, message: str, *about_these: Described) -> None:
        """Log an error of `subject`, unless it is its last one; what else the event is about may be named."""
        with self._lock:
            if self._messages.get(subject) == message:
                return
            self._messages[subject] = message
        self._log.error("%s: %s", subject, message, extra=about(*about_these))

    def log_recovery(self, subject: str, *about_these: Described) -> bool:
        """Log that `subject` works again if it had an error; return whether it had one."""
        with self._lock:
            had = self._messages.pop(subject, None) is not None
        if had:
            self._log.info("%s: works again", subject, extra=about(*about_these))
        return had
