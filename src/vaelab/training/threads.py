"""How many threads: by measurement, while training goes on.

More threads are not always faster. Small models gain nothing, and where another process keeps a core busy, threads
wait at every barrier for one that is not running: two then take 3 to 60 times as long as one.
"""

import time
from statistics import median

import torch

STEPS = 4
SECONDS = 10.0


class Threads:
    """Every ten seconds, a few training steps with each number of threads; the fastest is kept.

    Args:
        setting: a number to keep to, or "auto" for the faster of one and torch's own number.
    """

    def __init__(self, setting: int | str) -> None:
        self.before = torch.get_num_threads()
        self.candidates = (setting,) if isinstance(setting, int) else tuple(dict.fromkeys((1, self.before)))
        self.pending: list[int] = []
        self.times: dict[int, list[float]] = {}
        self.next_trial = self.began = 0.0

    def __enter__(self) -> "Threads":
        torch.set_num_threads(self.candidates[0])
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)

    def begin_step(self) -> None:
        """Just before a step."""
        self.began = time.perf_counter()
        if len(self.candidates) > 1 and not self.pending and self.began > self.next_trial:
            self.pending = [number for number in self.candidates for _ in range(STEPS)]
            self.times = {number: [] for number in self.candidates}
        if self.pending:
            torch.set_num_threads(self.pending[-1])

    def end_step(self) -> None:
        """Just after a step."""
        if not self.pending:
            return
        now = time.perf_counter()
        self.times[self.pending.pop()].append(now - self.began)
        if not self.pending:
            torch.set_num_threads(min(self.times, key=lambda number: median(self.times[number])))
            self.next_trial = now + SECONDS
