"""Every random draw of vaelab comes from a generator made here, so every draw can be replayed."""

import hashlib

import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a key such as `(seed, "step", 17)`: the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that starts at `key`."""
    return torch.Generator(device).manual_seed(seed_of(*key))
