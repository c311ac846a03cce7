"""The one source of command-line keys, TOML keys and checkpoint configuration.

A configuration is eight tables. Two have fixed keys and stand below: `data` and `training`. The other six each name
a part (`likelihood.name = "gaussian"`), and a part's keys are the keyword-only parameters of the constructor that was
registered under that name. So a part is written once, and the command line, the recipes and the saved run follow it.
This module does not import torch.
"""

import inspect
import math
import re
import tomllib
import typing
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from vaelab.errors import InputError

Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(strict=True, gt=0, le=2**31 - 1)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """One table of a configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Where x comes from and what is done to it before a model sees it.

    `validation` and `test` are fractions of the whole; 0 gives that part to training. Left out, the source's own
    division holds. `seed` fixes the random division and the static binarization, apart from the training seed, so
    that runs with different training seeds see the same examples. `stream` leaves the examples on disk; `auto` does so
    where they take more than 1 GiB.
    """

    source: Annotated[str, Field(min_length=1)] = "digits"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    binarize: Literal["none", "threshold", "dynamic", "static"] = "none"
    values: Literal["auto", "real"] = "auto"
    levels: Annotated[int, Field(ge=2, le=65536)] | None = None
    validation: Fraction | None = None
    test: Fraction | None = None
    seed: NonNegativeInt = 0
    stream: Literal["auto"] | bool = "auto"


AUTO_STEPS = 1_500
Trackers = Annotated[
    tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...],
    BeforeValidator(lambda value: tuple(value.split(",")) if isinstance(value, str) else value),
]
"""Names of experiment trackers; a text holds one, or several between commas."""


