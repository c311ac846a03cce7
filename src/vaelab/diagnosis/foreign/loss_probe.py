"""Questions to a foreign loss: it is called with arguments that are chosen, and its answers are fitted.

One example's arguments are varied, one kind at a time, and the changes of the loss are fitted by least squares in
float64. Nothing is left to guess: a candidate is accepted only where it explains all changes to a ten-thousandth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.diagnosis.foreign.loss_formulas import BASIS, DISTANCES, FORMULAS, RIGHT, WRONG
from vaelab.diagnosis.foreign.reading import as_vector

FIT = 1e-4  # what may remain of the changes of the loss, as a share, where a candidate is right
PROBES = 48  # draws of mean and spread
RECONSTRUCTIONS = (0.08, 0.2, 0.35, 0.5, 0.65, 0.8, 0.92)
TARGETS = (0.1, 0.3, 0.7, 0.9)


@dataclass
class Kl:
    """What a loss makes of mean m and of s.

    Attributes:
        known: whether it could be told.
        reading: as what it takes s, a key of `RIGHT`; None where it is no right formula.
        wrong: which of `WRONG` it is, or "".
        weight: w_k, what one latent of one example counts; negative where the sign is wrong; 0 where nothing fits.
        terms: coefficients of `BASIS` where it is none of these.
    """

    known: bool = True
    reading: str | None = None
    wrong: str = ""
    weight: float = 0.0
    terms: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def prior_variance(self) -> float | None:
        """The v where this is the KL from N(0, v), v not 1: KL = ½ (m² / v + exp(s) / v − s) but for a constant."""
        if self.terms.keys() != {"m²", "exp(s)", "s"} or self.terms["s"] >= 0:
            return None
        of_mean, of_spread = (-self.terms["s"] / self.terms[name] for name in ("m²", "exp(s)"))
        alike = math.isclose(of_mean, of_spread, rel_tol=1e-3) and of_mean > 0
        return of_mean if alike and abs(of_mean - 1) > 1e-3 else None

    @property
    def is_none(self) -> bool:
        """Whether the loss does not change with m and s."""
        return self.known and not (self.reading or self.wrong or self.terms)

    def closest(self) -> tuple[str, float]:
        """The right formula that shares most terms with this one, and the weight at which it does."""
        best, most = ("log-variance", 0.0), 0
        for name, formula in FORMULAS.items():
            for weight in {self.terms[term] / factor for term, factor in formula.items() if term in self.terms}:
                shared = sum(math.isclose(self.terms.get(term, 0.0), weight * factor, rel_tol=1e-3)
                             for term, factor in formula.items())  # fmt: skip
                if shared > most or (shared == most and weight > best[1]):
                    best, most = (name, weight), shared
        return best if most > 1 else (best[0], 0.0)


class Probe:
    """Questions to a loss, with the arguments of one example changed."""

    def __init__(
        self, loss: Callable[..., Tensor], reconstruction: Tensor, x: Tensor, mean: Tensor, spread: Tensor
    ) -> None:
        self.loss, self.mean, self.spread = loss, mean, spread
        self.reconstruction, self.x, self.targets = (
            torch.full_like(reconstruction, 0.5),
            torch.full_like(x, 0.5),
            TARGETS,
        )
        self.real = reconstruction, x
        try:
            loss(self.reconstruction, self.x, mean, spread)
        except Exception:  # noqa: BLE001 - a Bernoulli distribution takes no grey levels
            self.x, self.targets = torch.ones_like(x), (0.0, 1.0)

    def halved(self) -> "Probe":
        """The same with half as many examples."""
        half = len(self.x) // 2
        return Probe(self.loss, *(one[:half] for one in (*self.real, self.mean, self.spread)))

    def exponents(self, weight: float, kl_weight: float, distance: str) -> tuple[float, float]:
        """By which power of the number of examples the two weights go."""
        own = self.distance([distance])[1], self.kl().weight
        first, second = (
            round(math.log2(abs(a / b)), 2) if a and b else 0.0 for a, b in zip((weight, kl_weight), own, strict=True)
        )
        return first, second

    def exponent_of_latents(self, weight: float) -> float | None:
        """By which power of the number of latents the KL's weight goes: −1 for a mean over them, 0 for a sum.

        None where the loss does not take fewer of them.
        """
        number = self.mean.shape[1]
        if number < 2 or not weight:
            return None
        fewer = Probe(self.loss, *self.real, self.mean[:, : number // 2], self.spread[:, : number // 2])
        try:
            own = fewer.kl().weight
        except Exception:  # noqa: BLE001 - somebody's code may raise anything
            return None
        return math.log(abs(weight / own)) / math.log(number / (number // 2)) if own else None

    def distance(self, names: list[str] | None = None) -> tuple[str | None, float]:
        """Which ℓ it is, and the weight of one pixel."""
        rows: list[tuple[float, float, float]] = []
        for target in self.targets:
            for value in RECONSTRUCTIONS:
                reconstruction, x = self.reconstruction.clone(), self.x.clone()
                reconstruction[0], x[0] = value, target
                try:
                    rows.append((value, target, self._at(reconstruction, x)))
                except Exception:  # noqa: BLE001
                    return None, 0.0
        r, t, found = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
        pixels = self.reconstruction[0].numel()
        offsets = F.one_hot(torch.tensor([self.targets.index(float(one)) for one in t]), len(self.targets)).double()
        for name in names or DISTANCES:
            columns = torch.cat([DISTANCES[name](r, t)[:, None] * pixels, offsets], 1)
            coefficients, left = _least_squares(columns, found, offsets)
            if left < FIT and coefficients[0] != 0:
                return name, float(coefficients[0])
        return None, 0.0

    def _at(self, reconstruction: Tensor, x: Tensor) -> float:
        """The loss where the mean is 0, and s positive, for what takes its logarithm."""
        value = self.loss(reconstruction, x, torch.zeros_like(self.mean), torch.full_like(self.spread, 0.5))
        return float(value.detach())

    def _random(self, seed: int) -> tuple[float, Tensor, Tensor]:
        """The loss at random pixels of all examples; the reconstructions and the pixels, [B, n] float64."""
        noise = torch.Generator().manual_seed(seed)
        flat = (len(self.x), self.x[0].numel())
        r = 0.1 + 0.8 * torch.rand(flat, generator=noise, dtype=torch.float64)
        x = torch.tensor(self.targets, dtype=torch.float64)[torch.randint(len(self.targets), flat, generator=noise)]
        value = self._at(r.to(self.x).view(self.reconstruction.shape), x.to(self.x).view(self.x.shape))
        return value, r, x

    def adds_up(self, distance: str, weight: float) -> bool:
        """Whether the term is a sum over pixels and examples; True where it cannot be asked."""
        try:
            first, second = ((value, DISTANCES[distance](r, x).sum()) for value, r, x in map(self._random, (5, 6)))
        except Exception:  # noqa: BLE001
            return True
        expected = weight * float(first[1] - second[1])
        change, rounding = first[0] - second[0], 1e-5 * max(abs(first[0]), abs(second[0]))
        return abs(change - expected) < 1e-2 * max(abs(expected), abs(change)) + rounding

    def is_root(self) -> bool:
        """Whether the term is the root of a sum of squares over everything."""
        zero = self._at(self.x.view(self.reconstruction.shape), self.x)
        shares = [(value - zero) / float((r - x).square().sum().sqrt()) for value, r, x in map(self._random, (5, 6))]
        return math.isclose(*shares, rel_tol=1e-3)

    def ignores(self) -> list[str]:
        """Which of reconstruction and x makes no difference."""
        reconstruction, x = self.real
        others = {"reconstruction": (0.1 + 0.7 * reconstruction, x), "x": (reconstruction, x.max() + x.min() - x)}
        try:
            given = float(self.loss(*self.real, self.mean, self.spread).detach())
            return [
                name
                for name, (r, target) in others.items()
                if float(self.loss(r, target, self.mean, self.spread).detach()) == given
            ]
        except Exception:  # noqa: BLE001
            return []

    def kl(self) -> Kl:
        """What it makes of mean and log-variance."""
        near = self._kl_near()
        return near if self._holds_far(near) else Kl(known=False)

    def _holds_far(self, near: Kl) -> bool:
        """Whether the same KL is found where it is large.

        Free bits leave none where it is small, and |KL − C| has the wrong sign there.
        """
        formula = RIGHT.get(near.reading or "") or WRONG.get(near.wrong)
        if formula is None and not near.is_none:
            return True
        places = [(torch.full_like(self.mean, m), torch.ones_like(self.spread)) for m in (10.0, 20.0)]
        try:
            values = [float(self.loss(self.reconstruction, self.x, *place).detach()) for place in places]
        except Exception:  # noqa: BLE001 - somebody's code may raise anything
            return True
        change = values[1] - values[0]
        if formula is None:
            return abs(change) <= 1e-9 * (1 + abs(values[0]))
        terms = [float(formula(m.double(), s.double()).sum()) for m, s in places]
        expected = near.weight * (terms[1] - terms[0])
        return abs(change - expected) <= 0.01 * abs(expected) + 1e-9 * abs(values[0])

    def _kl_near(self) -> Kl:
        """The same where it is small: of one example at a time."""
        first: tuple[Tensor, Tensor, Tensor] | None = None
        for answers in map(self._answers, (False, True)):  # whole formulas first: one column explains all
            if answers is None:
                continue
            m, s, values = answers
            first = first or answers
            if float(values.std()) <= 1e-12 * (1 + float(values.abs().max())):
                return Kl()
            for name, formula in [*RIGHT.items(), *WRONG.items()]:
                coefficients, left = _explain(values, [formula(m, s)])
                if left < FIT:
                    right, weight = name in RIGHT, float(coefficients[0])
                    return Kl(reading=name if right else None, wrong="" if right else name, weight=weight)
        if first is None:
            return Kl(known=False)
        m, s, values = first
        coefficients, left = _explain(values, [term(m, s) for term in BASIS.values()])
        if left > FIT:
            return Kl(known=False)
        found = dict(zip(BASIS, coefficients[:-1].tolist(), strict=True))
        largest = max(map(abs, found.values()))
        kl = Kl(terms={name: one for name, one in found.items() if abs(one) > 1e-3 * largest})
        kl.weight = -2 * kl.terms["s"] if kl.prior_variance else kl.closest()[1]
        return kl

    def _answers(self, positive: bool) -> tuple[Tensor, Tensor, Tensor] | None:
        """Random m and s of one example [PROBES, D], and the loss at each; None where it has none."""
        noise = torch.Generator().manual_seed(2)
        shape = PROBES, self.mean[0].numel()
        m = torch.randn(shape, generator=noise, dtype=torch.float64)
        s = 2 * torch.rand(shape, generator=noise, dtype=torch.float64) + (0.1 if positive else -1)
        found: list[float] = []
        for one_m, one_s in zip(m, s, strict=True):
            mean, spread = torch.zeros_like(self.mean), torch.full_like(self.spread, 0.5)
            mean[0], spread[0] = one_m.view(mean[0].shape), one_s.view(spread[0].shape)
            try:
                found.append(float(self.loss(self.reconstruction, self.x, mean, spread).detach()))
            except Exception:  # noqa: BLE001 - somebody's code may raise anything
                return None
            if not math.isfinite(found[-1]):
                return None
        return m, s, torch.tensor(found, dtype=torch.float64)

    def broadcasts(self) -> str:
        """Whether each reconstruction meets other examples than its own, and why: "shapes", "order" or nothing.

        Either the order of the examples makes no difference, or shapes that differ make one.
        """
        reconstruction, x = self.real
        as_x = reconstruction.reshape(x.shape) if reconstruction.numel() == x.numel() else reconstruction
        if self._compares_all(x):
            as_reconstruction = x.reshape(reconstruction.shape) if reconstruction.numel() == x.numel() else x
            return "order" if self._compares_all(as_reconstruction) else "shapes"
        if as_x.shape == reconstruction.shape:
            return ""
        try:
            alike = self.loss(as_x, x, self.mean, self.spread)
        except Exception:  # noqa: BLE001
            return ""
        given = self.loss(reconstruction, x, self.mean, self.spread)
        return "" if math.isclose(float(given.detach()), float(alike.detach()), rel_tol=1e-4) else "shapes"

    def _compares_all(self, x: Tensor) -> bool:
        """Whether each reconstruction is compared with every example: their order makes no difference then."""
        reconstruction = self.real[0]
        noise = torch.rand(reconstruction.shape, generator=torch.Generator().manual_seed(4), dtype=reconstruction.dtype)
        reconstruction = reconstruction * (0.3 + 0.7 * noise)  # within the same range, and of no two examples alike
        try:
            given, turned, other = (
                float(self.loss(reconstruction, target, self.mean, self.spread).detach())
                for target in (x, x.roll(1, 0), x.flip(-1))
            )
        except Exception:  # noqa: BLE001
            return False
        return math.isclose(given, turned, rel_tol=1e-9) and not math.isclose(given, other, rel_tol=1e-6)

    def ungraded(self) -> list[str]:
        """What the loss depends on, but passes no gradient to.

        It is asked at two points: free bits have a KL that is flat where it is small.
        """
        x = self.x * (0.6 if self.targets == TARGETS else 1)

        def at(reconstruction: float, mean: float, spread: float) -> dict[str, Tensor]:
            return {
                "reconstruction": torch.full_like(self.reconstruction, reconstruction),
                "mean": torch.full_like(self.mean, mean),
                "log-variance": torch.full_like(self.spread, spread),
            }

        def loss(arguments: dict[str, Tensor]) -> Tensor:
            return self.loss(arguments["reconstruction"], x, arguments["mean"], arguments["log-variance"])

        near, far = at(0.5, 0.3, 0.4), at(0.8, 2.0, 1.5)
        graded: set[str] = set()
        for point in (near, far):
            arguments = {name: one.clone().requires_grad_() for name, one in point.items()}
            value = loss(arguments)
            if value.requires_grad:
                grads = torch.autograd.grad(value, list(arguments.values()), allow_unused=True)
                graded |= {name for name, grad in zip(point, grads, strict=True) if _any(grad)}
        there = float(loss(near).detach())
        return [name for name in near if name not in graded and float(loss(near | {name: far[name]}).detach()) != there]

    def scale_weight(self, weights: list[nn.Parameter], distance: str) -> float | None:
        """The weight w of ln σ in one pixel; None where the loss learns no scale.

        With each of n pixels at the distance ℓ the loss is A ℓ + C. A Gaussian has A = w / (2σ²) and C = n w ln σ, a
        Laplace distribution A = w / b and C = n w ln b. So w is −2 A dC/dA / n, or −A dC/dA / n, whatever the weights
        make σ of. The derivative is taken along the gradient of A.
        """
        times = 2 if "squared" in distance else 1 if "absolute" in distance else 0
        if not weights or not times:
            return None
        reconstructions = [torch.full_like(self.reconstruction, value) for value in (0.5, 0.8)]
        near, far = (self.loss(one, self.x, self.mean, self.spread) for one in reconstructions)
        lengths = [
            float(DISTANCES[distance](one.flatten(), self.x.flatten()).double().sum()) for one in reconstructions
        ]
        a = (far - near) / (lengths[1] - lengths[0])
        along = _gradient(a, weights)
        if not along.any():
            return None
        of_c = _gradient(near - a * lengths[0], weights)
        return -times * float(a.detach()) * float(of_c @ along / (along @ along)) / self.x.numel()

    def undefined(self) -> bool:
        """Whether a reconstruction of exactly 0 or 1 breaks it, where the pixel is just that.

        It is 1/2 in a third of the pixels: where all pixels are right, a σ that is fitted to the errors is 0.
        """
        edge = self.x.clone()
        edge[::2], edge[1::2] = 0, 1
        reconstruction = edge.reshape(self.reconstruction.shape).clone(memory_format=torch.contiguous_format)
        pixels = reconstruction.view(len(edge), -1)
        pixels[(torch.arange(len(edge))[:, None] + torch.arange(pixels.shape[1])) % 3 == 0] = 0.5
        try:
            value = self.loss(reconstruction, edge, self.mean, self.spread)
        except Exception:  # noqa: BLE001
            return False
        return not math.isfinite(float(value.detach()))


def _any(grad: Tensor | None) -> bool:
    return grad is not None and bool(grad.any())


def _gradient(value: Tensor, weights: list[nn.Parameter]) -> Tensor:
    """Of all weights, as one vector."""
    grads = [None for _ in weights]
    if value.requires_grad:
        grads = torch.autograd.grad(value, weights, allow_unused=True, retain_graph=True)
    return as_vector(grads, weights).double()


def _explain(values: Tensor, terms: list[Tensor]) -> tuple[Tensor, float]:
    """Values [N] by terms [N, D], summed over D, and a constant: coefficients, and the share that is left."""
    ones = torch.ones(len(values), 1, dtype=torch.float64)
    return _least_squares(torch.cat([*(term.sum(1, keepdim=True) for term in terms), ones], 1), values, ones)


def _least_squares(columns: Tensor, values: Tensor, trivial: Tensor) -> tuple[Tensor, float]:
    """Coefficients, and which share of what the trivial columns leave is left."""

    def left(columns: Tensor) -> tuple[Tensor, float]:
        if not columns.isfinite().all():
            return torch.zeros(columns.shape[1]), math.inf
        scale = columns.abs().max(0).values.clamp(min=1e-30)
        coefficients = torch.linalg.lstsq(columns / scale, values, driver="gelsd").solution / scale
        return coefficients, float((columns @ coefficients - values).norm())

    coefficients, rest = left(columns)
    whole = left(trivial)[1]
    return coefficients, rest / whole if whole > 0 else math.inf
