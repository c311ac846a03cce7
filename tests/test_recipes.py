"""Every shipped recipe: a published model that trains, evaluates, samples and comes back as it was."""

import itertools
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file

import vaelab
from vaelab import cli, recipes
from vaelab.composition import compose, compose_objective, settle
from vaelab.config import PARTS, parse_override, resolve
from vaelab.data.spec import DataSpec
from vaelab.noise import generator

SHIPPED = recipes.names()
WANTED = {
    *("vae", "conv-vae", "beta-vae", "annealed-vae", "beta-tcvae", "factor-vae", "dip-vae-1", "dip-vae-2", "info-vae"),
    *("wae-mmd", "iwae", "miwae", "vamp-vae", "flow-prior-vae", "iaf-vae", "planar-vae", "gumbel-vae", "joint-vae"),
    *("sigma-vae", "cvae", "vq-vae", "fsq-vae", "ladder-vae", "two-stage-vae", "linear-vae", "autoencoder"),
}


def test_all_are_there() -> None:
    assert set(SHIPPED) >= WANTED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_says_what_it_is(name: str) -> None:
    recipe = recipes.load(name)
    assert "TODO" not in recipe.title + recipe.paper + recipe.command
    assert recipe.title and recipe.paper and recipe.expected
    assert any(char.isdigit() for char in recipe.paper), "no year, number or equation"
    assert "TODO" not in recipe.expected
    assert any(char.isdigit() for char in recipe.expected)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_has_fifteen_lines_of_composition_at_most(name: str) -> None:
    table, lines = "", 0
    for line in recipes.load(name).text.splitlines():
        table = line.strip("[] ") if line.startswith("[") else table
        lines += bool(line.strip()) and table in PARTS
    assert 0 < lines <= 15


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_is_one(name: str) -> None:
    """It parses as the command line does, names the recipe, and its keys compose."""
    program, command, *words = shlex.split(recipes.load(name).command)
    assert (program, command) == ("vaelab", "train")
    context = typer.main.get_command(cli.app).commands["train"].make_context("train", list(words))  # type: ignore[attr-defined]
    given: list[str] = context.params["words"]
    assert [word for word in given if "=" not in word] == [name]
    assert context.params["data"] and not context.params["resume"]
    overrides = dict(parse_override(word) for word in given if "=" in word)
    config = resolve(name, recipes.load(name).tables, overrides)
    kind = "binary" if config.data.binarize != "none" else "real" if config.data.values == "real" else "levels"
    spec = DataSpec((1, 8, 8), kind, {"binary": 2, "levels": 17, "real": None}[kind], classes=10)
    config = settle(config, spec)
    compose_objective(config, compose(config, spec), 100)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_a_recipe_says_is_what_is_composed(name: str) -> None:
    """Nothing that is written in the file is changed or dropped on the way."""
    tables: dict[str, Any] = dict(recipes.load(name).tables)
    config = resolve(name, tables)
    for table, keys in tables.items():
        section = getattr(config, table).model_dump()
        for key, value in keys.items():
            found = section[key]
            assert (list(found) if isinstance(found, tuple) else found) == value, (table, key)


def test_no_two_recipes_are_the_same() -> None:
    resolved = [resolve("", recipes.load(name).tables) for name in SHIPPED]
    assert all(one != other for one, other in itertools.combinations(resolved, 2))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_trains_evaluates_samples_and_comes_back(name: str, tmp_path: Path) -> None:
    run = vaelab.train(
        name, data="digits", epochs=1, out=tmp_path / "run", overrides={"training.threads": 1}, progress=False
    )
    (line,) = run.metrics()
    assert all(math.isfinite(value) for value in line["train"].values()) and line["skipped"] == 0
    split = "test" if "test" in run.data().splits else "train"
    found = vaelab.evaluate(run, importance_samples=4, split=split, limit=50)
    assert found.n == 50 and math.isfinite(found.distortion)
    model = vaelab.load(run)
    if model.has_density:
        assert found.elbo is not None and found.rate is not None and found.log_px is not None
        assert found.elbo == pytest.approx(-(found.rate + found.distortion), rel=1e-5)
        assert math.isfinite(found.log_px) and found.rate > 0
    else:
        assert found.elbo is found.rate is found.log_px is None
    assert vaelab.evaluate(run, importance_samples=4, split=split, limit=50) == found
    kept = load_file(run.path / "model.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
    assert kept.keys() == model.state_dict().keys()
    for draw in (False, True):
        one, other, another = (vaelab.sample(run, 4, draw=draw, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(one.x, other.x) and one.x.isfinite().all() and not torch.equal(one.z, another.z)
    assert vaelab.sample(run, 4, out=tmp_path / "s.png").x.shape == (4, 1, 8, 8) and (tmp_path / "s.png").exists()
    x, y = (run.data()["train"].batch(slice(8), generator(0)), run.data()["train"].labels_at(slice(8)))
    with torch.no_grad():
        terms = [vaelab.load(run).terms(x, 2, generator(0), y=y) for _ in range(2)]
    assert torch.equal(terms[0].log_px_z, terms[1].log_px_z) and torch.equal(terms[0].log_pz, terms[1].log_pz)
    assert (run.path / "report.html").exists()
    if model.labels is not None:
        assert vaelab.sample(run, 3, label=7).labels is not None
