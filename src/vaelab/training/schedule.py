"""The learning rate, as a function of the step, so that a resumed run needs no memory of it."""

import math

from vaelab.config import TrainingConfig


def learning_rate(step: int, steps_per_epoch: int, epochs: int, config: TrainingConfig, reductions: int = 0) -> float:
    """The rate of update `step` (0, 1, ...), of `epochs` epochs of `steps_per_epoch` updates.

    First a straight line up over `warmup_steps`; then, with t epochs since the warm-up and T the epochs that are left
    after it, the peak rate times

    - `constant`: 1
    - `cosine`: (1 + cos(π t / T)) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, one cycle)
    - `linear`: 1 − t / T
    - `step`: decay_factor ^ ⌊t / decay_epochs⌋
    - `exponential`: decay_factor ^ (t / decay_epochs)
    - `inverse-sqrt`: √(w / s) at step s, w = warmup_steps or 1 (Vaswani et al. 2017, arXiv:1706.03762, eq. 3)
    - `plateau`: decay_factor ^ reductions; `reductions` grows when validation has not improved for `decay_epochs`
    - `burda`: 10 ^ (−i / 7) for 3^i epochs, i = 0, 1, ..., 7 (Burda et al. 2016, arXiv:1509.00519, section 5)
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    epoch = (step - warmup) / steps_per_epoch
    progress = min(1.0, (step - warmup) / max(1, epochs * steps_per_epoch - warmup))
    match config.schedule:
        case "constant":
            factor = 1.0
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            factor = 1 - progress
        case "step":
            factor = config.decay_factor ** (epoch // config.decay_epochs)
        case "exponential":
            factor = config.decay_factor ** (epoch / config.decay_epochs)
        case "inverse-sqrt":
            first = max(1, warmup)
            factor = math.sqrt(first / max(first, step + 1))
        case "plateau":
            factor = config.decay_factor**reductions
        case "burda":
            # 3^0 + ... + 3^(i-1) = (3^i - 1) / 2 epochs come before stage i.
            stage = min(7, math.floor(math.log(2 * epoch + 1, 3) + 1e-9))
            factor = 10 ** (-stage / 7)
    return config.learning_rate * factor
