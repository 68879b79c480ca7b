"""How a file is opened that another program may have replaced by something else.

Law: standard library only.
"""

from __future__ import annotations

import os

# Through no symlink, and without a wait for the writer of a pipe; whether it is a plain file the caller checks.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
