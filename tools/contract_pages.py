"""Make `docs/reference/annotations.md` and `docs/reference/exit-codes.md` from the tables of the code.

Law: the pages have no fact that the tables do not have. Run `python -m tools.contract_pages` (`make generated`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from cached.contract.annotations import CSI_LABEL, LABEL_PREFIX, LABEL_VALUE, MEANINGS, PREFIX, SUMMARY
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from cached.contract.program.output import EXIT_INTERRUPTED
from sidecar.gate import exit_codes
from tools.markdown import make_table

_FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"


def main() -> int:
    """Write the pages; return the exit code."""
    for page, text in make_pages().items():
        page.write_text(text)
    return 0


def make_pages() -> dict[Path, str]:
    """Return the text of each page."""
    return {_FOLDER / "annotations.md": _make_annotations(), _FOLDER / "exit-codes.md": _make_exit_codes()}


def _make_annotations() -> str:
    rows = [[f"`{key}`", *meaning] for key, meaning in MEANINGS.items()]
    return f"""# Annotations

Made from `cached/contract/annotations.py` by `make generated`; a test compares the two.

They go on the pod, so in a Deployment into `spec.template.metadata`. The injector refuses a pod with an annotation
under `{PREFIX}` that is not in this table, or with a value that it cannot read, and says what to write instead.

{make_table(["annotation", "value", "default", "meaning"], rows)}
On a node the daemon sets the annotation `{SUMMARY}`, which says in words what is on it, the label
`{LABEL_PREFIX}<first 40 hex digits of the manifest digest>={LABEL_VALUE}` for each version that is
there, and `{CSI_LABEL}={LABEL_VALUE}` while the kubelet knows its CSI driver.
"""


def _make_exit_codes() -> str:
    commands = {
        EXIT_DONE: "done",
        EXIT_FAILED: "failed: the reason and the remedy are on stderr",
        EXIT_USAGE: "wrong usage, before anything was done",
        EXIT_INTERRUPTED: "ended by Ctrl-C (128 + SIGINT)",
    }
    gate = [
        [f"{code}" if code != exit_codes.SIGNALLED else f"{code} + N", *texts]
        for code, texts in exit_codes.MEANINGS.items()
    ]
    return f"""# Exit codes

Made from the code by `make generated`; a test compares the two.

## The gate

`kubectl describe pod` shows the code and the termination message, which has the reason and the remedy. With
`--wait-for-correction` (an injected init container has it) the gate waits where the catalog, the source, the space or
the credentials can be corrected, and exits with {exit_codes.MISMATCH} or {exit_codes.NEVER} only for what the pod
itself must change.

{make_table(["code", "meaning", "what to do"], gate)}
## Everything else

{make_table(["code", "meaning"], [[str(code), text] for code, text in commands.items()])}"""


if __name__ == "__main__":
    sys.exit(main())
