"""From a configuration and a description of the data to a model and its objective.

A combination that makes no sense is refused here, before anything is trained, with the reason and what would work.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import isclass
from typing import Annotated, Any, get_type_hints

import torch
from pydantic import Field
from torch import nn

from vaelab import config as parts
from vaelab.config import Config, PositiveFloat, PositiveInt, register
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.labels import Labels
from vaelab.latents import LatentSpec
from vaelab.likelihoods import FOLLOWS as FOLLOWS_DATA
from vaelab.likelihoods import Likelihood
from vaelab.model import VAE, Model
from vaelab.networks import Encoder, Family
from vaelab.objectives import Objective
from vaelab.objectives.base import probe
from vaelab.posteriors import Capability, GumbelSoftmaxPosterior, Posterior
from vaelab.posteriors.product import ProductPosterior
from vaelab.priors import Prior
from vaelab.priors.aggregate import MINIMUM
from vaelab.priors.base import FOLLOWS as FOLLOWS_LATENTS
from vaelab.priors.categorical import CategoricalPrior
from vaelab.priors.product import ProductPrior

MOST_LABELS = 65_536

NEEDS: dict[Capability, str] = {
    "density": "log q(z|x)",
    "reparameterized": "gradients through the draws of z",
    "stochastic": "draws of z that differ",
    "log-prob": "log q(z|x) at any z",
    "marginals": "log q(z|x) of each latent by itself",
    "moments": "mean and covariance of real-valued latents in closed form",
}
"""What an objective needs, in the words of a refusal."""


def settle(config: Config, spec: DataSpec) -> Config:
    """The same configuration with every `auto` replaced by what follows from the data and from the posterior."""
    if config.name("likelihood") == "auto":
        config = config.with_part("likelihood", name=FOLLOWS_DATA[spec.kind])
    if config.name("prior") == "auto":
        config = config.with_part("prior", name=FOLLOWS_LATENTS[_class("posterior", config.name("posterior")).holds])
    return config


def compose(config: Config, spec: DataSpec) -> Model:
    """Build the model that `config` names, for data that look like `spec`.

    Raises:
        InputError: parts that do not fit each other or the data.
    """
    return parts.build("model", config.model, Parts(config, spec))


@dataclass(frozen=True)
class Parts:
    """What a class of model is built from: a configuration, and what an example is."""

    config: Config
    spec: DataSpec

    @property
    def family(self) -> Family:
        """Makes encoders and decoders."""
        return parts.build("network", self.config.network)

    def likelihood(self) -> Likelihood:
        """p(x|z), for these data."""
        return parts.build("likelihood", self.config.likelihood, self.spec)

    def labels(self, conditional: bool) -> Labels | None:
        """How labels enter, if they shall.

        Raises:
            InputError: the data have none.
        """
        if not conditional:
            return None
        if self.spec.classes is None:
            raise InputError(
                f"model.conditional=true: {self.config.data.source} has no labels 0, 1, …; "
                "leave it out, or give data with labels (an .npz with x and y, a folder with a subfolder a class)"
            )
        if self.spec.classes > MOST_LABELS:
            raise InputError(
                f"model.conditional=true: the labels of {self.config.data.source} go up to {self.spec.classes - 1}; "
                f"number them 0, 1, … without gaps, {MOST_LABELS} at most"
            )
        return Labels(self.spec.classes, self.spec.shape)

    def posterior(self, num_features: int, latent_dim: int, by_place: bool = False) -> Posterior:
        """q(z|x), of that many latents; or a quantizer, which is asked for with `by_place`.

        Raises:
            InputError: it is of the other kind.
        """
        name, chosen = self.config.name("posterior"), _class("posterior", self.config.name("posterior"))
        if chosen.by_place != by_place:
            if chosen.by_place:
                raise InputError(
                    f"posterior.name={name} quantizes place by place, and model.name={self.config.name('model')} has "
                    "no places; use model.name=quantized, or posterior.name=gaussian"
                )
            able = [other for other in parts.names("posterior") if _class("posterior", other).by_place]
            raise InputError(
                f"posterior.name={name} gives no codes, and model.name={self.config.name('model')} needs them; "
                f"use {_choices('posterior', able)}"
            )
        return parts.build("posterior", self.config.posterior, num_features, latent_dim)

    def prior(self, latents: LatentSpec, encoder: nn.Module) -> Prior:
        """p(z) over these latents.

        Raises:
            InputError: it is a distribution of something else.
        """
        name = self.config.name("prior")
        if name != "auto" and (held := _class("prior", name).holds) != latents.holds:
            fitting = [FOLLOWS_LATENTS[latents.holds]]
            if "density" in _class("objective", self.config.name("objective")).needs:  # it teaches any prior
                known = [other for other in parts.names("prior") if other != "auto"]
                fitting = [other for other in known if _class("prior", other).holds == latents.holds]
            kinds = {"real": "real numbers", "categorical": "one-hot categories", "joint": "both"}
            raise InputError(
                f"prior.name={name} is a distribution of {kinds[held]}, but the latents of posterior.name="
                f"{self.config.name('posterior')} are {kinds[latents.holds]}; use {_choices('prior', fitting)}"
            )
        return parts.build("prior", self.config.prior, latents, encoder)


@register("model", "vae")
def vae(parts: Parts, *, latent_dim: PositiveInt = 20, conditional: bool = False) -> VAE:
    """Any encoder, posterior, prior, decoder and likelihood."""

    def latents(encoder: Encoder) -> tuple[Posterior, Prior]:
        posterior = parts.posterior(encoder.num_features, latent_dim)
        return posterior, parts.prior(posterior.latents, encoder)

    return _vae(parts, conditional, latents)


@register("model", "joint")
def joint(
    parts: Parts,
    *,
    latent_dim: PositiveInt = 10,
    categorical: PositiveInt = 1,
    categories: Annotated[int, Field(ge=2)] = 10,
    temperature: PositiveFloat = 0.67,
    conditional: bool = False,
) -> VAE:
    """Real latents beside categorical ones: Dupont 2018 (arXiv:1804.00104).

    `posterior.*` and `prior.*` are those of the real latents. The categorical ones are Gumbel-softmax draws, and all
    categories equally probable a priori.
    """

    def latents(encoder: Encoder) -> tuple[Posterior, Prior]:
        real = parts.posterior(encoder.num_features, latent_dim)
        if real.holds != "real":
            raise InputError(
                f"posterior.name={parts.config.name('posterior')}: model.name=joint has categorical latents of its "
                "own; use posterior.name=gaussian, or model.name=vae"
            )
        relaxed = GumbelSoftmaxPosterior(
            encoder.num_features, categorical, categories=categories, temperature=temperature
        )
        posterior = ProductPosterior(real, relaxed)
        return posterior, ProductPrior(parts.prior(real.latents, encoder), CategoricalPrior(relaxed.latents))

    return _vae(parts, conditional, latents)


def _vae(parts: Parts, conditional: bool, latents: Callable[[Encoder], tuple[Posterior, Prior]]) -> VAE:
    likelihood, labels = parts.likelihood(), parts.labels(conditional)
    encoder = parts.family.encoder(labels.input_shape if labels else parts.spec.shape)
    posterior, prior = latents(encoder)
    width = posterior.latents.width + (labels.classes if labels else 0)
    return VAE(encoder, parts.family.decoder(width, likelihood.output_shape), posterior, prior, likelihood, labels)


def compose_objective(config: Config, model: Model, examples: int) -> Objective:
    """Build the objective, for a model and that many training examples.

    Raises:
        InputError: it needs what the posterior cannot do, or gives a prior that learns nothing to learn from.
    """
    objective: Objective = parts.build("objective", config.objective, model, examples)
    for need in sorted(objective.needs - model.provides, key=list(NEEDS).index):
        chosen = _class("posterior", config.name("posterior"))
        group = "model" if need in chosen.provides else "posterior"
        remedies = [
            *_better_keys(config, model, examples),
            _better_posteriors(objective, model, chosen),
            *_other_objectives(model, examples),
        ]
        raise InputError(
            f"objective.name={config.name('objective')} needs {NEEDS[need]}, which {group}.name={config.name(group)} "
            f"does not give; use {', or '.join(remedies)}"
        )
    objective.check(model)
    if model.prior.fit_draws and "stochastic" not in model.provides and examples < MINIMUM:
        raise InputError(
            f"prior.name={config.name('prior')}: {examples} training examples give as many z, too few for a density "
            f"(at least {MINIMUM}); give more examples, or use prior.name=normal"
        )
    if not _teaches_prior(objective, model):
        held = "real" if model.prior.holds == "joint" else model.prior.holds
        uniform = "prior.learned=false" if config.name("prior") == "categorical" else "prior.name=categorical"
        fixed = "prior.name=normal or aggregate" if held == "real" else uniform
        remedies = [*_better_keys(config, model, examples), fixed, *_other_objectives(model, examples)]
        raise InputError(
            f"prior.name={config.name('prior')} learns from gradients, and objective.name={config.name('objective')} "
            f"gives it none; use {', or '.join(remedies)}"
        )
    return objective


def _teaches_prior(objective: Objective, model: Model) -> bool:
    """Whether a gradient of the objective reaches whatever the prior has to learn."""
    learned = [parameter for parameter in model.prior.parameters() if parameter.requires_grad]
    if not learned:
        return True
    with torch.enable_grad():
        loss = objective.loss(probe(model, objective.num_samples)).value
    return None not in torch.autograd.grad(loss, learned, allow_unused=True)


def _better_keys(config: Config, model: Model, examples: int) -> list[str]:
    """Keys of the objective that fit the model at their default."""
    keys = config.objective.model_dump()
    defaults = {key: field.default for key, field in type(config.objective).model_fields.items()}
    found: list[str] = []
    for key in (key for key, value in keys.items() if value != defaults[key]):
        try:
            other = parts.build("objective", parts.section("objective", keys | {key: defaults[key]}), model, examples)
        except InputError:  # the default does not go with the other keys
            continue
        if other.needs <= model.provides and _suits(other, model):
            found.append(f"objective.{key}={defaults[key]}")
    return found


def _better_posteriors(objective: Objective, model: Model, chosen: Any) -> str:
    """What can do all that the objective needs: in place of the posterior alone, or of model and prior as well."""
    able = [name for name in parts.names("posterior") if objective.needs <= _class("posterior", name).provides]
    alike = [
        name
        for name in able
        if (_class("posterior", name).holds, _class("posterior", name).by_place) == (chosen.holds, chosen.by_place)
        and _would_do(objective, model, chosen, name)
    ]
    if alike:
        return _choices("posterior", alike)
    free = [name for name in able if _class("posterior", name).holds == "real"]
    return f"model.name=vae with {_choices('posterior', free)} and prior.name=auto"


def _would_do(objective: Objective, model: Model, chosen: Any, name: str) -> bool:
    """Whether the model, with another posterior of the same kind, is one for the objective."""
    if not isinstance(model, VAE):
        return not objective.needs & (chosen.provides - model.provides)
    if isinstance(model.posterior, ProductPosterior):
        return objective.needs <= model.posterior.categorical.provides
    config, features = parts.section("posterior", {"name": name}), model.encoder.num_features
    posterior: Posterior = parts.build("posterior", config, features, model.latents.count)
    other = VAE(model.encoder, model.decoder, posterior, model.prior, model.likelihood, model.labels)
    return _suits(objective, other)


def _suits(objective: Objective, model: Model) -> bool:
    try:
        objective.check(model)
    except InputError:
        return False
    return _teaches_prior(objective, model)


def _other_objectives(model: Model, examples: int) -> list[str]:
    """The choice among those that take this model, with their default keys; nothing if there are none."""

    def fits(name: str) -> bool:
        if not _class("objective", name).needs <= model.provides:
            return False
        return _suits(parts.build("objective", parts.section("objective", {"name": name}), model, examples), model)

    found = [name for name in parts.names("objective") if fits(name)]
    return [_choices("objective", found)] if found else []


def _class(group: str, name: str) -> Any:
    """The class that a part is of; of a function that makes one, the class that it says it returns.

    Raises:
        InputError: it does not say.
    """
    made = parts.part(group, name).build
    if not isclass(made):
        made = get_type_hints(made).get("return")
    if not isclass(made):
        raise InputError(
            f"{group}.name={name}: the function that makes it must say of what class it is (-> My{group.title()})"
        )
    return made


def _choices(group: str, names: Iterable[str]) -> str:
    *some, last = names
    return f"{group}.name=" + (f"{', '.join(some)} or {last}" if some else last)
