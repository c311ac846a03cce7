"""Which runs differ only by their seed, and in what the others differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vaelab.comparison.measure import Measured
from vaelab.config import Config

LONGEST = 34  # letters of a label: what leaves room for numbers on a line of 80
WITHOUT_EFFECT = {"training.seed", *(f"training.{key}" for key in ("threads", "checkpoint_seconds", "log_with"))}
"""Keys that make no other setting."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A configuration, and its runs: one a seed, in the order of the seeds.

    Attributes:
        letter: A, B, ...: its name in tables and plots.
        label: what it is, in few words.
        keys: every configuration key by its dotted path, as text.
        runs: at least one.
    """

    letter: str
    label: str
    keys: Mapping[str, str]
    runs: Sequence[Measured]

    @property
    def seeds(self) -> dict[int, Measured]:
        """The run of each seed."""
        return {run.seed: run for run in self.runs}

    @property
    def kind(self) -> tuple[str, bool, bool]:
        """Settings of one kind have numbers that can be compared."""
        return self.runs[0].kind


def keys_of(config: Config) -> dict[str, str]:
    """The recipe, and every key that can make a difference by its dotted path, as text."""
    keys: dict[str, Any] = {"recipe": config.recipe}
    for group, section in config.to_dict().items():
        if isinstance(section, Mapping):
            keys |= {f"{group}.{key}": value for key, value in section.items()}
    return {key: text(value) for key, value in keys.items() if key not in WITHOUT_EFFECT}


def text(value: Any) -> str:
    """A value as one would type it: `4` for 4.0, `200,200` for a list."""
    if isinstance(value, list | tuple):
        return ",".join(map(text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def settings_of(measured: Sequence[Measured]) -> tuple[list[Setting], list[str]]:
    """Settings in the order of their first runs, and notes on runs that were left out.

    Of two runs with the same setting and seed the second tells nothing new: it is left out.
    """
    grouped: dict[object, dict[int, Measured]] = {}
    notes: list[str] = []
    for one in measured:
        same = (frozenset(keys_of(one.run.config).items()), one.run.about.get("fingerprint"), one.kind)
        runs = grouped.setdefault(same, {})
        if one.seed in runs:
            notes.append(f"{one.run} has the setting and the seed of {runs[one.seed].run}, so it was left out.")
        else:
            runs[one.seed] = one
    runs_of = [[found[seed] for seed in sorted(found)] for found in grouped.values()]
    keys = [keys_of(runs[0].run.config) for runs in runs_of]
    labels = _labels(keys, [Path(runs[0].run.path).name for runs in runs_of])
    made = zip(map(letter, range(len(keys))), labels, keys, runs_of, strict=True)
    return [Setting(*facts) for facts in made], notes


def letter(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    rest, last = divmod(number, len(ascii_uppercase))
    return (letter(rest - 1) if rest else "") + ascii_uppercase[last]


def differing(keys: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys that not all have, or not all with the same value; in the order of the configuration."""
    every = list(dict.fromkeys(key for one in keys for key in one))
    return [key for key in every if len({one.get(key) for one in keys}) > 1]


def _labels(keys: Sequence[Mapping[str, str]], folders: Sequence[str]) -> list[str]:
    """`beta=4`: what tells the settings apart; the name of a run's folder where that takes too many words."""
    by_recipe: dict[str, list[Mapping[str, str]]] = {}
    for one in keys:
        by_recipe.setdefault(one["recipe"], []).append(one)
    chosen = list(dict.fromkeys(key for some in by_recipe.values() for key in differing(some)))
    words = [_words(one, chosen, len(by_recipe) > 1) for one in keys]
    fit = [
        word if word and len(word) <= LONGEST and words.count(word) == 1 else folder
        for word, folder in zip(words, folders, strict=True)
    ]
    return [text if fit.count(text) == 1 else f"{text} ({letter(place)})" for place, text in enumerate(fit)]


def _words(one: Mapping[str, str], chosen: Sequence[str], with_recipe: bool) -> str:
    parts = [Path(one["recipe"]).stem] if with_recipe else []
    parts += [f"{short(key, chosen)}={one[key]}" for key in chosen if key in one]
    return " ".join(parts)


def short(key: str, among: Sequence[str]) -> str:
    """`beta` for `objective.beta`, unless another key ends like it."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in among) > 1 else last
