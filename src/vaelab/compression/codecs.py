"""Codecs: pairs of `push` and `pop` on a message that is a stack.

A message holds bits. `push` puts symbols on top of it; it grows by −log₂ p(symbol) bits. `pop` takes symbols from its
top; it shrinks by as many. Each undoes the other exactly. So popping from a message of random bits *draws* from p, and
pushing what was drawn gives the bits back: bits-back coding is made of nothing else.

The stack is an asymmetric numeral system (Duda 2013, arXiv:1311.2540): `constriction`'s AnsCoder, with a state of 64
bits, words of 32, and probabilities in multiples of 2⁻²⁴. Every symbol of a codec keeps at least one of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from time import perf_counter
from typing import Any, ClassVar

import constriction
import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.int32]
Cumulative = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Levels [n] -> the weight of all symbols below, for levels from 0 to as many as there are; never falling."""
_stream: Any = vars(constriction)["stream"]  # it tells no types
_models = _stream.model
_FAMILY = _models.Bernoulli(perfect=False)


def pseudo_random_words(number: int, count: int) -> NDArray[np.uint32]:
    """The first `count` words of the pseudo-random sequence of that number, the same on every machine.

    SplitMix64 (Steele, Lea & Flood 2014) from 2³² · number; of each result the upper half.
    """
    state = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(number << 32)
    state *= np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


class Message:
    """A stack of bits.

    Args:
        words: what is on it, as 32-bit words; the last is not 0.

    Attributes:
        seconds: that all messages have spent in the coder so far.
    """

    seconds: ClassVar[float] = 0.0

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._coder = _stream.stack.AnsCoder(words)

    def push(self, symbols: Symbols, model: Any, *parameters: NDArray[np.float64]) -> None:
        """Symbols in such an order that `pop` returns them in theirs."""
        with _clock():
            self._coder.encode_reverse(symbols, model, *parameters)

    def pop(self, model: Any, *parameters: NDArray[np.float64] | int) -> Symbols:
        """As many symbols as there are parameters, or as the number says."""
        with _clock():
            return self._coder.decode(model, *parameters)

    def push_parts(self, symbols: Symbols, models: list[Any], ends: list[int]) -> None:
        """Parts of the symbols, each up to its end under a model of its own."""
        with _clock():
            for model, start, end in zip(reversed(models), reversed([0, *ends][:-1]), reversed(ends), strict=True):
                self._coder.encode_reverse(symbols[start:end], model)

    def pop_parts(self, models: list[Any], ends: list[int]) -> Symbols:
        """And back."""
        with _clock():
            counts = np.diff(ends, prepend=0).tolist()
            parts = [self._coder.decode(model, count) for model, count in zip(models, counts, strict=True)]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def scramble(self, number: int, count: int) -> None:
        """Swap bits of the topmost `count` words (not of the last) by pseudo-random ones; twice is as never."""
        words = self.words()
        top = words[max(0, len(words) - 1 - count) : -1]
        top ^= pseudo_random_words(number, len(top))
        self._coder = _stream.stack.AnsCoder(words)

    @property
    def bits(self) -> int:
        """How many bits it holds."""
        return self._coder.num_valid_bits()

    def words(self) -> NDArray[np.uint32]:
        """All of it."""
        return self._coder.get_compressed()


@contextmanager
def _clock() -> Generator[None]:
    start = perf_counter()
    yield
    Message.seconds += perf_counter() - start


class Codec(ABC):
    """n symbols under one joint distribution."""

    @abstractmethod
    def push(self, message: Message, symbols: Symbols) -> None:
        """Put symbols [n] on top."""

    @abstractmethod
    def pop(self, message: Message) -> Symbols:
        """Take symbols [n] from the top."""


class Bits(Codec):
    """n independent bits, the i-th is 1 with probability p[i]."""

    def __init__(self, p: NDArray[np.float64]) -> None:
        self.p = p

    def push(self, message: Message, symbols: Symbols) -> None:
        message.push(symbols, _FAMILY, self.p)

    def pop(self, message: Message) -> Symbols:
        return message.pop(_FAMILY, self.p)


class Uniform(Codec):
    """n independent symbols, each of 0, 1, … size − 1 as likely."""

    def __init__(self, size: int, n: int) -> None:
        self.model, self.n = _models.Uniform(size), n

    def push(self, message: Message, symbols: Symbols) -> None:
        message.push(symbols, self.model)

    def pop(self, message: Message) -> Symbols:
        return message.pop(self.model, self.n)


