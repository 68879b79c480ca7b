"""One rank's part of a checkpoint: which part of each tensor a tensor-parallel process keeps.

Law: pure arithmetic on names and shapes. Parts are those of `torch.chunk` along one axis that divides evenly, as in
Megatron's column- and row-parallel layers; other axes are refused, as each framework pads or moves them its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cached.contract.errors import Permanent
from server.weights.format.selection import Box


@dataclass(frozen=True, slots=True)
class Shards:
    """The part of `rank`, counted from 0, among `world` ranks.

    `dims` maps a tensor's name, or a pattern of names (`*`, `?`, `[…]`), to the axis it is cut along: 0 for
    column-parallel (`torch.nn.Linear` has its outputs first), 1 or -1 for row-parallel. The first matching pattern
    decides; a tensor that matches none is kept whole. Raises `Permanent` for a rank out of range.
    """

    rank: int
    world: int
    dims: Mapping[str, int]

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise Permanent(
                "invalid_shards",
                f"expected a rank from 0 up to the world's size, found rank {self.rank} of {self.world}",
                "take both from the same process group",
            )

    def select_part(self, name: str, shape: tuple[int, ...]) -> Box | None:
        """Return this rank's box of a tensor of `shape`, None for all of it; raises `Permanent` where it cannot."""
        dim = next((dim for pattern, dim in self.dims.items() if fnmatchcase(name, pattern)), None)
        if dim is None:
            return None
        if not -len(shape) <= dim < len(shape):
            raise _refuse(f"the tensor {name!r} of shape {list(shape)} has no axis {dim}")
        axis = dim % len(shape)
        if shape[axis] % self.world:
            raise _refuse(f"axis {axis} of the tensor {name!r} of shape {list(shape)} cannot be cut in {self.world}")
        length = shape[axis] // self.world
        starts = tuple(self.rank * length if at == axis else 0 for at in range(len(shape)))
        return Box(starts, (*shape[:axis], length, *shape[axis + 1 :]), ())

    def check(self, names: Mapping[str, object]) -> None:
        """Raise `Permanent` where a pattern matches none of `names`: its tensors would be on every rank unnoticed."""
        for pattern in self.dims:
            if pattern not in names and not any(fnmatchcase(name, pattern) for name in names):
                raise Permanent(
                    "invalid_shards",
                    f"{pattern!r} fits none of the {len(names)} tensors in the files",
                    "correct the pattern, or leave it out",
                )


def _refuse(found: str) -> Permanent:
    return Permanent(
        "invalid_shards", found, "leave it out of `dims` and cut it as the framework does, or choose another world size"
    )
