"""Terms -> Loss. What training minimizes.

`Loss.value` is minimized. `Loss.metrics` are means over the batch, in nats per example, and always carry
`distortion`, and where the posterior has a density `rate` and `elbo`, of the model itself, whatever is minimized; so
runs with different objectives can be compared. The mean over the batch is taken here and only here.
"""

from vaelab.objectives.base import Forward, Loss, Objective, metrics, negative_elbo
from vaelab.objectives.bounds import ELBO, Annealed, Distortion, FreeBits
from vaelab.objectives.divergence import WAEMMD, InfoVAE
from vaelab.objectives.importance import IWAE, MIWAE
from vaelab.objectives.moments import DIP
from vaelab.objectives.total_correlation import BetaTCVAE, FactorVAE

__all__ = [
    "DIP",
    "ELBO",
    "IWAE",
    "MIWAE",
    "WAEMMD",
    "Annealed",
    "BetaTCVAE",
    "Distortion",
    "FactorVAE",
    "Forward",
    "FreeBits",
    "InfoVAE",
    "Loss",
    "Objective",
    "metrics",
    "negative_elbo",
]
