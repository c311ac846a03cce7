"""Prints the tables of README.md.

python docs/tables.py recipes      the recipes, from their files
python docs/tables.py expect       trains 24 models on digits (minutes) and evaluates them on the test set
"""

import argparse
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import vaelab
from vaelab import recipes
from vaelab.config import parse_override
from vaelab.evaluation import Evaluation

EXPECT = {
    "(as it comes)": "",
    "ten latents": "model.latent_dim=10",
    "two latents": "model.latent_dim=2",
    "no hidden layer": "network.name=linear",
    "convolutions": "network.name=conv",
    "larger weight on the rate": "objective.beta=4",
    "smaller weight on the rate": "objective.beta=0.25",
    "importance-weighted objective": "objective.name=iwae objective.num_samples=5",
}
SEEDS = range(3)


def recipe_table() -> list[str]:
    """A line for each recipe: name, paper, command, expected numbers."""
    lines = ["| Recipe | Paper | Command | Expected |", "|---|---|---|---|"]
    for recipe in map(recipes.load, recipes.names()):
        lines.append(f"| `{recipe.name}` | {recipe.paper} | `{recipe.command}` | {recipe.expected} |")
    return lines


def expect_table() -> list[str]:
    """A line for each change to the recipe `vae` on digits: means over the seeds, on the test set."""
    head = ("Change", "Keys", "ELBO", "log p(x)", "Rate", "Distortion", "Active latents")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    errors: list[float] = []
    for change, keys in EXPECT.items():
        found = [trained(keys, seed) for seed in SEEDS]
        cells = [cell([getattr(one, name) for one in found]) for name in ("elbo", "log_px", "rate", "distortion")]
        active = ", ".join(str(one.active_units) for one in found)
        shown = f"`{keys}`" if keys else ""
        lines.append(f"| {change} | {shown} | {' | '.join(cells)} | {active} of {found[0].latent_dim} |")
        errors += [one.elbo_stderr for one in found if one.elbo_stderr is not None]
        print(change, file=sys.stderr, flush=True)
    return [*lines, f"\nStandard error of an ELBO over the test pictures: {min(errors):.2f} to {max(errors):.2f} nats."]


def trained(keys: str, seed: int) -> Evaluation:
    """Test numbers of a model trained in a folder that is removed afterwards."""
    overrides = dict(parse_override(word) for word in keys.split())
    with TemporaryDirectory() as folder:
        run = vaelab.train(
            "vae", data="digits", seed=seed, out=Path(folder, "run"), overrides=overrides, progress=False
        )
        return vaelab.evaluate(run)


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}".replace("-", "−")


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description="Print the tables of README.md.")
    parser.add_argument("table", choices=["recipes", "expect"])
    lines = recipe_table() if parser.parse_args().table == "recipes" else expect_table()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
