"""`python -m sidecar COMMAND`, for images without the console script.

Law: imports only the command that it runs; a signal that arrives in that time is kept until the command handles it.
"""

from __future__ import annotations

import sys
from importlib import import_module

from cached.contract.program import process

COMMANDS = {"gate": "sidecar.gate.main"}
EXIT_USAGE = 2


def main() -> int:
    """Run one command; return its exit code."""
    module = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if module is None:
        sys.stderr.write(f"usage: python -m sidecar {'|'.join(COMMANDS)} [options]\n")
        return EXIT_USAGE
    process.prepare_process()
    code: int = import_module(module).main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
