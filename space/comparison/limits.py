"""Time limits of what a visitor asks for: work in this thread ends at its next layer once its time is over."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.modules.module import register_module_forward_pre_hook

from comparison.pictures import Refusal


_thread = threading.local()


class OutOfTime(Refusal):
    """The work of a request took longer than it may."""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Within, the next layer that starts after `seconds` raises OutOfTime, naming `what`; an outer limit stays."""
    before = getattr(_thread, "limit", None)
    end = time.monotonic() + seconds
    _thread.limit = before if before is not None and before[0] < end else (end, seconds, what)
    try:
        yield
    finally:
        _thread.limit = before


def check_time() -> None:
    """Raises OutOfTime if this thread's limit is over."""
    limit = getattr(_thread, "limit", None)
    if limit is not None and time.monotonic() > limit[0]:
        _, seconds, what = limit
        raise OutOfTime(f"{what} was stopped after {seconds:g} seconds, which is the limit here.")


# a forward pass cannot be interrupted from outside, but it goes through hundreds of layers
register_module_forward_pre_hook(lambda module, arguments: check_time())
