"""Independent pieces of work on all cores: each thread has its own, and torch uses one for it."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_One = TypeVar("_One")
_Made = TypeVar("_Made")
_here = threading.local()


class Unwanted(Exception):
    """Nobody waits for what this thread computes any more."""


def still_wanted() -> None:
    """To be called by long work now and then: raises `Unwanted` where its caller has stopped waiting, as at Ctrl-C."""
    stopped: threading.Event | None = getattr(_here, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise Unwanted


def _begin(stopped: threading.Event) -> None:
    _here.stopped = stopped


def in_order(function: Callable[[_One], _Made], items: Iterable[_One]) -> Iterator[_Made]:
    """`function` of each item, in the order of the items; as many at once as torch has threads.

    Threads that share one matrix wait for each other after every operation. With one matrix each they do not, and what
    they compute does not depend on how many there are. Items are taken as they are needed, at most one more than there
    are threads.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[_Made]] = deque()
    stopped = threading.Event()
    with one_thread(), ThreadPoolExecutor(threads, initializer=_begin, initargs=(stopped,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread() -> Generator[None]:
    """Torch with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
