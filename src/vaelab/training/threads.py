"""The processor's two traps: how many threads, and numbers close to zero.

The number of threads is measured while training goes on.

More threads are not always faster. Small models gain nothing, and where another process keeps a core busy, threads
wait at every barrier for one that is not running: two then take 3 to 60 times as long as one.
"""

import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from statistics import median

import torch

STEPS = 4  # timed with each number of threads
HOPELESS = 3.0  # a number whose first step takes this many times the best one's median is tried no further
JUMP = 1.5  # so many times the usual step time asks for a new trial
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds from one trial to the next, if nothing changes


@contextmanager
def flush_denormals() -> Generator[None]:
    """Within it the processor takes numbers below 1.2e-38 for zero.

    A processor computes with such denormal numbers 10 to 100 times slower. Where a unit of a ReLU network is off for
    long, Adam's running means decay by 0.9 an update and pass through that range for 160 updates: 6 % of them are
    denormal at any time, and an update of 784-512-20 took 6 to 14 % longer. With GELU it is 1 %, and no difference
    was seen. No weight can tell: the steps that are lost are below 1e-30.

    Threads that have computed before keep what they had, so it is entered before anything is computed.
    """
    flushed = not torch.full((), 1e-39).mul(1.0).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def candidates(setting: int | str, device: torch.device) -> tuple[int, ...]:
    """The numbers of threads to try: 1, 2, 4, ... and torch's own, which comes last; one that was asked for, alone."""
    if isinstance(setting, int):
        return (setting,)
    most = torch.get_num_threads()
    if device.type != "cpu":  # the processor only feeds the device
        return (most,)
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return (*powers, most)


class Threads:
    """A few training steps with each number of threads, now and then; the fastest number is kept.

    A trial comes at the start, when the steps become slower than they were, and after a pause that doubles from 5 to
    60 seconds as long as trials end alike (a neighbor that leaves makes no step slower).

    Args:
        numbers: what to choose from; a single one is kept to.
        first: the number to begin with.
    """

    def __init__(self, numbers: tuple[int, ...], first: int) -> None:
        self.numbers = numbers
        self.chosen = first
        self.pending: list[int] = []
        self.times: dict[int, list[float]] = {}
        self.recent: deque[float] = deque(maxlen=STEPS)
        self.usual = self.next_trial = self.began = 0.0
        self.pause = FIRST_PAUSE

    def __enter__(self) -> "Threads":
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.chosen)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)

    def begin_step(self) -> None:
        """Just before a step."""
        self.began = time.perf_counter()
        if len(self.numbers) == 1:
            return
        if not self.pending and (self.began >= self.next_trial or self._is_slower()):
            self._begin_trial()
        if self.pending:
            torch.set_num_threads(self.pending[-1])

    def end_step(self) -> None:
        """Just after a step."""
        if len(self.numbers) == 1:
            return
        now = time.perf_counter()
        if not self.pending:
            self.recent.append(now - self.began)
            return
        number = self.pending.pop()
        self.times[number].append(now - self.began)
        known = [median(spent) for spent in self.times.values() if len(spent) == STEPS]
        if known and self.times[number][0] > HOPELESS * min(known):
            self.pending = [other for other in self.pending if other != number]
        if not self.pending:
            self._decide(now)

    def _begin_trial(self) -> None:
        """The last steps stand for the present number; the others are tried, the present one first if it must be."""
        self.times = {number: [] for number in self.numbers}
        if len(self.recent) == STEPS:
            self.times[self.chosen] = list(self.recent)
        order = sorted(self.numbers, key=lambda number: number != self.chosen)
        self.pending = [number for number in reversed(order) if not self.times[number] for _ in range(STEPS)]

    def _is_slower(self) -> bool:
        return len(self.recent) == STEPS and median(self.recent) > JUMP * self.usual

    def _decide(self, now: float) -> None:
        medians = {number: median(spent) for number, spent in self.times.items()}
        fastest = min(medians, key=lambda number: medians[number])
        self.pause = min(2 * self.pause, LONGEST_PAUSE) if fastest == self.chosen else FIRST_PAUSE
        self.chosen, self.usual, self.next_trial = fastest, medians[fastest], now + self.pause
        self.recent.clear()
        torch.set_num_threads(fastest)
