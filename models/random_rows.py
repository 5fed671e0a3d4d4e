"""Random numbers of a training step. They are drawn for the whole batch, of which each process keeps its own rows.

So the numbers of a window do not depend on the number of processes that share a batch.
"""

import contextlib
from collections.abc import Callable

from torch import Tensor

_own: tuple[int, int, int] | None = None


@contextlib.contextmanager
def own_rows(rows: tuple[int, int, int] | None):
    """Within it `random_rows` gives the rows first..last-1 of `total`: rows = (first, last, total); None: all."""
    global _own
    before, _own = _own, rows
    try:
        yield
    finally:
        _own = before


def random_rows(function: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...], axis: int = 0) -> Tensor:
    """`function(shape)`; of a shared batch `function` of the whole shape, narrowed to this process's rows of `axis`."""
    if _own is None:
        return function(shape)
    first, last, total = _own
    return function((*shape[:axis], total, *shape[axis + 1:])).narrow(axis, first, last - first)
