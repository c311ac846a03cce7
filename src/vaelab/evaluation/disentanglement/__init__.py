"""How the latents of a model relate to known factors of its data."""

from vaelab.evaluation.disentanglement.importance import DCI, dci
from vaelab.evaluation.disentanglement.information import mig, modularity, mutual_information, sap
from vaelab.evaluation.disentanglement.intervention import beta_vae_score, factor_vae_score, irs
from vaelab.evaluation.disentanglement.summary import (
    Disentanglement,
    DisentanglementScore,
    disentanglement_of,
    disentanglement_scores,
)

__all__ = [
    "DCI",
    "Disentanglement",
    "DisentanglementScore",
    "beta_vae_score",
    "dci",
    "disentanglement_of",
    "disentanglement_scores",
    "factor_vae_score",
    "irs",
    "mig",
    "modularity",
    "mutual_information",
    "sap",
]
