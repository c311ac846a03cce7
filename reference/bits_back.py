"""Bits-back coding: a VAE as a lossless codec, whole, in one file (read vae.py first): python reference/bits_back.py.

A picture of probability p(x) can be written in -log2 p(x) bits. A VAE cannot compute p(x), only p(z) and p(x|z). One
may choose a z, write z, and then write x by p(x|z). But many z would do for this x. To tell which of them it was costs
bits, and they are wasted unless the choice itself tells something. So let bits that are already written choose z [1]:

    pop z by q(z|x):    the message becomes shorter by  -log2 q(z|x)  bits, which come back when x is decoded
    push x by p(x|z):   it becomes longer by            -log2 p(x|z)  bits
    push z by p(z):     it becomes longer by            -log2 p(z)    bits, and is ready for the next picture
    net, on average:                                    -ELBO / ln 2  bits

The message is one large integer m, of log2 m bits. Pushing a symbol of probability P makes it about m / P, and popping
undoes that. It is a stack: last in, first out. This is how asymmetric numeral systems, ANS, work [2].
[1] is Townsend, Bird & Barber 2019, arXiv:1901.04866; [2] is Duda 2013, arXiv:1311.2540.
"""

import argparse
import math
import random
from bisect import bisect_right

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

LATENT_DIM = 8  # D in the comments below
INITIAL_BITS = 128  # random bits, enough for the first picture to choose its z
UNIT = 2**16  # probabilities are multiples of 1 / UNIT: symbol s owns the numbers from table[s] up to table[s + 1]
BUCKETS = 2**8  # a latent is cut into so many buckets, of equal probability under the prior N(0, 1)
NORMAL = torch.distributions.Normal(torch.zeros(1, dtype=torch.float64), 1.0)
EDGES = NORMAL.icdf(torch.linspace(0, 1, BUCKETS + 1, dtype=torch.float64))  # of the buckets: -inf, ..., 0, ..., inf
CENTERS = NORMAL.icdf((torch.arange(BUCKETS) + 0.5).double() / BUCKETS).float()  # the z that stands for a bucket
PRIOR = [list(range(0, UNIT + 1, UNIT // BUCKETS))] * LATENT_DIM  # tables of p(z), one for each latent


def push(message: int, symbols: list[int], tables: list[list[int]]) -> int:
    for symbol, table in zip(symbols, tables, strict=True):
        start, share = table[symbol], table[symbol + 1] - table[symbol]
        # Of UNIT integers in a row, `share` belong to the symbol. Of all that do, take the one with number `message`.
        message = message // share * UNIT + start + message % share
    return message


def pop(message: int, tables: list[list[int]]) -> tuple[int, list[int]]:
    """Undoes `push`, and `push` undoes it, whatever the message is. What went in last comes out first."""
    symbols: list[int] = []
    for table in reversed(tables):
        number = message % UNIT
        symbol = bisect_right(table, number) - 1  # table[symbol] <= number < table[symbol + 1]
        message = message // UNIT * (table[symbol + 1] - table[symbol]) + number - table[symbol]
        symbols.insert(0, symbol)
    return message, symbols


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 2 * LATENT_DIM))
        self.decoder = nn.Sequential(nn.Linear(LATENT_DIM, 256), nn.GELU(), nn.Linear(256, 64))


def elbo(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """As in vae.py, in nats: [K, B]. Takes black and white pictures x [B, 64] and noise eps ~ N(0, I) [K, B, D]."""
    loc, log_variance = model.encoder(x).chunk(2, dim=-1)
    logits = model.decoder(loc + torch.exp(0.5 * log_variance) * eps)
    kl = 0.5 * (log_variance.exp() + loc**2 - 1 - log_variance).sum(-1)
    return (x * logits - nn.functional.softplus(logits)).sum(-1) - kl


def fit(model: VAE, train: Tensor, epochs: int, noise: torch.Generator) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for _ in range(epochs):
        for x in train[torch.randperm(len(train), generator=noise)].split(64):
            optimizer.zero_grad()
            (-elbo(model, x, torch.randn(len(x), LATENT_DIM, generator=noise)).mean()).backward()
            optimizer.step()


def posterior(model: VAE, x: Tensor) -> list[list[int]]:
    """Tables of q(z|x), one for each latent: how much of the Gaussian lies in each bucket."""
    loc, log_variance = model.encoder(x).double().view(2, LATENT_DIM, 1)
    cdf = NORMAL.cdf((EDGES - loc) / torch.exp(0.5 * log_variance))  # [D, BUCKETS + 1], from 0 to 1
    return (cdf * UNIT).round().long().tolist()  # a share may become 0: that bucket is never popped


def likelihood(model: VAE, z: list[int]) -> list[list[int]]:
    """Tables of p(x|z), one for each pixel: the share of white, then of black. None is 0, for either may be pushed."""
    white = (-model.decoder(CENTERS[z])).sigmoid() * UNIT  # [64]
    return [[0, share, UNIT] for share in white.round().long().clamp(1, UNIT - 1).tolist()]


def encode(model: VAE, message: int, x: Tensor) -> list[int]:
    """Puts a picture x [64] on the message. Gives the message after each of the three steps."""
    without_z, z = pop(message, posterior(model, x))
    with_x = push(without_z, x.int().tolist(), likelihood(model, z))
    return [without_z, with_x, push(with_x, z, PRIOR)]


def decode(model: VAE, message: int) -> tuple[int, Tensor]:
    """Takes a picture off, by the same steps from the last to the first, with pop for push and push for pop."""
    with_x, z = pop(message, PRIOR)
    # The networks must give what they gave in `encode`, to the last bit. Within a process they do, picture by picture.
    # Another machine adds in another order and rounds otherwise: a codec for files computes its networks with integers.
    without_z, pixels = pop(with_x, likelihood(model, z))
    x = torch.tensor(pixels).float()
    return push(without_z, z, posterior(model, x)), x  # the bits that chose z are back


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a VAE on digits; code test pictures with it; print a ledger.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", default="bits_back.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # at this size two threads gain little, and lose much on a busy machine
    noise, model = torch.manual_seed(args.seed), VAE()
    x = (torch.as_tensor(load_digits(return_X_y=True)[0]) > 8).float()  # [1797, 64]: black and white
    test, train = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))].split([180, 1617])
    fit(model, train, args.epochs, noise)
    with torch.no_grad():
        bound = -elbo(model, test, torch.randn(100, 180, LATENT_DIM, generator=noise)).mean(0) / math.log(2)  # [180]
        messages = [random.Random(args.seed).getrandbits(INITIAL_BITS)]
        for picture in test:
            messages += encode(model, messages[-1], picture)
        message = messages[-1]
        for picture in test.flip(0):
            message, decoded = decode(model, message)
            assert (decoded == picture).all()
        assert message == messages[0]
    lengths = torch.tensor([math.log2(message) for message in messages], dtype=torch.float64)
    ledger = lengths.diff().view(180, 3)
    rows = torch.stack([*ledger.T, ledger.sum(1), bound, ledger.sum(1) - bound], dim=1)  # [180, 6]
    print("bits               pop z    push x    push z       net  -ELBO/ln 2  difference")
    shown = torch.stack([*rows[:4], rows.mean(0), rows.std(0) / 180**0.5])
    for name, row in zip(["picture 1", "2", "3", "4", "mean of 180", "standard error"], shown.tolist(), strict=True):
        print(f"{name:<14}" + "".join(f"{value:10.2f}" for value in row))
    print(f"message: {lengths[-1] / 8:.0f} bytes, {INITIAL_BITS // 8} of them initial; decoded: pictures, initial bits")
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for step, name in enumerate(("pop z by q(z|x)", "push x by p(x|z)", "push z by p(z)")):
        axes.bar(range(step, 18, 3), ledger[:6, step], bottom=lengths[step:18:3], label=name)
    axes.plot(range(2, 18, 3), lengths[0] + bound[:6].cumsum(0), "k_", ms=30, label="sum of -ELBO / ln 2 so far")
    axes.set(title="Six pictures go on the message", xlabel="step", ylabel="length of the message (bits)", ylim=0)
    axes.legend()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
