"""The latents of a hierarchy, layer by layer from the top down.

The posterior of a layer needs what was drawn in the layers above, so layers are popped from the top down. All of them
are popped before x is pushed, since each looks at x. (Bit-Swap, Kingma et al. 2019, arXiv:1905.06845, can push between
two pops, because the posterior of each of its layers looks at the layer below alone. That saves initial bits, which a
chain pays once; the bits of each example are the same.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaelab.compression.codecs import Codec, Message
from vaelab.compression.integers import ACTIVATION_BITS, OUTPUT_BITS, Step, limit, look_up, rescale, run
from vaelab.compression.latents import (
    HIGHEST,
    LOWEST,
    SCALE_STEPS,
    Latents,
    Shapes,
    as_activations,
    as_cells,
    as_symbols,
    cells,
    scale_steps,
)

Conditional = tuple[Tensor, Tensor]
"""What the layers above say of a layer: location at 2⁻¹⁶, raw scale as an activation; both [B, D_i]."""
Choose = Callable[[int, Conditional | None], Tensor]
"""(layer, what is said of it from above) -> its cells [B, D_i]."""


@dataclass
class LadderLatents(Latents):
    """Layers of latents, top first; the networks of `vaelab.hierarchical` in whole numbers.

    Attributes:
        encoder: x -> features.
        climbs: features -> d_1 -> … -> d_N, bottom first.
        heads: d -> what the data say, top first, at 2⁻¹⁶: location and log-variance at the top, m and log-precision
            below.
        embeddings, blocks, prior_heads: of the way down; the last for all layers but the top.
        sizes: D_i.
        precision: 1/σ̂² of the data by the log-precision at activations.
        prior_precision: 1/σ² of p(z_i | above) by its raw scale at activations.
        prior_step: its scale step.
        bounds: the precisions between the scale steps of posteriors, from the largest scale to the smallest.
        posterior, top_prior, prior: shapes.
    """

    encoder: tuple[Step, ...]
    climbs: tuple[tuple[Step, ...], ...]
    heads: tuple[tuple[Step, ...], ...]
    embeddings: tuple[tuple[Step, ...], ...]
    blocks: tuple[tuple[Step, ...], ...]
    prior_heads: tuple[tuple[Step, ...], ...]
    sizes: tuple[int, ...]
    precision: Tensor
    prior_precision: Tensor
    prior_step: Tensor
    bounds: Tensor
    posterior: Shapes
    top_prior: Shapes
    prior: Shapes

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def pop_posterior(self, message: Message, x: Tensor) -> Tensor:
        evidence = self._evidence(x)
        return self._pop(lambda layer, above: self._posterior(evidence[layer], above), message)

    def push_posterior(self, message: Message, x: Tensor, z: Tensor) -> None:
        evidence = self._evidence(x)
        self._push(lambda layer, above: self._posterior(evidence[layer], above), message, z)

    def push_prior(self, message: Message, z: Tensor) -> None:
        self._push(lambda _, above: self._prior(len(z), above), message, z)

    def pop_prior(self, message: Message, examples: int) -> Tensor:
        return self._pop(lambda _, above: self._prior(examples, above), message)

    def state(self, z: Tensor) -> Tensor:
        parts: tuple[Tensor, ...] = z.split(self.sizes, dim=-1)

        def choose(layer: int, _: Conditional | None) -> Tensor:
            return parts[layer]

        return self._descend(choose)

    def _pop(self, codec: Callable[[int, Conditional | None], Codec], message: Message) -> Tensor:
        parts: list[Tensor] = []

        def choose(layer: int, above: Conditional | None) -> Tensor:
            parts.append(as_cells(codec(layer, above).pop(message), self.sizes[layer]))
            return parts[-1]

        self._descend(choose)
        return torch.cat(parts, dim=-1)

    def _push(self, codec: Callable[[int, Conditional | None], Codec], message: Message, z: Tensor) -> None:
        parts, codecs = z.split(self.sizes, dim=-1), list[Codec]()

        def choose(layer: int, above: Conditional | None) -> Tensor:
            codecs.append(codec(layer, above))
            return parts[layer]

        self._descend(choose)
        for one, part in zip(reversed(codecs), reversed(parts), strict=True):
            one.push(message, as_symbols(part))

    def _evidence(self, x: Tensor) -> list[Tensor]:
        """What the data say of each layer, top first, [B, 2 D_i]."""
        d, found = run(self.encoder, x), list[Tensor]()
        for climb, head in zip(self.climbs, reversed(self.heads), strict=True):
            d = run(climb, d)
            found.insert(0, run(head, d))
        return found

    def _posterior(self, evidence: Tensor, above: Conditional | None) -> Codec:
        first, second = evidence.chunk(2, dim=-1)
        if above is None:
            return self.posterior.codec(cells(first), scale_steps(second))
        # The product of the two Gaussians. One operation at a time: each is rounded as IEEE 754 says, and no two are
        # fused. m (1 + σ̂²) times the data's precision is m (precision + 1).
        precision = look_up(self.precision, rescale(second, OUTPUT_BITS, ACTIVATION_BITS))
        prior_precision = look_up(self.prior_precision, above[1])
        total = precision + prior_precision
        from_data = first * (precision + 1)
        from_above = above[0] * prior_precision
        step = HIGHEST - torch.searchsorted(self.bounds, total)
        return self.posterior.codec(cells((from_data + from_above) / total), step)

    def _prior(self, examples: int, above: Conditional | None) -> Codec:
        if above is None:
            return self.top_prior.centered(examples * self.sizes[0])
        return self.prior.codec(cells(above[0]), look_up(self.prior_step, above[1]))

    def _descend(self, choose: Choose) -> Tensor:
        """Choose z layer by layer; returns h_0."""
        h, above = None, None
        for layer, (embedding, block) in enumerate(zip(self.embeddings, self.blocks, strict=True)):
            if h is not None:
                loc, raw = run(self.prior_heads[layer - 1], h).chunk(2, dim=-1)
                above = (loc, rescale(raw, OUTPUT_BITS, ACTIVATION_BITS))
            z = as_activations(choose(layer, above))
            seen = z if h is None else torch.cat((h, z), dim=-1)
            added = run(embedding, z) + run(block, seen)
            h = added if h is None else h + added
            h = h.clamp(-limit(ACTIVATION_BITS), limit(ACTIVATION_BITS))
        assert h is not None
        return h


def scale_bounds() -> Tensor:
    """Precisions exp(−2 ln σ) half-way between two scale steps."""
    between = torch.arange(HIGHEST, LOWEST, -1, dtype=torch.float64) - 0.5
    return (-2 * between / SCALE_STEPS).exp()
