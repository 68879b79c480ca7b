"""`python -m sidecar COMMAND`: what an image without the console script runs.

Law: finds the command and imports it, and only it; a signal that comes meanwhile is kept until it can be heeded.
"""

from __future__ import annotations

import sys
from importlib import import_module

from cached.contract.program import process

COMMANDS = {"gate": "sidecar.gate.main"}
EXIT_USAGE = 2


def main() -> int:
    """Run one command; returns its exit code."""
    module = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if module is None:
        sys.stderr.write(f"usage: python -m sidecar {'|'.join(COMMANDS)} [options]\n")
        return EXIT_USAGE
    process.prepare()
    code: int = import_module(module).main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
