"""The number of threads is chosen by measurement, and chosen again when the machine changes."""

from itertools import pairwise

import pytest
import torch

from vaelab.training import threads
from vaelab.training.threads import Threads

pytestmark = pytest.mark.usefixtures("without_reports")


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


def trials(clock: Clock, chosen: Threads, seconds: float, step: float) -> list[float]:
    """When, in so many seconds, a number other than the chosen one was tried."""
    found: list[float] = []
    end = clock.now + seconds
    while clock.now < end:
        before = chosen.pending
        clock.train(chosen, step)
        if chosen.pending and not before:
            found.append(clock.now)
    return found


def test_trials_become_rare_while_nothing_changes_and_come_at_once_when_steps_become_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, most=2)
    clock.now = 100.0
    clock.cost = {1: 0.010, 2: 0.006}
    with Threads((1, 2), 2) as chosen:
        clock.train(chosen, 1)
        pauses = [after - before for before, after in pairwise(trials(clock, chosen, 200, 0.001))]
        assert pauses == pytest.approx([20, 40, 60, 60], abs=1)
        clock.cost = {1: 0.011, 2: 0.300}
        arrived = clock.now
        clock.train(chosen, 0.3 * 4 + 0.011 * 4 + 0.1)  # four slow steps are noticed, four of the other are timed
        assert clock.number == 1
        assert clock.now - arrived < 1.5


def test_a_hopeless_number_is_tried_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, most=4)
    clock.now = 100.0
    clock.cost = {1: 0.010, 2: 2.0, 4: 5.0}
    with Threads((1, 2, 4), 1) as chosen:
        clock.train(chosen, 7.1)
        assert clock.number == 1
        assert [len(chosen.times[number]) for number in (1, 2, 4)] == [4, 1, 1]


def test_the_numbers_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert threads.candidates("auto", torch.device("cpu")) == (1, 2, 4, 8, 12)
    assert threads.candidates(3, torch.device("cpu")) == (3,)
    assert threads.candidates("auto", torch.device("cuda")) == (12,)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert threads.candidates("auto", torch.device("cpu")) == (1,)
