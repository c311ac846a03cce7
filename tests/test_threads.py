"""The number of threads is chosen by measurement, and chosen again when the machine changes."""

import pytest
import torch

from vaelab.training import threads
from vaelab.training.threads import Threads


class Clock:
    """A machine on which a step takes `cost[number of threads]` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.now, self.number = 0.0, most
        self.cost: dict[int, float] = {}
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.number)
        monkeypatch.setattr(torch, "set_num_threads", self.set)

    def set(self, number: int) -> None:
        self.number = number

    def train(self, chosen: Threads, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            chosen.begin_step()
            self.now += self.cost[self.number]
            chosen.end_step()


def test_the_faster_number_is_kept_and_chosen_again_when_a_neighbor_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, most=2)
    clock.now = 100.0
    with Threads((1, 2), 2) as chosen:
        clock.cost = {1: 0.010, 2: 0.006}
        clock.train(chosen, 1)
        assert clock.number == 2
        clock.cost = {1: 0.011, 2: 0.200}
        clock.train(chosen, 15)
        assert clock.number == 1
        clock.cost = {1: 0.010, 2: 0.006}
        clock.train(chosen, 15)
        assert clock.number == 2
    assert clock.number == 2


def test_a_number_that_was_asked_for_is_kept_to_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, most=2)
    clock.cost = {1: 0.1, 2: 0.01, 3: 0.2}
    with Threads((3,), 3) as chosen:
        clock.train(chosen, 30)
        assert clock.number == 3
    assert clock.number == 2
