"""Say a trouble when it begins, when it changes and when it is over, not each time it is met.

Law: writes log lines and remembers the last one of each subject; decides nothing. Thread-safe.
"""

from __future__ import annotations

import logging
import threading


class Saying:
    """What is wrong just now, by subject: a few words that stay the same while the wording of the trouble changes."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._said: dict[str, str] = {}

    def trouble(self, subject: str, message: str) -> None:
        """`subject` has this trouble."""
        with self._lock:
            if self._said.get(subject) == message:
                return
            self._said[subject] = message
        self._log.error("%s: %s", subject, message)

    def fine(self, subject: str) -> bool:
        """`subject` has none; tells whether it had one until now."""
        with self._lock:
            had = self._said.pop(subject, None) is not None
        if had:
            self._log.info("%s: works again", subject)
        return had
