"""Examples in their own integer type, in memory or on disk, read as batches on the model's scale."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaelab.data.spec import DataSpec, Factor
from vaelab.data.stream import Broadcast, Drawn, Rows
from vaelab.errors import InputError

_DRAW_AT_ONCE = 1024  # examples; bounds the memory of one binarization to a few megabytes of uniform numbers
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Split:
    """N examples that belong together: those for training, say.

    Attributes:
        raw: the values as they are stored, `[N, *shape]`: uint8, int16 or int32 for levels and binary data, float32
            for real data. A tensor is in memory; `Rows` stay on disk.
        labels: `[N]` int64, or None.
        scale: what a stored value is divided by before a model sees it: levels − 1, or 1.
        dynamic: whether every read draws a binary picture anew, each dimension 1 with the probability that is its
            value on the model's scale (Salakhutdinov & Murray 2008).
        name: of the split, for messages; empty where it has none.
        target: where the batches of a stream arrive.
        factors: `[N, F]` int64, the value of each known factor, on the CPU; None where none are known.
    """

    raw: Tensor | Rows
    labels: Tensor | None = None
    scale: int = 1
    dynamic: bool = False
    name: str = ""
    target: torch.device = _CPU
    factors: Tensor | None = None

    def __len__(self) -> int:
        return self.raw.shape[0]

    @property
    def streams(self) -> bool:
        """Whether the examples stay on disk."""
        return isinstance(self.raw, Rows)

    @property
    def device(self) -> torch.device:
        """Where batches arrive."""
        return self.target if isinstance(self.raw, Rows) else self.raw.device

    def batch(self, index: Tensor | slice | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Examples as a model sees them: what is read, converted.

        Args:
            index: which ones: int64 positions `[B]`, a slice, or None for all.
            generator: where dynamic binarization draws from; needed then, and only then.

        Returns:
            float32 `[B, *shape]` on `device`, a new tensor: levels in [0, 1], binary values 0 or 1, real values as
            they are.

        Raises:
            ValueError: the split is dynamic and there is no generator.
            InputError, VaelabError: streamed examples that cannot be read.
        """
        return self.convert(self.read(index), generator)

    def read(self, index: Tensor | slice | None = None) -> Tensor:
        """Examples as they are stored, `[B, *shape]`, a new tensor: on the CPU if they stream, else on `device`.

        Raises:
            InputError, VaelabError: streamed examples that cannot be read.
        """
        if isinstance(self.raw, Rows):
            if not isinstance(index, Tensor):
                index = torch.arange(len(self))[index or slice(None)]
            return self.raw.read(index.cpu())
        if isinstance(index, Tensor):
            return self.raw.index_select(0, index.to(self.raw.device))
        return self.raw[index or slice(None)].clone()

    def convert(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Stored values `[B, *shape]`, which stay as they are, as a model sees them: see `batch`."""
        if self.dynamic and generator is None:
            raise ValueError("dynamic binarization draws at every read: give batch() a torch.Generator")
        x = raw.to(self.device, non_blocking=True).to(torch.float32)
        if x is raw and (self.dynamic or self.scale != 1):
            x = x.clone()
        if self.scale != 1:
            x.div_(self.scale)
        return x if generator is None or not self.dynamic else _bernoulli_(x, generator)

    def labels_at(self, index: Tensor | slice) -> Tensor | None:
        """Labels `[B]` on `device` of the examples at these positions, or None."""
        return None if self.labels is None else _take(self.labels, index).to(self.device)

    def examples(
        self, raw: Tensor, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Stored values of the examples at `index` as a model sees them, and their labels; without unusable ones.

        Those of a stream that hold NaN or infinity are left out. Examples in memory were looked at when they were
        loaded.

        Returns:
            x float32 `[B, *shape]`, and y int64 `[B]`, or None where there are no labels.
        """
        x, y = self.convert(raw, generator), self.labels_at(index)
        if not self.streams:
            return x, y
        usable = x.flatten(1).isfinite().all(1)
        return x[usable], None if y is None else y[usable]

    def usable(self) -> "Split":
        """The same without the examples that hold NaN or infinity: a stream is read once for it.

        Examples in memory were looked at when they were loaded.
        """
        if not self.streams:
            return self
        rows = torch.arange(len(self)).split(_DRAW_AT_ONCE)
        whole = [self.convert(self.read(at)).flatten(1).isfinite().all(1) for at in rows]
        return self.select(torch.cat(whole).cpu().nonzero().squeeze(1))

    def fixed(self, seed: int) -> "Split":
        """The same examples with dynamic binarization drawn once from `seed`; itself where nothing is dynamic.

        In memory they are drawn one after the other. In a stream each is drawn by its position in the source.
        """
        if not self.dynamic:
            return self
        if isinstance(self.raw, Rows):
            return replace(self, raw=Drawn(self.raw, self.scale, seed), scale=1, dynamic=False)
        generator = torch.Generator().manual_seed(seed)
        raw = torch.empty(self.raw.shape, dtype=torch.uint8, device=self.raw.device)
        for start in range(0, len(self), _DRAW_AT_ONCE):
            part = slice(start, start + _DRAW_AT_ONCE)
            raw[part] = self.batch(part, generator)
        return replace(self, raw=raw, scale=1, dynamic=False)

    def head(self, n: int) -> "Split":
        """The first n examples (all of them if there are fewer)."""
        return self.select(slice(n))

    def select(self, index: slice | Tensor) -> "Split":
        """Some of the examples, in the order of `index`: a slice, or int64 positions."""
        labels = None if self.labels is None else _take(self.labels, index)
        raw = self.raw.select(index) if isinstance(self.raw, Rows) else _take(self.raw, index)
        factors = None if self.factors is None else _take(self.factors, index)
        return replace(self, raw=raw, labels=labels, factors=factors)

    def expand(self, shape: tuple[int, ...]) -> "Split":
        """Examples of another shape, repeated along axes of length 1: grey pictures as RGB."""
        raw = Broadcast(self.raw, shape) if isinstance(self.raw, Rows) else self.raw.expand(-1, *shape)
        return replace(self, raw=raw)

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on another device; those of a stream stay on disk, and arrive there when they are read."""
        raw = self.raw if isinstance(self.raw, Rows) else self.raw.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, raw=raw, labels=labels, target=torch.device(device))

    def describe(self, position: int) -> str:
        """What a message calls one example: "training example 17", or its place in a stream's source."""
        if isinstance(self.raw, Rows):
            return self.raw.name(position)
        return f"{'training' if self.name == 'train' else self.name} example {position}".strip()


def _take(values: Tensor, part: slice | Tensor) -> Tensor:
    return values[part] if isinstance(part, slice) else values.index_select(0, part.to(values.device))


def _bernoulli_(p: Tensor, generator: torch.Generator) -> Tensor:
    """Overwrite probabilities by draws: 1 with probability p, rounded to a multiple of 2^-16, else 0.

    One 64-bit random number serves four draws, which takes half the time of torch.rand and a fifth of
    torch.bernoulli: at batch 128 this is a tenth of a training step. p = 0 never gives 1, and p = 1 always does.
    Between, the rounded distribution of a picture of 784 pixels and 256 levels is within 1e-7 nats (KL) of the exact.
    """
    n = p.numel()
    words = torch.empty(-(-n // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)  # all 64 bits
    u = words.view(torch.int16)[:n].view(p.shape).to(p.device, torch.float32)  # -32768 ... 32767
    return p.mul_(65536).sub_(32768.5).gt_(u)  # true for round(65536 p) of the 65536 values of u


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole data set, divided.

    Attributes:
        spec: what one example is, as a model sees it: binarized data are binary.
        splits: `train` always, `validation` and `test` where they exist.
        levels: how many values the source's integers can take, whatever was made of them; None if it holds real ones.
        label_names: the name of label 0, 1, …, where there are names.
        fingerprint: SHA-256 over the stored values, their type and shape, the labels and the division. A run that
            finds another fingerprint was given other data.
        factor_specs: what the columns of the splits' factors are; None where no factors are known.
    """

    spec: DataSpec
    splits: dict[str, Split]
    levels: int | None
    label_names: tuple[str, ...] | None
    fingerprint: str
    factor_specs: tuple[Factor, ...] | None = None

    def __getitem__(self, name: str) -> Split:
        """One split by name.

        Raises:
            InputError: there is no split of that name.
        """
        if name not in self.splits:
            known = ", ".join(self.splits)
            use = next((one for one in ("test", "validation", "train") if one in self.splits), "train")
            raise InputError(f"no {name} split: these data have only {known}; use --split {use}")
        return self.splits[name]
