"""Published models as named combinations of parts, one TOML file each."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vaelab.config import nearest
from vaelab.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """A recipe file: what it says of itself (`[recipe]`), and its configuration tables."""

    name: str
    title: str
    paper: str
    expected: str
    command: str
    tables: Mapping[str, Any]
    text: str


def names() -> list[str]:
    """The shipped recipes, `vae` first."""
    found = sorted(entry.name.removesuffix(".toml") for entry in _folder() if entry.name.endswith(".toml"))
    return sorted(found, key=lambda name: name != "vae")


def load(name: str) -> Recipe:
    """A shipped recipe by its name, or a file of one's own by its path (`mine.toml`).

    Raises:
        InputError: no such recipe, or a file that is not TOML.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{name}: no such recipe file")
        text = path.read_bytes().decode(errors="replace")
    elif name in names():
        text = (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_dir():
        raise InputError(f"{name}: is a folder, not a recipe; `vaelab recipes` lists them")
    else:
        raise InputError(f"unknown recipe {name}; {nearest(name, names())}")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name}: not TOML ({error})") from None
    about = tables.pop("recipe", {})
    if not isinstance(about, dict):
        raise InputError(f"{name}: recipe={about}: recipe is a table; write [recipe] and its keys below")
    keys = {key: str(about.get(key, "")) for key in ("title", "paper", "expected", "command")}
    return Recipe(name=name, tables=tables, text=text, **keys)


def _folder() -> list[Any]:
    return list(files(__name__).iterdir())
