"""Whether a backward pass follows at once on what is computed now, so that what it wants may be kept however large it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_soon: ContextVar[bool] = ContextVar("soon", default=False)


@contextmanager
def backward_follows() -> Iterator[None]:
    """Inside, in this thread, things are computed for a backward pass that is under way."""
    token = _soon.set(True)
    try:
        yield
    finally:
        _soon.reset(token)


def soon() -> bool:
    return _soon.get()
