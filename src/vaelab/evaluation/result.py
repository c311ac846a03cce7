"""What `evaluate` found, as numbers, as JSON and as text."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vaelab.words import count

Method = Literal["importance", "annealed", "quadrature"]
"""How log p(x) is estimated."""

WIDTH = 80
AVERAGES = ("elbo", "rate", "distortion", "log_px")
PARTS = ("mutual_information", "total_correlation", "dimension_wise_kl")
SIDES = {"lower": "log_px from below", "upper": "log_px from above", "width": "width"}
GAPS = {
    "elbo": "elbo of the encoder",
    "optimized_elbo": "elbo of the best q",
    "log_px": "log_px",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
}


@dataclass(frozen=True)
class Evaluation:
    """Averages over `n` examples, in nats an example; None where a number has no meaning for the model.

    Attributes:
        elbo: −(rate + distortion), a lower bound of log p(x).
        rate: KL(q(z|x) ‖ p(z)).
        distortion: −E_q[log p(x|z)].
        log_px: log p(x), estimated by `log_px_method`. By importance sampling, and by annealed importance sampling, it
            is in expectation a lower bound, tighter than the ELBO; by quadrature it is exact but for a stated error.
        *_stderr: standard error over examples and Monte Carlo draws together.
        *_monte_carlo: the part of it that is due to the draws, and falls with their number; None if it is unknown.
            That of log_px joins the spread, the bias (log of a mean is too low by half the relative variance of that
            mean) and float32's rounding. Both come from the weights that were drawn, so it is too small where
            `warning` says so. Of quadrature it is the mean error of the grid.
        importance_samples: K, draws an example for log_px; 0 by annealing and by quadrature.
        effective_sample_size: mean over examples of 1 / Σ w̃², between 1 and K (annealed: the number of chains). None
            where there are no weights, or all are the same.
        bits_per_dim: −log_px / (D ln 2); None where data are no discrete levels.
        active_units: latents with Var_x(E_q[z]) > 0.01 (Burda et al. 2016, section 5.2).
        scale_at_floor: share of learned scales that their floor holds up; None where none is learned.
        rates: the rate of each group of latents (layers of a hierarchy, real and categorical latents); None where there
            is one group.
        log_px_method: `importance`, `annealed` or `quadrature`; `elbo` where the encoder gives each example one z, as
            quantizers do, so that log_px is the ELBO and more draws add nothing.
        untrusted: share of examples whose K importance weights have too heavy a tail: Pareto k̂ above
            min(0.7, 1 − 1 / log₁₀ K), Vehtari et al. 2024. None by another method.
        warning: what is not to be trusted, and what to do: log_px where `untrusted` is above 0.2, or where the bounds
            by annealing are more than 1 nat apart; the split of the rate where its examples are too few.
        annealed: bounds of log p(x) on the model's own samples; None by another method. `n` of them, `lower` and
            `upper` with their standard errors over samples, and their difference `width`; `chains`, `temperatures`;
            `acceptance`, the share of proposals that were accepted on the examples.
        rate_split: see `RateSplit`; None if it was not asked for.
        gaps: averages of `elbo`, `optimized_elbo`, `log_px`, `amortization` and `approximation` with standard errors
            over examples; None if they were not asked for.
    """

    split: str
    n: int
    elbo: float | None
    elbo_stderr: float | None
    elbo_monte_carlo: float | None
    rate: float | None
    rate_stderr: float | None
    rate_monte_carlo: float | None
    distortion: float
    distortion_stderr: float | None
    distortion_monte_carlo: float | None
    log_px: float | None
    log_px_stderr: float | None
    log_px_monte_carlo: float | None
    importance_samples: int
    effective_sample_size: float | None
    bits_per_dim: float | None
    active_units: int | None
    latent_dim: int
    scale_at_floor: float | None
    rates: dict[str, float] | None = None
    log_px_method: str = "importance"
    untrusted: float | None = None
    warning: str | None = None
    annealed: dict[str, Any] | None = None
    rate_split: dict[str, Any] | None = None
    gaps: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of `vaelab evaluate --json`; a number that is not finite is None, for JSON has no other word."""
        return _finite(asdict(self))

    def __str__(self) -> str:
        lines = [f"{self.split}: {count(self.n, 'example')}, {self._how()}; nats per example"]
        numbers = asdict(self)
        lines += _rows(numbers, {name: name for name in AVERAGES})
        lines += _rows(self.rates or {}, {name: f"rate of {name}" for name in self.rates or {}})
        for name in ("effective_sample_size", "bits_per_dim", "active_units", "latent_dim"):
            if numbers[name] is not None:
                lines.append(f"  {name:<22}{numbers[name]:10.4g}")
        if self.scale_at_floor:
            lines += _wrapped(
                f"{self.scale_at_floor:.1%} of the learned scales rest on their floor (likelihood.scale_floor)", "  "
            )
        if self.annealed:
            samples, chains = count(self.annealed["n"], "sample"), count(self.annealed["chains"], "chain")
            lines.append(f"on {samples} of the model, {chains} each")
            lines += _rows(self.annealed, SIDES)
        if self.rate_split:
            lines.append("the rate is the sum of")
            lines += _rows(self.rate_split, {name: name for name in PARTS})
        if self.gaps:
            lines.append("what log_px has over the elbo of the encoder is the sum of two gaps")
            lines += _rows(self.gaps, GAPS)
        return "\n".join([*lines, *_wrapped(self.warning or "")])

    def _how(self) -> str:
        """Where log_px comes from."""
        if self.log_px is None:
            return "no log_px, for q(z|x) has no density"
        if self.log_px_method == "importance":
            return count(self.importance_samples, "importance sample")
        if self.log_px_method == "elbo":
            return "one z each: log_px is the elbo"
        return "log_px by " + {"annealed": "annealing"}.get(self.log_px_method, self.log_px_method)


def _rows(numbers: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Lines of the text: `name   value ± error`."""
    rows: list[str] = []
    for key, name in names.items():
        value, error = numbers[key], numbers.get(f"{key}_stderr", numbers.get(f"{key}_monte_carlo"))
        error_bar = "" if error is None else f" ± {error:.3f}"
        rows.append(f"  {name:<22}" + ("-" if value is None else f"{value:10.3f}{error_bar}"))
    return rows


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _finite(value: Any) -> Any:
    """A value for JSON, which has no word for a number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_finite(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value
