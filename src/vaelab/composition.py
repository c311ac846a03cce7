"""From a configuration and a description of the data to a model and its objective.

A combination that makes no sense is refused here, before anything is trained, with the reason and what would work.
"""

from vaelab import config as parts
from vaelab.config import Config
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.likelihoods import FOLLOWS, Likelihood
from vaelab.model import VAE
from vaelab.networks import Family
from vaelab.objectives import Objective
from vaelab.posteriors import Posterior


def settle(config: Config, spec: DataSpec) -> Config:
    """The same configuration with `likelihood.name=auto` replaced by what follows from the data."""
    if config.likelihood.model_dump()["name"] != "auto":
        return config
    return config.with_part("likelihood", name=FOLLOWS[spec.kind])


def compose(config: Config, spec: DataSpec) -> VAE:
    """Build the model that `config` names, for data that look like `spec`.

    Raises:
        InputError: the likelihood is not normalized on such data, or the network cannot take their shape.
    """
    family: Family = parts.build("network", config.network)
    likelihood: Likelihood = parts.build("likelihood", config.likelihood, spec)
    latent_dim = config.model.latent_dim
    encoder = family.encoder(spec.shape)
    posterior: Posterior = parts.build("posterior", config.posterior, encoder.num_features, latent_dim)
    return VAE(
        encoder=encoder,
        decoder=family.decoder(latent_dim, likelihood.output_shape),
        posterior=posterior,
        prior=parts.build("prior", config.prior, latent_dim),
        likelihood=likelihood,
    )


def compose_objective(config: Config, model: VAE) -> Objective:
    """Build the objective, and refuse one that needs a density which the posterior lacks."""
    objective: Objective = parts.build("objective", config.objective)
    if objective.needs_density and not model.posterior.has_density:
        names = config.objective.model_dump()["name"], config.posterior.model_dump()["name"]
        raise InputError(
            f"objective.name={names[0]} needs log q(z|x), and posterior.name={names[1]} has no density; "
            "use objective.name=distortion, or posterior.name=gaussian"
        )
    return objective
