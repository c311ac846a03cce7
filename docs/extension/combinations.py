"""What combines with what, for docs/reference/combinations.md: each answer is found by composing the parts.

A reason is told as composing words it, without the remedy: the table shows what works. The choice of the row and that
of the column are called "this posterior", "this objective", ...: so a reason stands once, for all pairs that share it.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal, get_args, get_origin

import torch

from vaelab import config
from vaelab.composition import compose, compose_objective, settle
from vaelab.data.spec import DataSpec, Kind
from vaelab.errors import InputError
from vaelab.model import Model

Choice = tuple[str, Any]
"""A key and its value: `("prior.name", "vamp")`."""
Answer = str | None
"""Why not; None where it composes."""

SHAPE = (1, 4, 4)
TINY = {
    "network": {"hidden": 4, "channels": (2,)},
    "model": {"latent_dim": 2, "latent_dims": (1, 1), "hidden": 4, "places": 2},
    "likelihood": {"components": 2},
    "posterior": {"hidden": (4,), "context": 2, "steps": 1},
    "prior": {"components": 2, "hidden": (4,), "steps": 1, "width": 4, "layers": 1, "heads": 1},
    "objective": {"critic_width": 4, "critic_depth": 1},
}
"""What is made smaller, wherever a part has the key, so that hundreds of models are made in seconds."""
AT_THE_LIMIT: dict[str, Choice] = {"info": ("objective.alpha", 1)}
"""Where a number, not a word, changes what an objective needs."""
RANGES: dict[str, tuple[Kind, float, float]] = {
    "binary": ("binary", 0, 1),
    "levels": ("levels", 0, 1),
    "real, from 0 to 1": ("real", 0, 1),
    "real, beyond": ("real", -1, 2),
}
"""Kinds of data, and from where to where they reach."""


def combinations() -> str:
    """All tables of the page."""
    models, posteriors, priors = _parts("model"), _parts("posterior"), _parts("prior")
    objectives = [one for plain in _parts("objective") for one in (plain, *_variants(plain))]
    kinds = _table("Likelihood", _parts("likelihood"), list(RANGES), _on_data)
    shapes = _table("Network", _parts("network"), ["pictures", "vectors"], _on_shape)
    latents = _table("Posterior", posteriors, priors, lambda q, p: _answer((_home(q[0]), q[0], p[0])))
    trained = _table("Objective", objectives, posteriors, lambda o, q: _answer((_home(q[0]), q[0]), o))
    by_model = [
        _table("Posterior", posteriors, models, lambda q, m: _answer((m[0], q[0]))),
        _table("Prior", priors, models, lambda p, m: _best(_answer((m[0], q, p[0])) for q in _fitting(m[0]))),
        _table("Objective", objectives, models, lambda o, m: _best(_answer((m[0], q), o) for q in _fitting(m[0]))),
    ]
    homes = sorted({_home(q[0])[1] for q in posteriors} - {config.PARTS["model"]})
    placed = [f"`{name}`" for ((_, name),) in posteriors if _home(("posterior.name", name))[1] in homes]
    return "\n\n".join(
        [
            "## Likelihood and data",
            "The data decide which likelihoods are normalized. `binary` is 0 and 1, `levels` are integers, `real` are "
            "real numbers; [Data](../data.md) tells how to make one of another.",
            kinds,
            "## Network and data",
            "`pictures` are `[C, H, W]`, `vectors` are `[D]`.",
            shapes,
            "## Posterior and prior",
            f"{' and '.join(placed)} are in `model.name={' or '.join(homes)}`, all others in "
            f"`model.name={config.PARTS['model']}`.",
            latents,
            "## Objective and posterior",
            f"The same models, with `prior.name={config.PARTS['prior']}`. Where a key changes what an objective needs, "
            "it has a line of its own.",
            trained,
            "## Class of model and posterior, prior, objective",
            "A prior or an objective is marked `yes` if it fits at least one posterior of that class.",
            *by_model,
            "## Prior and objective",
            "An objective that asks for a KL divergence in closed form depends on the prior as well. And a prior that "
            "learns needs an objective whose gradient reaches all of it. These are all pairs that are refused although "
            "a posterior of that class fits each of the two alone.",
            _prior_and_objective(priors, objectives),
        ]
    )


# -- composing -----------------------------------------------------------------------------------------------------


def _names(group: str) -> list[str]:
    """The parts that one chooses by name, the default one first."""
    names = [name for name in config.names(group) if name != "auto"]
    return sorted(names, key=lambda name: name != config.PARTS[group])


def _parts(group: str) -> list[tuple[Choice, ...]]:
    return [((f"{group}.name", name),) for name in _names(group)]


def _variants(plain: tuple[Choice, ...]) -> list[tuple[Choice, ...]]:
    """An objective with one key changed, where that changes with which posteriors it goes."""
    ((_, name),) = plain
    fields = config.part("objective", name).section.model_fields
    keys = [
        (f"objective.{key}", word)
        for key, field in fields.items()
        if key != "name" and get_origin(field.annotation) is Literal
        for word in get_args(field.annotation)
        if word != field.default
    ]
    keys += [AT_THE_LIMIT[name]] if name in AT_THE_LIMIT else []

    def fits(objective: tuple[Choice, ...]) -> list[bool]:
        return [_answer((_home(q), q), objective) is None for (q,) in _parts("posterior")]

    return [(*plain, key) for key in keys if fits((*plain, key)) != fits(plain)]


@cache
def _composed(choices: tuple[Choice, ...], kind: Kind = "binary", shape: tuple[int, ...] = SHAPE) -> Model | str:
    """A tiny model of these choices, or why there is none."""
    spec = DataSpec(shape, kind, {"binary": 2, "levels": 4, "real": None}[kind], classes=2)
    try:
        return compose(settle(_config(choices), spec), spec)
    except InputError as error:
        return str(error)


def _config(choices: Iterable[Choice]) -> config.Config:
    tables: dict[str, dict[str, Any]] = {group: {} for group in config.PARTS}
    for key, value in choices:
        group, _, name = key.partition(".")
        tables[group][name] = value
    for group, small in TINY.items():
        fields = config.part(group, tables[group].get("name", config.PARTS[group])).section.model_fields
        tables[group] = {key: value for key, value in small.items() if key in fields} | tables[group]
    return config.resolve("table", tables)


@cache
def _answer(choices: tuple[Choice, ...], objective: tuple[Choice, ...] = ()) -> Answer:
    model = _composed(choices)
    if isinstance(model, str) or not objective:
        return model if isinstance(model, str) else None
    try:
        with torch.random.fork_rng(devices=[]):
            compose_objective(_config((*choices, *objective)), model, examples=8)
    except InputError as error:
        return str(error)
    return None


def _home(posterior: Choice) -> Choice:
    """The class of model that a posterior is looked at in: the default one, or else the first that takes it."""
    return next(("model.name", name) for name in _names("model") if _fits(("model.name", name), posterior))


def _fits(model: Choice, posterior: Choice) -> bool:
    return not isinstance(_composed((model, posterior)), str)


def _fitting(model: Choice) -> list[Choice]:
    """The posteriors that a class of model takes, the default one first."""
    return [("posterior.name", name) for name in _names("posterior") if _fits(model, ("posterior.name", name))]


def _best(answers: Iterable[Answer]) -> Answer:
    """None if one of them is; else the first."""
    found = list(answers)
    return None if None in found else found[0]


def _on_data(likelihood: tuple[Choice, ...], column: str) -> Answer:
    kind, low, high = RANGES[column]
    model = _composed(likelihood, kind)
    if isinstance(model, str):
        return model
    try:
        model.likelihood.check(low, high)
    except InputError as error:
        return str(error)
    return None


def _on_shape(network: tuple[Choice, ...], column: str) -> Answer:
    model = _composed(network, shape=SHAPE if column == "pictures" else (8,))
    return model if isinstance(model, str) else None


# -- tables --------------------------------------------------------------------------------------------------------


def _table(
    corner: str, rows: list[tuple[Choice, ...]], columns: list[Any], answer: Callable[[Any, Any], Answer]
) -> str:
    """A cell for each pair: `yes`, or the number of the reason below why not."""
    reasons: list[str] = []
    lines = [f"| {corner} | {' | '.join(map(_head, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells: list[str] = []
        for column in columns:
            why = answer(row, column)
            if why is None:
                cells.append("yes")
                continue
            told = _told(why, [*row, *(column if isinstance(column, tuple) else ())])
            if told not in reasons:
                reasons.append(told)
            cells.append(f"no\u00a0({reasons.index(told) + 1})")
        lines.append(f"| {_head(row)} | {' | '.join(cells)} |")
    notes = "\n".join(f"{number}. {told}" for number, told in enumerate(reasons, start=1))
    return "\n".join(lines) + (f"\n\nWhy not:\n\n{notes}" if notes else "")


def _head(choice: Any) -> str:
    """`vamp`; `iwae`, `gradient=dreg`."""
    if isinstance(choice, str):
        return choice
    (_, name), *keys = choice
    return ", ".join(f"`{word}`" for word in (name, *(f"{key.partition('.')[2]}={value}" for key, value in keys)))


def _told(why: str, choices: Iterable[Choice]) -> str:
    """A reason without the remedy, in which these choices are not named, with keys and their values as code."""
    why = re.sub(r"(;|: use) .*", "", why)
    for key, value in choices:
        group, _, last = key.partition(".")
        names = [re.escape(f"{key}={value}"), *([config.part(group, value).build.__name__] if last == "name" else [])]
        why = re.sub(rf"(?<![\w.])({'|'.join(names)})(?![\w-])", f"this {group}", why)
    why = re.sub(r"\b(\w+\.\w+(?:=[\w.-]*\w)?)", r"`\1`", why)
    return why[0].upper() + why[1:] + "."


def _prior_and_objective(priors: list[tuple[Choice, ...]], objectives: list[tuple[Choice, ...]]) -> str:
    """Class by class, the pairs that are refused although each of the two would do by itself."""
    lines = ["| Class of model | Objective | Prior | Why not |", "|---|---|---|---|"]
    for (model,) in _parts("model"):
        for objective in objectives:
            refused: dict[str, list[str]] = {}
            for (prior,) in priors:
                both = [
                    q
                    for q in _fitting(model)
                    if _answer((model, q), objective) is None and _answer((model, q, prior)) is None
                ]
                why = _best(_answer((model, q, prior), objective) for q in both) if both else None
                if why is not None:
                    refused.setdefault(_told(why, [model, prior, *objective]), []).append(f"`{prior[1]}`")
            for why, names in refused.items():
                told = why.replace("|", r"\|")
                lines.append(f"| `{model[1]}` | {_head(objective)} | {', '.join(names)} | {told} |")
    return "\n".join(lines)
