#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with jax 0.10.2: two arrays of one tree whose paths are the same text once their keys are joined with dots are one
# array in the checkpoint. {"llama3.1": a, "llama3": {"1": b}} is restored with a in both places, or with b in both, and which of them
# can change from run to run; the other one is lost. Structure, names, shapes and dtypes are those that were saved, and nothing is raised or
# logged, by any of PyTreeCheckpointer, StandardCheckpointer, CheckpointManager and save and load of version 1 of its API, with OCDBT or
# without. Where the two shapes differ, the save ends in a ValueError of tensorstore that names no key. A tree with one array of such a name
# is kept, and a slash in a key stays apart from nesting (with OCDBT).
#
# Why, in the source: param_name_from_keypath (_src/tree/utils.py) joins the keys with "." and escapes nothing, and both arrays are written
# under that name at once. The guides set no rule for keys; a dot was recommended to users in place of a slash (google/orbax#304).
#
# Seen, with two different arrays saved under the two paths, as the number of different arrays that come back:
#     PyTreeCheckpointer, "llama3.1" beside "llama3" with "1": 1 of 2
#     PyTreeCheckpointer without OCDBT, "llama3.1" beside "llama3" with "1": 1 of 2
#     StandardCheckpointer, "llama3.1" beside "llama3" with "1": 1 of 2
#     CheckpointManager, "llama3.1" beside "llama3" with "1": 1 of 2
#     v1.save and v1.load, "llama3.1" beside "llama3" with "1": 1 of 2
#     StandardCheckpointer, "layers.0" beside the list "layers": 1 of 2
#     StandardCheckpointer, "llama3.1" beside "llama3" with "2": 2 of 2
#     StandardCheckpointer, "llama3/1" beside "llama3" with "1": 2 of 2
#     messages at level warning or above: 0
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 tensorstore==0.1.86 numpy

cat > "$work/check.py" <<'PYTHON'
"""Save two different arrays under two paths with each door of Orbax, and print how many different ones come back."""

import logging
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import v1

A, B = np.full(4, 1.0, np.float32), np.full(4, 2.0, np.float32)
NESTED = {"llama3.1": A, "llama3": {"1": B}}
TREES = {
    '"layers.0" beside the list "layers"': {"layers.0": A, "layers": [B]},
    '"llama3.1" beside "llama3" with "2"': {"llama3.1": A, "llama3": {"2": B}},
    '"llama3/1" beside "llama3" with "1"': {"llama3/1": A, "llama3": {"1": B}},
}


class Count(logging.Handler):
    records = 0

    def emit(self, record):
        # Without OCDBT the library tells at level warning that there is nothing of OCDBT to merge.
        if "Skipping merge of OCDBT" not in record.getMessage():
            Count.records += 1


def pytree(path, tree):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        return checkpointer.restore(path)


def without_ocdbt(path, tree):
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(path, tree)
        return checkpointer.restore(path)


def standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, tree)


def manager(path, tree):
    with ocp.CheckpointManager(path) as steps:
        steps.save(1, args=ocp.args.StandardSave(tree))
        steps.wait_until_finished()
        return steps.restore(1, args=ocp.args.StandardRestore(tree))


def version_1(path, tree):
    v1.save(path, tree)
    return v1.load(path, tree)


DOORS = {
    "PyTreeCheckpointer": pytree,
    "PyTreeCheckpointer without OCDBT": without_ocdbt,
    "StandardCheckpointer": standard,
    "CheckpointManager": manager,
    "v1.save and v1.load": version_1,
}


def look(door, path, tree):
    found = door(path, tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree), found
    return f"{len({np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found)})} of {len(jax.tree.leaves(tree))}"


folder = Path(sys.argv[1])
for name in (None, "absl"):
    logging.getLogger(name).addHandler(Count(logging.WARNING))
for number, (name, door) in enumerate(DOORS.items()):
    print(f'{name}, "llama3.1" beside "llama3" with "1": {look(door, folder / f"door{number}", NESTED)}')
for number, (name, tree) in enumerate(TREES.items()):
    print(f"StandardCheckpointer, {name}: {look(standard, folder / f'tree{number}', tree)}")
print(f"messages at level warning or above: {Count.records}")
PYTHON

found=$(JAX_PLATFORMS=cpu "$work/venv/bin/python" -W ignore "$work/check.py" "$work/saved" 2> "$work/errors") ||
  { cat "$work/errors" >&2; exit 1; }
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'orbax-checkpoint behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: a dot in a key and a level of nesting are one name in the checkpoint'
