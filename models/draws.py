"""Random numbers of a training step: drawn for the whole batch, of which each process keeps the rows of its windows.

So the numbers of a window do not depend on how many processes share a batch.
"""

import contextlib
from collections.abc import Callable

from torch import Tensor

_own: tuple[int, int, int] | None = None


@contextlib.contextmanager
def own_rows(rows: tuple[int, int, int] | None):
    """While it lasts, `draw` gives rows first..last-1 of `total`: rows = (first, last, total); None: all there are."""
    global _own
    before, _own = _own, rows
    try:
        yield
    finally:
        _own = before


def draw(function: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...], axis: int = 0) -> Tensor:
    """`function(shape)`, where the rows along `axis` are those of this process in the draw for the whole batch."""
    if _own is None:
        return function(shape)
    first, last, total = _own
    return function((*shape[:axis], total, *shape[axis + 1:])).narrow(axis, first, last - first)
