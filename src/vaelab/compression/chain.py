"""Bits-back coding of a chain of examples.

For each group of examples, with a message that already holds bits:

    encode   pop z ~ q(z|x)      push x under p(x|z)     push z under p(z)
    decode   pop z under p(z)    pop x under p(x|z)      push z under q(z|x)

An example costs −log₂ p(x|z) − log₂ p(z) + log₂ q(z|x) bits, on average −ELBO / ln 2 (Townsend et al. 2019,
arXiv:1901.04866, eq. 1). The first group finds a message of known *initial bits*; decoding ends with exactly these.

Bits that are popped must look random, for they choose z. Those on top are of the last group's z, coded under p(z).
Where q(z|x) is much like p(z), the same z would come again, example after example (measured: 1.2 % more bits). So they
are scrambled first, and unscrambled when decoding has pushed them back.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaelab.compression.codecs import Message, pseudo_random_words
from vaelab.compression.quantize import CodecModel
from vaelab.parallel import still_wanted

GROUP = 1000
"""Examples that are coded together at most."""
SHARE = 8
"""A group has at most one for 8 examples that were coded before, so that there are bits enough to borrow."""
LEAST_WORDS = 2
"""That stay in a message when bits are borrowed."""


def bounds(n: int) -> list[int]:
    """Where the groups of n examples begin and end: 0, 1, 2, …, then ever further apart, n."""
    found = [0]
    while found[-1] < min(n, GROUP * SHARE):
        found.append(min(n, found[-1] + max(1, found[-1] // SHARE)))
    return found if found[-1] == n else [*found, *range(found[-1] + GROUP, n, GROUP), n]


def groups(n: int) -> Iterator[slice]:
    """Which of n examples are coded together."""
    for start, stop in pairwise(bounds(n)):
        yield slice(start, stop)


def initial_words(count: int) -> NDArray[np.uint32]:
    """The initial bits: pseudo-random words, of which the last is odd, for a message ends in no 0."""
    words = pseudo_random_words(0, count)
    words[-1] |= np.uint32(1)
    return words


def encode(model: CodecModel, examples: NDArray[np.integer[Any]]) -> tuple[int, NDArray[np.uint32]]:
    """Examples [N, *shape] as one message.

    Returns:
        How many initial words it began with, and its words.
    """
    count = LEAST_WORDS
    while (message := _encode(model, examples, count)) is None:
        count += max(1, count // 4)
    return count, message.words()


def _encode(model: CodecModel, examples: NDArray[np.integer[Any]], count: int) -> Message | None:
    """A message, or None where the bits to borrow ran out: the coder itself would not tell."""
    message = Message(initial_words(count))
    for number, part in enumerate(groups(len(examples)), 1):
        still_wanted()
        levels = torch.from_numpy(np.ascontiguousarray(examples[part], np.int32))
        message.scramble(number, len(levels) * model.latents.size)
        z = model.latents.pop_posterior(message, model.see(levels))
        if message.bits < 32 * LEAST_WORDS:
            return None
        model.pixel_codec(z).push(message, levels.flatten().numpy())
        model.latents.push_prior(message, z)
    return message


def decode(model: CodecModel, n: int, count: int, words: NDArray[np.uint32]) -> tuple[NDArray[np.int32] | None, bool]:
    """The n examples [n, *shape] of a message that began with `count` initial words.

    Returns:
        The examples, None if it holds less than that; and whether it ends with its initial bits.
    """
    found: list[NDArray[np.int32]] = []
    try:
        message = Message(words)
        ends = bounds(n)
        for number in range(len(ends) - 1, 0, -1):
            still_wanted()
            z = model.latents.pop_prior(message, ends[number] - ends[number - 1])
            levels = torch.from_numpy(model.pixel_codec(z).pop(message)).view(-1, *model.shape)
            if message.bits < 32 * LEAST_WORDS:
                return None, False
            model.latents.push_posterior(message, model.see(levels), z)
            message.scramble(number, len(levels) * model.latents.size)
            found.append(levels.numpy())
        rest = message.words()
    except BaseException as error:
        # The coder panics on some messages that no encoder wrote, with an exception that is no Exception.
        if isinstance(error, ValueError | KeyError) or type(error).__name__ == "PanicException":
            return None, False
        raise
    whole = len(rest) == count and np.array_equal(rest, initial_words(count))
    return np.concatenate([np.empty((0, *model.shape), np.int32), *reversed(found)]), whole
