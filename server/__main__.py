"""`python -m server`, the same as `holdfast serve`. Law: starts `server.app` and nothing else."""

import sys

from server.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