class Categorical(Codec):
    """Independent symbols, each from one of a collection of distributions.

    All symbols of one distribution are coded together, which is far faster than one by one.

    Args:
        models: the distributions (`Frequencies`).
        which: the distribution of each symbol, [n].
    """

    def __init__(self, models: "Frequencies", which: NDArray[np.uint8 | np.uint16]) -> None:
        self.order = np.argsort(which, kind="stable")  # of 16 bits at most: sorted by their digits, which is fast
        grouped = which[self.order]
        last = np.flatnonzero(np.diff(grouped, append=grouped[-1:] + 1))
        self.ends: list[int] = (last + 1).tolist()
        self.models = models.of(grouped[last].tolist())

    def push(self, message: Message, symbols: Symbols) -> None:
        message.push_parts(symbols[self.order], self.models, self.ends)

    def pop(self, message: Message) -> Symbols:
        symbols = np.empty(len(self.order), np.int32)
        symbols[self.order] = message.pop_parts(self.models, self.ends)
        return symbols


class Frequencies:
    """Distributions by number, each made when it is first asked for.

    Args:
        weights: the weights of some distributions, up to a factor; whole numbers, so that their sum is exact.
    """

    def __init__(self, weights: Callable[[list[int]], Iterable[NDArray[np.float64]]]) -> None:
        self._weights = weights
        self._made: dict[int, Any] = {}

    def of(self, numbers: list[int]) -> list[Any]:
        """The distributions of these numbers."""
        missing = [number for number in numbers if number not in self._made]
        for number, weights in zip(missing, self._weights(missing), strict=True):
            self._made[number] = _models.Categorical(weights, perfect=False)
        return [self._made[number] for number in numbers]


class Bisected(Codec):
    """n independent symbols 0, 1, … levels − 1 under any cumulative distribution, one bit after the other.

    The first bit says whether a symbol is in the upper half of all, the next in which half of that half, and so on. A
    bit has probability (F(end) − F(middle)) / (F(end) − F(start)).

    Args:
        cumulative: F, in any unit.
        levels: how many symbols there are.
        n: how many are coded.
    """

    def __init__(self, cumulative: Cumulative, levels: int, n: int) -> None:
        self.cumulative, self.levels, self.n = cumulative, levels, n

    def push(self, message: Message, symbols: Symbols) -> None:
        halving, pushed = _Halving(self.cumulative, self.levels, self.n), list[tuple[Bits, Symbols]]()
        for half in self._halves:
            bit = (symbols & half != 0).astype(np.int32)
            pushed.append((halving.bit(half), bit))
            halving.go(bit)
        for codec, bit in reversed(pushed):
            codec.push(message, bit)

    def pop(self, message: Message) -> Symbols:
        halving = _Halving(self.cumulative, self.levels, self.n)
        for half in self._halves:
            halving.go(halving.bit(half).pop(message))
        return halving.start.astype(np.int32)

    @property
    def _halves(self) -> list[int]:
        """How many symbols the half in question has, bit by bit: 128, 64, …, 1."""
        return [1 << place for place in reversed(range((self.levels - 1).bit_length()))]


class _Halving:
    """Where each of n symbols is known to be: from `start` on, between F = `low` and F = `high`."""

    def __init__(self, cumulative: Cumulative, levels: int, n: int) -> None:
        self.cumulative, self.levels = cumulative, levels
        self.start = np.zeros(n, np.int64)
        self.low, self.high = cumulative(self.start), cumulative(np.full(n, levels))

    def bit(self, half: int) -> Bits:
        """Whether it is in the upper half, which begins `half` symbols after the start."""
        self.middle_at = self.start + half
        self.middle = self.cumulative(np.minimum(self.middle_at, self.levels))
        whole = self.high - self.low
        # So far out that F tells no levels apart, all are equally likely.
        return Bits(np.where(whole > 0, (self.high - self.middle) / np.maximum(whole, 1), 0.5))

    def go(self, bit: Symbols) -> None:
        """It is in the upper half (1), or in the lower (0)."""
        upper = bit.astype(bool)
        self.start = np.where(upper, self.middle_at, self.start)
        self.low = np.where(upper, self.middle, self.low)
        self.high = np.where(upper, self.high, self.middle)
