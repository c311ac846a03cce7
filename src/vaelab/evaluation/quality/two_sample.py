"""Can a classifier tell two samples apart?"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vaelab.evaluation.quality.arrays import Rows, pair
from vaelab.evaluation.quality.classifier import trained
from vaelab.noise import generator

HIDDEN = (20,)
UPDATES = 500


@dataclass(frozen=True)
class TwoSampleTest:
    """How well a classifier tells two samples apart.

    Attributes:
        accuracy: share of the n test examples that it tells right; ½ for one distribution, 1 for two that never mix.
        stderr: of the accuracy, over test examples.
        p_value: the probability of so many right answers or more, were both samples of one distribution.
        n: how many examples it was tested on.
        right: which of them it told right, [n] bool: the first half is of the one sample, the second of the other.
    """

    accuracy: float
    stderr: float
    p_value: float
    n: int
    right: Tensor = field(repr=False, compare=False)


def two_sample_test(x: Rows, y: Rows, *, seed: int = 0) -> TwoSampleTest:
    """The classifier two-sample test of Lopez-Paz & Oquab 2017, section 3.

    As many examples of each sample are taken, and parted at random into halves. A network with one hidden layer of 20
    ReLUs, as in the paper, learns to tell the two samples from one half, in 500 updates with batches of 128 (AdamW,
    rate 0.002 with cosine decay, weight decay 0.01, standardized features). It is tested on the other half. If both are
    of one distribution, it answers without regard to which sample an example is of. So the number of right answers is
    hypergeometric (Fisher's exact test), and the p-value is a tail of that distribution. The paper has the normal
    distribution that it comes close to for many examples.

    Args:
        x, y: samples [N, D] and [M, D].
        seed: of the halves, the initial weights and the order of the examples.

    Raises:
        InputError: no two samples of one number of features, or fewer than 4 examples of each.
    """
    from scipy.stats import hypergeom  # a second to import, and every command would wait for it

    one, other = pair(x, y, 4)
    n = min(len(one), len(other))
    noise = generator(seed, "two-sample")
    rows = [torch.randperm(len(sample), generator=noise)[:n].split([n - n // 2, n // 2]) for sample in (one, other)]
    learn, test = (torch.cat([one[rows[0][part]], other[rows[1][part]]]).float() for part in (0, 1))
    labels = [torch.arange(2).repeat_interleave(size) for size in (n - n // 2, n // 2)]
    network = trained(learn, labels[0], HIDDEN, 2, updates=UPDATES, key=(seed, "two-sample"))
    answers = network(test).argmax(1)
    right = answers == labels[1]
    accuracy = float(right.double().mean())
    hits = int((answers * labels[1]).sum())  # right answers "of the second sample"; all others follow from them
    return TwoSampleTest(
        accuracy=accuracy,
        stderr=max(1 / len(test), math.sqrt(accuracy * (1 - accuracy) / len(test))),
        p_value=float(hypergeom.sf(hits - 1, len(test), n // 2, int(answers.sum()))),
        n=len(test),
        right=right,
    )
