"""What is measured of a run before anything is said of it."""

import json
import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vaelab.config import part
from vaelab.data import Dataset, Split
from vaelab.evaluation import Evaluation
from vaelab.evaluation.latents import active, latents
from vaelab.evaluation.likelihood import evaluate_model
from vaelab.likelihoods import LikelihoodDistribution
from vaelab.model import Model
from vaelab.noise import generator
from vaelab.objectives import ELBO
from vaelab.runs import Run, best_line, load

EXAMPLES = 2_000
IMPORTANCE_SAMPLES = 100
DRAWS = 1_000  # examples that are encoded and decoded once, for checks of single values
NUMBERS = 20_000_000  # decoder outputs at once, at most: fewer examples where they are large


@dataclass
class Case:
    """A run, and what was computed for its report and its diagnosis.

    Attributes:
        examples: of the validation split (of the training split where there is none), any binarization drawn once.
        split: the name of the split that `examples` are the first of.
        total: how many examples that split has.
        means: posterior means [N, D] of the examples.
        kl: mean KL of each latent [D] in nats; None without a closed form.
        active: which latents are active [D] bool.
    """

    run: Run
    model: Model
    lines: list[dict[str, Any]]
    dataset: Dataset
    examples: Split
    split: str
    total: int
    evaluation: Evaluation
    means: Tensor
    kl: Tensor | None
    active: Tensor

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the epoch whose weights were kept."""
        return best_line(self.lines)

    @property
    def planned(self) -> int:
        """How many epochs the training was to take."""
        return self.run.config.training.planned_epochs(self.run.examples["train"])

    @property
    def beta(self) -> float:
        """What the objective multiplies the rate by, after its warm-up; 1 where it does not do such a thing."""
        chosen = self.run.config.objective
        build = part("objective", self.run.config.name("objective")).build
        return float(getattr(chosen, "beta", 1.0)) if build is ELBO else 1.0

    @cached_property
    def decoded(self) -> tuple[Tensor, LikelihoodDistribution]:
        """Examples x [B, *event], and p(x|z) at one draw of z from q(z|x) for each."""
        x, y = few(self.examples, min(DRAWS, max(50, NUMBERS // math.prod(self.model.likelihood.output_shape))))
        with torch.no_grad():
            z = self.model.encode(x, y=y).sample_with_log_prob(1, generator("doctor", device=x.device))[0][0]
            return x, self.model.decode(z, y=y)

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of the covariance of the first training examples, float64, the largest first."""
        x = few(self.training_examples(EXAMPLES), EXAMPLES)[0].flatten(1).double()
        return torch.linalg.svdvals(x - x.mean(0)).square() / len(x)

    def training_examples(self, count: int) -> Split:
        """The first training examples, any binarization drawn once."""
        return self.dataset["train"].head(count).fixed(self.run.config.data.seed)

    def again(self, *changes: str) -> str:
        """The command that trains such a run anew, with other keys or options (`--epochs`, `20`).

        A key that the run was given gives way to the same key among the changes. So do all keys of a group whose part
        is replaced (`prior.name=aggregate`), for they belong to the part that was.
        """
        words = shlex.split(self.run.about["command"])
        for option in ("--out", *(change for change in changes if change.startswith("--"))):
            if option in words:
                at = words.index(option)
                del words[at : at + 2]
        keys = {change.partition("=")[0] for change in changes if "=" in change}
        replaced = tuple(key.removesuffix("name") for key in keys if key.endswith(".name"))
        kept = [word for word in words if word.partition("=")[0] not in keys and not _of(word, replaced)]
        return shlex.join([*kept, *changes])

    def slower(self, factor: float) -> str:
        """The key of a learning rate that is so many times smaller."""
        return f"training.learning_rate={self.run.config.training.learning_rate / factor:.1g}"

    @property
    def first_skipped(self) -> str:
        """What training said of the first update that it skipped; empty if the checkpoint does not tell."""
        return str(self._counters.get("first_skipped") or "")

    @property
    def epochs_done(self) -> int:
        """How many epochs the checkpoint has behind it; 0 if it does not tell."""
        epoch = self._counters.get("epoch")
        return epoch if isinstance(epoch, int) else 0

    @property
    def _counters(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.run.path / "checkpoint" / "latest.json").read_text())["counters"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @property
    def resume(self) -> str:
        """The command that goes on training."""
        return f"vaelab train --resume --out {shlex.quote(str(self.run))}{self.run.plugin_options}"


def _of(word: str, groups: tuple[str, ...]) -> bool:
    """Whether a word of a command sets a key of these groups (`prior.`)."""
    return "=" in word and word.startswith(groups)


def look(run: Run, dataset: Dataset) -> Case:
    """Load the weights of a run and measure it; the test split is not read.

    Args:
        run: a run folder with weights.
        dataset: its data, on any device.

    Raises:
        InputError: the run has no weights, or others than its configuration asks for.
    """
    split = "validation" if "validation" in dataset.splits else "train"
    whole = dataset[split]
    examples = whole.head(EXAMPLES).fixed(run.config.data.seed).usable()
    model = load(run).to(examples.device)
    means, kl = latents(model, examples)
    return Case(
        run=run,
        model=model,
        lines=run.metrics(),
        dataset=dataset,
        examples=examples,
        split=split,
        total=len(whole),
        evaluation=evaluate_model(model, examples, IMPORTANCE_SAMPLES, split=split),
        means=means,
        kl=kl,
        active=active(means, model.latents),
    )


def few(examples: Split, count: int) -> tuple[Tensor, Tensor | None]:
    """The first usable examples x [n, *event], and their labels y."""
    head = examples.head(count)
    return head.examples(head.read(), torch.arange(len(head)))
