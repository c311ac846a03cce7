"""`training.compile`: the two networks through torch.compile, where that pays."""

import shutil

import torch

from vaelab.errors import InputError
from vaelab.model import Model

STEPS = 2_000
WEIGHTS = 1_000_000


def compile_networks(model: Model, setting: bool | str, device: torch.device, total_steps: int) -> bool:
    """Compile encoder and decoder in place, if `setting` says so. Returns whether that was done.

    `auto` compiles on CUDA alone, and there only what is large (a million weights) and trained for long (2,000
    updates): compiling takes about a minute. Densities are left out, so they are the same code everywhere.

    Raises:
        InputError: asked for on a processor without a C++ compiler.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    pays = device.type == "cuda" and total_steps >= STEPS and weights >= WEIGHTS
    if not (pays if setting == "auto" else setting):
        return False
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise InputError("training.compile=true: needs a C++ compiler here, such as g++; leave it out")
    model.encoder.compile(dynamic=False)
    model.decoder.compile(dynamic=False)
    return True
