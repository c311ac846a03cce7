"""What `vaelab quality` tells: every measure of the samples, beside what real examples themselves get."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vaelab.evaluation.quality.features import FeatureSpace
from vaelab.evaluation.quality.neighbors import COVERAGE_NEIGHBORS, PRECISION_NEIGHBORS
from vaelab.words import rounded

SOURCES = ("samples", "reconstructions", "real")
_WIDTH = 80
_CELL = 15
_ROWS = {
    "frechet": ("Fréchet d²", 1),
    "mmd_polynomial": ("MMD² ×1000 cubic", 1000),
    "mmd_gaussian": ("MMD² ×1000 rbf", 1000),
    "precision": (f"precision, k = {PRECISION_NEIGHBORS}", 1),
    "recall": (f"recall, k = {PRECISION_NEIGHBORS}", 1),
    "density": (f"density, k = {COVERAGE_NEIGHBORS}", 1),
    "coverage": (f"coverage, k = {COVERAGE_NEIGHBORS}", 1),
    "told_apart": ("told apart", 1),
}
METRICS = tuple(_ROWS)


@dataclass(frozen=True)
class QualityScore:
    """One measure of N samples, N reconstructions and N real examples, each against the same N held-out examples.

    Attributes:
        samples: of the model's samples.
        reconstructions: of reconstructions of the examples behind `real`.
        real: of real examples from the training split: the floor, what a perfect model would get.
        difference: samples − real.
        *_stderr: standard errors over all examples that are involved. That of `difference` counts that both were held
            against the same held-out examples.
        expected: the expectation for two samples of one distribution, where it is known: of `frechet` for Gaussian
            features to order 1/N, of the others exactly; None for precision and recall.
    """

    samples: float
    samples_stderr: float
    reconstructions: float
    reconstructions_stderr: float
    real: float
    real_stderr: float
    difference: float
    difference_stderr: float
    expected: float | None


@dataclass(frozen=True, eq=False)
class SampleQuality:
    """What `sample_quality` measures.

    Attributes:
        split: where the held-out examples are from.
        n: how many samples, reconstructions, real and held-out examples.
        shown: what samples and reconstructions are: `draw` from p(x|z), or its `mean`.
        prior: where the z of samples are from.
        space: the feature space.
        scores: by name, those of `METRICS`. `told_apart` is the accuracy of the classifier two-sample test.
        p_values: of that test, by source: samples, reconstructions, real.
        kernel_width: of the Gaussian kernel, in squared units of the features.
        seed: of all draws.
        fingerprint: SHA-256 of the data.
    """

    split: str
    n: int
    shown: str
    prior: str
    space: FeatureSpace
    scores: dict[str, QualityScore]
    p_values: dict[str, float]
    kernel_width: float
    seed: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """The keys of `vaelab quality --json`, flat: `frechet` is that of samples, `frechet_real` is the floor, ...."""
        made: dict[str, Any] = {"split": self.split, "n": self.n, "shown": self.shown, "prior": self.prior}
        made |= self.space.to_dict()
        for name, score in self.scores.items():
            values = asdict(score)
            made |= {name: values.pop("samples"), f"{name}_stderr": values.pop("samples_stderr")}
            made |= {f"{name}_{key}": value for key, value in values.items()}
        made |= {f"told_apart_p_value_{source}": p for source, p in self.p_values.items()}
        made |= {"precision_neighbors": PRECISION_NEIGHBORS, "coverage_neighbors": COVERAGE_NEIGHBORS}
        return made | {"kernel_width": self.kernel_width, "seed": self.seed, "fingerprint": self.fingerprint}

    def __str__(self) -> str:
        what = "draws from p(x|z)" if self.shown == "draw" else "means of p(x|z)"
        about = (
            f"{self.split}: {self.n:,} real examples, and as many samples: {what}, z ~ {self.prior}; seed {self.seed}",
            f"features: {self.space}",
        )
        lines = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in about]
        lines.append(_line("", (*SOURCES, "samples − real")))
        for name, score in self.scores.items():
            title, scale = _ROWS[name]
            values = asdict(score)
            cells = [_cell(scale * values[one], scale * values[f"{one}_stderr"]) for one in (*SOURCES, "difference")]
            lines.append(_line(title, cells))
        lines.append(_line("  p-value", [_p_value(self.p_values[source]) for source in SOURCES]))
        frechet, coverage = self.scores["frechet"].expected, self.scores["coverage"].expected
        expected = (
            f"expected of one distribution: MMD² 0, density 1, coverage {coverage:.3f}, told apart 0.5; and Fréchet d² "
            f"about {frechet:.3g}, were the features Gaussian"
        )
        return "\n".join([*lines, textwrap.fill(expected, _WIDTH)])


def _line(title: str, cells: Sequence[str]) -> str:
    return (f"{title:<17}" + "".join(f"{cell:<{_CELL + 1}}" for cell in cells)).rstrip()


def _cell(value: float, error: float) -> str:
    text = f"{rounded(value, error)} ± {rounded(error, error)}"
    return text if len(text) <= _CELL else f"{value:.1e} ± {error:.0e}".replace("-", "−").replace("e+0", "e")


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
