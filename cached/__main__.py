"""Run `python -m cached`: the console script `holdfast`, where the script itself is not on the PATH.

Law: only the call.
"""

from __future__ import annotations

import sys

from cached.cli import main

if __name__ == "__main__":
    sys.exit(main())
