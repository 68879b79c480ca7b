"""`python -m sidecar gate`, for images without the console script.

Law: a signal that arrives while the gate is imported is kept until the gate handles it.
"""

from __future__ import annotations

import sys

from cached.contract.program import process

EXIT_USAGE = 2


def main() -> int:
    """Run the gate; return its exit code."""
    if sys.argv[1:2] != ["gate"]:
        sys.stderr.write("usage: python -m sidecar gate [options]\n")
        return EXIT_USAGE
    process.prepare_process()
    from sidecar.gate.main import main as gate

    return gate(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