class TrainingConfig(Section):
    """How a model is fitted. `epochs = "auto"` takes as many as 1,500 steps need, and at least 10.

    `batch_size` counts the examples of one update, over all processes and all `gradient_accumulation` parts of it:
    so the same configuration is the same training on one processor and on eight GPUs. Objectives that compare the
    examples of a batch see those of one part in one process. `docs/training.md` explains every key.
    """

    epochs: PositiveInt | Literal["auto"] = "auto"
    batch_size: PositiveInt = 128
    gradient_accumulation: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["cosine", "linear", "constant", "step", "exponential", "inverse-sqrt", "plateau", "burda"] = (
        "cosine"
    )
    decay_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    decay_epochs: PositiveInt = 30
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    adam_epsilon: PositiveFloat = 1e-8
    gradient_clip: Annotated[float, Field(gt=0, allow_inf_nan=True)] = math.inf
    ema_decay: Fraction = 0.0
    patience: PositiveInt | None = None
    max_skipped: PositiveInt = 10
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    device: str = "auto"
    threads: Annotated[int, Field(strict=True, gt=0, le=256)] | Literal["auto"] = "auto"
    checkpoint_seconds: NonNegativeFloat = 15.0
    log_with: Trackers = ()
    seed: NonNegativeInt = 0

    def steps_per_epoch(self, examples: int) -> int:
        """Whole batches in so many training examples; one smaller batch where they do not fill one."""
        return max(1, examples // self.batch_size)

    def planned_epochs(self, examples: int) -> int:
        """How many epochs training takes, with `auto` worked out for so many training examples."""
        return max(10, -(-AUTO_STEPS // self.steps_per_epoch(examples))) if self.epochs == "auto" else self.epochs


FIXED: dict[str, type[Section]] = {"data": DataConfig, "training": TrainingConfig}
PARTS = {
    "model": "vae",
    "network": "mlp",
    "likelihood": "auto",
    "posterior": "gaussian",
    "prior": "auto",
    "objective": "elbo",
}
"""The six choices, and what each is if nothing is chosen."""
_HOMES = {
    "model": ("composition", "hierarchical", "quantized"),
    "network": ("networks",),
    "likelihood": ("likelihoods",),
    "posterior": ("posteriors", "quantized"),
    "prior": ("priors",),
    "objective": ("objectives",),
}
"""The modules whose import registers the parts of a group."""


@dataclass(frozen=True)
class Config:
    """A whole configuration, validated. The six parts are sections made from their constructors."""

    recipe: str
    data: DataConfig
    model: Section
    network: Section
    likelihood: Section
    posterior: Section
    prior: Section
    objective: Section
    training: TrainingConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain tables for TOML; keys whose value is None are left out, for TOML has no null."""
        tables: dict[str, Any] = {"recipe": self.recipe}
        for field in fields(self)[1:]:
            section: Section = getattr(self, field.name)
            tables[field.name] = section.model_dump(exclude_none=True)
        return tables

    def with_part(self, group: str, **keys: Any) -> "Config":
        """The same configuration with one part chosen anew."""
        return replace(self, **{group: section(group, keys)})

    def name(self, group: str) -> str:
        """The name of the part that a group names."""
        return getattr(self, group).name


# -- the registry of parts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A registered constructor, how much of the context it takes, and what validates its keyword-only parameters.

    `plugin` is the one that it came from; None for a part of vaelab, or of the program that uses it.
    """

    build: Callable[..., Any]
    positional: int
    section: type[Section]
    plugin: str | None


_registry: dict[str, dict[str, Part]] = {group: {} for group in PARTS}
_origins: list[str] = []


@contextmanager
def origin(plugin: str) -> Generator[None]:
    """What is registered inside comes from this plugin; if it fails, nothing of it stays."""
    before = {group: dict(parts) for group, parts in _registry.items()}
    _origins.append(plugin)
    try:
        yield
    except BaseException:
        _registry.update(before)
        raise
    finally:
        _origins.pop()


Constructor = TypeVar("Constructor", bound=Callable[..., Any])


def register(group: str, name: str) -> Callable[[Constructor], Constructor]:
    """Decorator: offer a class (or a function that makes one) as `group.name = name`.

    Its keyword-only parameters, with their annotations and defaults, become the configuration keys. Its positional
    parameters are what the model and the data determine; it takes as many as it wants of

        likelihood   data: DataSpec
        posterior    num_features: int, latent_dim: int
        prior        latents: LatentSpec, encoder: Encoder
        objective    model: Model, examples: int (for training)
        model        parts: vaelab.composition.Parts
    """

    if group not in _registry:
        raise InputError(f"register({group!r}, {name!r}): no such group; {nearest(group, _registry)}")

    def decorate(constructor: Constructor) -> Constructor:
        target: Any = constructor
        parameters = inspect.signature(target).parameters.values()
        positional = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
        keys: dict[str, Any] = {
            p.name: (hints[p.name], ... if p.default is p.empty else p.default)
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
        }
        made = create_model(
            f"{group}.{name}",
            __base__=Section,
            name=(Literal[name], name),  # type: ignore[valid-type]
            **keys,
        )
        taken = _registry[group].get(name)
        if taken and taken.build.__module__.startswith("vaelab.") and taken.build.__module__ != constructor.__module__:
            raise InputError(f"{group}.name={name}: vaelab has a part of that name; choose another")
        _registry[group][name] = Part(constructor, positional, made, _origins[-1] if _origins else None)
        return constructor

    return decorate


def names(group: str) -> list[str]:
    """The registered names of a group, in order of registration."""
    for module in _HOMES[group]:
        import_module(f"vaelab.{module}")
    return list(_registry[group])


def part(group: str, name: str) -> Part:
    """What was registered under a name.

    Raises:
        InputError: nothing was.
    """
    known = names(group)
    if name not in known:
        raise InputError(f"{group}.name={name}: unknown; {nearest(name, known)}")
    return _registry[group][name]


def build(group: str, config: Section, *context: Any) -> Any:
    """Construct the part that `config` names, from as much as it wants of what the model and the data determine."""
    keys = config.model_dump()
    found = _registry[group][keys.pop("name")]
    return found.build(*context[: found.positional], **keys)


def section(group: str, keys: Mapping[str, Any]) -> Section:
    """Validate one table: a fixed section, or the section of the part that `keys["name"]` names."""
    if group in FIXED:
        return _validate(group, FIXED[group], keys)
    return _validate(group, part(group, str(keys.get("name", PARTS[group]))).section, keys)


def _validate(group: str, model: type[Section], keys: Mapping[str, Any]) -> Section:
    for key in keys:
        if key in model.model_fields:
            continue
        if keys.get("name", PARTS.get(group)) == "auto":
            raise InputError(f"{group}.{key}: choose {group}.name first, for its keys depend on it")
        known = [f"{group}.{name}" for name in model.model_fields]
        raise InputError(f"unknown key {group}.{key}; {nearest(f'{group}.{key}', known)}")
    try:
        return model.model_validate(dict(keys))
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        messages = {str(e["msg"]) for e in error.errors() if str(e["loc"][0]) == key}
        wanted = " or ".join(sorted(re.sub("^[A-Z][a-z]+ should (be |have )", "", message) for message in messages))
        raise InputError(f"{group}.{key}={keys.get(key, '')}: must be {wanted}") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or all of them."""
    known = list(known)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"


# -- from recipe and overrides to a configuration ------------------------------------------------------------------


def resolve(recipe: str, tables: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """A recipe's tables with dotted overrides applied, validated.

    Choosing another `X.name` drops the recipe's other `X.*` keys: they belong to the part that was replaced.

    Raises:
        InputError: an unknown table or key, or a value of the wrong type or range.
    """
    groups = [field.name for field in fields(Config)[1:]]
    for table, keys in tables.items():
        if table not in groups:
            raise InputError(f"unknown table [{table}] in recipe {recipe}; {nearest(table, groups)}")
        if not isinstance(keys, Mapping):
            raise InputError(
                f"{table}={keys} in recipe {recipe}: {table} is a table; write [{table}] and its keys below"
            )
    merged: dict[str, dict[str, Any]] = {group: dict(tables.get(group, {})) for group in groups}
    split = {key: split_key(key, groups) for key in overrides or {}}
    for key, value in (overrides or {}).items():
        group, name = split[key]
        if name == "name" and value != merged[group].get("name", PARTS.get(group)):
            merged[group] = {"name": value}
    for key, value in (overrides or {}).items():
        group, name = split[key]
        merged[group][name] = value
    return Config(recipe=recipe, **{group: section(group, merged[group]) for group in groups})  # type: ignore[arg-type]


def split_key(key: str, groups: list[str]) -> tuple[str, str]:
    """`"model.latent_dim"` -> `("model", "latent_dim")`."""
    group, dot, name = key.partition(".")
    if group in groups and not name:
        raise InputError(f"{key}: a group, not a key; write for example {group}.name=...")
    if group not in groups or not dot:
        raise InputError(f"unknown key {key}; keys look like model.latent_dim=10, and {nearest(group, groups)}")
    return group, name


def parse_override(text: str) -> tuple[str, Any]:
    """One `KEY=VALUE` of the command line. Numbers, booleans and lists are read as TOML; all else is text.

    `network.hidden=400,400` and `network.hidden=[400,400]` are the same.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text}: not KEY=VALUE; write for example model.latent_dim=10")
    if key == "data.source":  # a path, whatever it looks like
        return key, value
    listed = f"[{value}]" if "," in value and not value.startswith(("[", '"', "'")) else value
    try:
        parsed = tomllib.loads(f"value = {listed}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
    return key, parsed if isinstance(parsed, bool | int | float | list | str) else value
