"""Learning rates against their formulas, written out by hand or by torch's own schedulers."""

import math
from typing import Any

import pytest
import torch

from vaelab.config import TrainingConfig
from vaelab.training.schedule import learning_rate

STEPS, EPOCHS = 10, 100


def rates(reductions: int = 0, **keys: Any) -> list[float]:
    config = TrainingConfig(learning_rate=1.0, **keys)
    return [learning_rate(step, STEPS, EPOCHS, config, reductions) for step in range(STEPS * EPOCHS)]


def by_torch(make: Any) -> list[float]:
    """The rates of one of torch's schedulers that is stepped once an update."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found: list[float] = []
    for _ in range(STEPS * EPOCHS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_against_torchs_schedulers() -> None:
    schedulers = torch.optim.lr_scheduler
    total = STEPS * EPOCHS
    pairs = [
        (rates(schedule="cosine"), by_torch(lambda o: schedulers.CosineAnnealingLR(o, total))),
        (rates(schedule="linear"), by_torch(lambda o: schedulers.LinearLR(o, 1.0, 0.0, total))),
        (
            rates(schedule="step", decay_epochs=30, decay_factor=0.3),
            by_torch(lambda o: schedulers.StepLR(o, 30 * STEPS, 0.3)),
        ),
        (
            rates(schedule="exponential", decay_epochs=7, decay_factor=0.3),
            by_torch(lambda o: schedulers.ExponentialLR(o, 0.3 ** (1 / (7 * STEPS)))),
        ),
        (rates(schedule="constant"), [1.0] * total),
    ]
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_warm_up_comes_first_and_the_rest_of_the_run_is_the_schedule() -> None:
    found = rates(schedule="linear", warmup_steps=200)
    assert found[:3] == pytest.approx([1 / 200, 2 / 200, 3 / 200])
    assert found[199:202] == pytest.approx([1.0, 1.0, 1 - 1 / 800])
    assert found[600] == pytest.approx(0.5)


def test_inverse_square_root() -> None:
    found = rates(schedule="inverse-sqrt", warmup_steps=25)
    assert found[24] == 1.0
    assert found[99] == pytest.approx(math.sqrt(25 / 100))
    assert rates(schedule="inverse-sqrt")[899] == pytest.approx(1 / 30)


def test_plateau_follows_its_reductions() -> None:
    assert set(rates(schedule="plateau", decay_factor=0.5)) == {1.0}
    assert set(rates(schedule="plateau", decay_factor=0.5, reductions=3)) == {0.125}


def test_the_stages_of_burda_last_three_times_as_long_each() -> None:
    """Stage i has 3^i epochs: 1, 3, 9, ..., 2187, together 3280."""
    config = TrainingConfig(learning_rate=1.0, schedule="burda")
    stages = [round(-7 * math.log10(learning_rate(epoch * STEPS, STEPS, 3280, config))) for epoch in range(3280)]
    assert [stages.count(stage) for stage in range(8)] == [3**stage for stage in range(8)]
    assert stages == sorted(stages)
