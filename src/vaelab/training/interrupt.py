"""Ctrl-C and SIGTERM as a request that training looks at between two steps."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from vaelab.errors import VaelabError


class Interrupted(VaelabError):
    """Training was stopped from outside, after everything had been saved (exit code 130)."""

    exit_code = 130
    met_by_all = True


class StopRequest:
    """Whether somebody asked to stop."""

    requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_request() -> Generator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while the block runs; outside the main thread, do nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
