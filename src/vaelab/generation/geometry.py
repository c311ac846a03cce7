"""Paths between points of latent space."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The straight line from a to b [..., D], at t in [0, 1], which broadcasts to [..., 1]."""
    return (1 - t) * a + t * b


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """From a to b [..., D] at t in [0, 1]: the direction turns evenly on a great circle, the norm changes evenly.

    The direction is Shoemake's slerp (1985), sin((1 − t)ω)/sin ω · â + sin(tω)/sin ω · b̂ with ω the angle between the
    unit vectors â and b̂; White 2016 (arXiv:1609.04468) takes it to latent spaces. A straight line would pass closer to
    the origin than almost all of a normal prior's mass in many dimensions.
    Where there is no one such circle (a or b is 0, or their directions are equal or opposite) it is the straight line.
    """
    a64, b64, t64 = a.double(), b.double(), t.double()
    norm_a, norm_b = a64.norm(dim=-1, keepdim=True), b64.norm(dim=-1, keepdim=True)
    unit_a, unit_b = a64 / norm_a, b64 / norm_b
    # Kahan's formula: arccos of the inner product loses half of the digits of a small angle.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=-1, keepdim=True), (unit_a + unit_b).norm(dim=-1, keepdim=True))
    direction = (((1 - t64) * angle).sin() * unit_a + (t64 * angle).sin() * unit_b) / angle.sin()
    turned = linear(norm_a, norm_b, t64) * direction
    # A norm of 0 makes the angle NaN, for which the comparison is false.
    return torch.where(angle.sin() > 1e-6, turned, linear(a64, b64, t64)).to(a.dtype)


PATHS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"linear": linear, "spherical": spherical}


def closed_walk(stops: Tensor, frames: int) -> Tensor:
    """`frames` points [frames, D] on the spherical way through all stops [S, D] and back to the first."""
    at = torch.arange(frames) * len(stops) / frames
    stop = at.long()
    return spherical(stops[stop], stops[(stop + 1) % len(stops)], (at - stop)[:, None])
