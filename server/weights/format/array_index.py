"""Check an index into a numpy slice of a file: integers, slices and `...`, within the tensor.

Law: pure arithmetic on shapes. An index beyond the tensor, which numpy would clip, is refused with the text of
safetensors 0.8; what numpy defines and safetensors cannot do (negative bounds, an empty part at the end) gives what
numpy gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as as_integer
from types import EllipsisType
from typing import Any, TypeAlias

from server.weights.errors import WeightsError

ArrayIndex: TypeAlias = "tuple[int | slice | EllipsisType, ...]"


def check_array_index(shape: Sequence[int], index: Any) -> ArrayIndex:
    """Return `index` as a tuple that numpy takes for an array of `shape`; raises `Permanent`."""
    if isinstance(index, list):
        if index:
            raise _refuse("Non empty lists are not implemented")
        index = slice(0, 0)
    items = index if isinstance(index, tuple) else (index,)
    dots = sum(item is ... for item in items)
    if dots > 1:
        raise _refuse("Only one ellipsis (...) is allowed in slice index")
    given = len(items) - dots
    checked: list[int | slice | EllipsisType] = []
    axes: list[int] = []
    for item in items:
        axes.append(len(checked) if ... not in checked else len(checked) - 1 + len(shape) - given)
        checked.append(_check_kind(item, axes[-1]))
    if given > len(shape):
        raise _beyond(shape, items, "more slicing indexes than dimensions in tensor")
    for axis, item in zip(axes, checked, strict=True):
        _check_bounds(shape, items, axis, item)
    return tuple(checked)


def _check_kind(item: Any, axis: int) -> int | slice | EllipsisType:
    if item is ...:
        return ...
    if isinstance(item, slice):
        if item.step is not None and as_integer(item.step) < 1:
            raise _refuse(f"Slice step must be a positive integer, got {item.step}")
        return item
    try:
        number = None if isinstance(item, bool) else as_integer(item)
    except TypeError:
        number = None
    if number is None:
        raise _refuse(f"Unsupported slice index at position {axis}: expected slice, int, or ellipsis")
    return number


def _check_bounds(shape: Sequence[int], items: tuple[Any, ...], axis: int, item: int | slice | EllipsisType) -> None:
    if item is ...:
        return
    size = shape[axis]
    if isinstance(item, slice):
        for bound, before in ((item.start, 0), (item.stop, 1)):
            if bound is not None and as_integer(bound) > size:
                raise _outside(shape, items, axis, bound - before)
    elif item < -size:
        raise _refuse(f"Invalid index {item} for dimension {axis} of size {size}")
    elif item >= size:
        raise _outside(shape, items, axis, item)


def _outside(shape: Sequence[int], items: tuple[Any, ...], axis: int, index: int) -> WeightsError:
    return _beyond(shape, items, f"index {index} out of bounds for tensor dimension #{axis} of size {shape[axis]}")


def _beyond(shape: Sequence[int], items: tuple[Any, ...], fault: str) -> WeightsError:
    shown = ", ".join(map(_show, items))
    return _refuse(f"Error during slicing [{shown}] with shape {list(shape)}: {fault}")


def _show(item: Any) -> str:
    if not isinstance(item, slice):
        return "..." if item is ... else str(item)
    bounds = ["" if bound is None else str(bound) for bound in (item.start, item.stop)]
    return ":".join(bounds if item.step is None else [*bounds, str(item.step)])


def _refuse(message: str) -> WeightsError:
    return WeightsError("invalid_index", message, "")
