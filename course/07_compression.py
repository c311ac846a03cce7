# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Compression
#
# A model that gives a picture the probability $p(x)$ can write it in $-\log_2 p(x)$ bits. So a VAE is a compressor,
# and its ELBO says how good. But a VAE cannot compute $p(x)$. This chapter shows how it writes files nonetheless, bit
# for bit: from the ELBO to a message, and back to the same pictures.

# %% tags=["hide-input"] alt="Horizontal bars: bits per picture of 360 black and white digits. Raw 64, one PNG and xz somewhat less, minus the ELBO of a VAE less than half of raw."
import copy
import io
import lzma
import math
import random
import tempfile
from bisect import bisect_right
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import vaelab
from vaelab.compression import measure
from vaelab.course import FAST, quote

torch.set_num_threads(1)
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008: safe for the color-blind
STEPS = 250 if FAST else 1200
PIXELS, LATENTS = 64, 8
ALL = 360  # test pictures

levels = torch.tensor(load_digits().data)  # [1797, 64], gray levels 0 to 16
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
train_x, test_x = (levels > 8).float()[order].split([1437, ALL])  # black and white


class VAE(nn.Module):
    def __init__(self, latents=LATENTS, hidden=128):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, PIXELS))

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=-1)  # mean and log-variance of q(z|x)


def kl_by_latent(mean, log_variance):
    return 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance)


def elbo(model, x, epsilon):
    """The ELBO in nats [..., B] of black and white pictures, with noise epsilon [..., B, latents]."""
    mean, log_variance = model.encode(x)
    logits = model.decoder(mean + torch.exp(0.5 * log_variance) * epsilon)
    return F.logsigmoid((2 * x - 1) * logits).sum(-1) - kl_by_latent(mean, log_variance).sum(-1)


def train(model, loss, pictures, steps=STEPS):
    """Minimize loss(model, x, epsilon) over batches of 128 pictures."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = pictures[torch.randint(len(pictures), (128,), generator=generator)]
        epsilon = torch.randn(128, model.decoder[0].in_features, generator=generator)
        optimizer.zero_grad()
        loss(model, x, epsilon).backward()
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


torch.manual_seed(0)
model = train(VAE(), lambda model, x, epsilon: -elbo(model, x, epsilon).mean(), train_x)
noise = torch.randn(200, ALL, LATENTS, generator=torch.Generator().manual_seed(1))
elbo_nats = elbo(model, test_x, noise).mean(0)  # [360]
elbo_bits = -elbo_nats.double() / math.log(2)  # minus the ELBO in bits


def mosaic(pictures):
    """All test pictures side by side, 20 in a row: [360, 64] -> [144, 160]."""
    return pictures.view(18, 20, 8, 8).transpose(1, 2).reshape(144, 160)


def png_bytes(pixels):
    """The size of a PNG file with one bit a pixel, in bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy() > 0.5).save(file, "png", optimize=True)
    return len(file.getvalue())


packed = np.packbits(test_x.numpy() > 0.5).tobytes()
xz = len(lzma.compress(packed, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}]))
sizes = {
    "as they are": PIXELS,
    "one PNG of all": 8 * png_bytes(mosaic(test_x)) / ALL,
    "xz": 8 * xz / ALL,
    "VAE: $-$ELBO / ln 2": elbo_bits.mean().item(),
}
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
bars = axis.barh(list(sizes), sizes.values(), color=["gray", GREEN, GREEN, BLUE])
axis.bar_label(bars, fmt="%.1f", padding=3)
axis.set(xlabel="bits per picture", xlim=(0, 75))
axis.invert_yaxis()
quote("png", sizes["one PNG of all"], rel=0.05)
quote("xz", sizes["xz"], rel=0.02)
quote("elbo_nats", elbo_nats.mean().item(), abs=0.4)
quote("elbo_bits", elbo_bits.mean().item(), abs=0.6)
quote("latents", LATENTS, abs=0.1)
quote("raw_bits", PIXELS, abs=0.1)
quote("bits_dim", elbo_bits.mean().item() / PIXELS, abs=0.01)

# %% [markdown]
# *Figure 7.1. What 360 held-out digits of 64 black and white pixels cost, in bits per picture. The last bar is a
# promise: the ELBO of a VAE with {{latents:.0f}} latents, in other units.*
#
# The ELBO of this VAE is {{elbo_nats:.2f}} nats per picture. In bits that is {{elbo_bits:.2f}}, since 1 nat is $1/\ln
# 2 = 1.443$ bits. **Bits per dimension** are the same divided by the number of pixels: {{bits_dim:.3f}}. A PNG file
# takes {{png:.1f}} bits per picture. xz, a program for any kind of file, takes {{xz:.1f}}.
#
# ## Why is a probability a length?
#
# A code gives each symbol a word of bits. To be read without commas, no word may be the beginning of another. Words
# of length $\ell$ are a share $2^{-\ell}$ of all ways in which the bits can go on, and the shares of different words
# do not overlap. So the lengths obey $\sum_s 2^{-\ell(s)} \le 1$. In other words, **lengths are probabilities**:
# $2^{-\ell(s)}$. The other way round, a probability $q(s)$ asks for a word of $-\log_2 q(s)$ bits.
#
# Let symbols come with probabilities $p$, and the lengths be those of $q$. The mean length is
#
# $$\sum_s p(s) \log_2 \frac{1}{q(s)} = \underbrace{\sum_s p(s) \log_2 \frac{1}{p(s)}}_{\text{entropy } H(p)} +
# \underbrace{\sum_s p(s) \log_2 \frac{p(s)}{q(s)}}_{\mathrm{KL}(p \,\|\, q)}.$$
#
# No code is shorter than the entropy, on average. A wrong model costs its KL on top, not a bit more.


# %%
def mean_length(p, q):
    """Bits per symbol if symbols come by p and are coded by q."""
    return -(p * q.log2()).sum()


p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
entropy = -(p * p.log2()).sum()
kl_bits = (p * (p / q).log2()).sum()
assert torch.allclose(mean_length(p, q), entropy + kl_bits)
quote("entropy", entropy.item(), abs=1e-6)
quote("wrong", mean_length(p, q).item(), abs=1e-6)

# %% [markdown]
# For probabilities ½, ¼, ¼ the entropy is {{entropy:.2f}} bits: words of 1, 2 and 2 bits. With the words of another
# model, ¼, ¼, ½, it takes {{wrong:.2f}}. But what of a symbol with $-\log_2 q(s) = 0.1$ bits? Words have whole bits,
# so the code has to be for many symbols at once.
#
# ## A message is one large integer
#
# Call the message $m$, an integer. Its length is $\log_2 m$ bits. To **push** a symbol of probability $P$ should add
# $-\log_2 P$ bits, so it should make $m$ about $m / P$. To **pop** takes the symbol off, and gives back the $m$ of
# before.
#
# Let every symbol own a share of the integers. Of the first four, let `a` own 0 and 1, `b` own 2 and `c` own 3. Let
# it go on like this: of the next four, the first two belong to `a`, and so on. The new message is the integer that
# belongs to the symbol, and has number $m$ among those that do. As half of all integers belong to `a`, it is about
# $2m$. This is **asymmetric numeral systems**, ANS. (Reference 4.)


# %%
def push(message, symbols, tables):
    """Put symbols on the message. A symbol owns the numbers from table[symbol] up to table[symbol + 1]."""
    for symbol, table in zip(symbols, tables, strict=True):
        start, share = table[symbol], table[symbol + 1] - table[symbol]
        message = message // share * table[-1] + start + message % share
    return message


def pop(message, tables):
    """Take symbols off; the one that was pushed last is the first."""
    symbols = []
    for table in reversed(tables):
        number = message % table[-1]
        symbol = bisect_right(table, number) - 1  # table[symbol] <= number < table[symbol + 1]
        message = message // table[-1] * (table[symbol + 1] - table[symbol]) + number - table[symbol]
        symbols.insert(0, symbol)
    return message, symbols


abc = [0, 2, 3, 4]
for symbol in (0, 1, 2):
    after = push(5, [symbol], [abc])
    print(f"5 = {5:b} in binary, with {'abc'[symbol]}: {after} = {after:b}")
    owned = [n for n in range(100) if abc[symbol] <= n % 4 < abc[symbol + 1]]
    assert after == owned[5] and pop(after, [abc]) == (5, [symbol])

long_message = random.Random(0).getrandbits(1000)
longer = push(long_message, [0, 1, 1, 2], [abc] * 4)
assert abs(math.log2(longer) - math.log2(long_message) - 7) < 1e-9, "1 + 2 + 2 + 2 bits"
assert pop(longer, [abc] * 4) == (long_message, [0, 1, 1, 2])
assert push(*pop(long_message, [abc] * 9), [abc] * 9) == long_message  # it works the other way, too

# %% [markdown]
# The last line matters. One can pop symbols from *any* message, also from one that nobody pushed them on. Its bits
# then choose the symbols, by the probabilities of the table, as dice would. To push the same symbols gives the bits
# back. **Popping is sampling that can be undone.**
#
# Now code the 360 test pictures, with the simplest of models. Pixel $i$ is black with the share $p_i$ that it has in
# the training set. Tables hold whole numbers, so probabilities are rounded to multiples of $2^{-16}$. No symbol that
# may be pushed can have the share 0.

# %%
UNIT = 2**16


def table_of(probabilities):
    """Tables from probabilities over the last axis: [..., S] -> nested lists [..., S + 1], from 0 to UNIT."""
    return (F.pad(probabilities.double().cumsum(-1), (1, 0)) * UNIT).round().long().tolist()


def pixel_tables(black):
    """A table of white and black for each pixel; black: its probability, [64]."""
    black = black.double().clamp(1 / UNIT, 1 - 1 / UNIT)
    return table_of(torch.stack([1 - black, black], dim=-1))


ink = (train_x.double().sum(0) + 1) / (len(train_x) + 2)
tables, message = pixel_tables(ink), 2**32  # an integer below UNIT is too coarse for small shares
for x in test_x.int().tolist():
    message = push(message, x, tables)
exact = -(test_x * ink.log2() + (1 - test_x) * (1 - ink).log2()).sum(-1).mean().item()
bits = quote("independent", (math.log2(message) - 32) / ALL, abs=0.01)
assert abs(bits - exact) < 1e-3
for x in reversed(test_x.int().tolist()):
    message, found = pop(message, tables)
    assert found == x
assert message == 2**32

# %% [markdown]
# That is {{independent:.2f}} bits per picture, what the model's probabilities say to a thousandth of a bit, and
# everything comes back. ANS wastes nothing. From here on only the model counts.
#
# ## A model with a hidden variable
#
# Pixels are not independent. Let there be 30 prototypes. A picture comes about so: draw a prototype $c$ by $p(c)$,
# then each pixel by the prototype's own probability. This is a **mixture**, and it is a VAE in small: the hidden
# variable is a number from 0 to 29. Everything about it is exact, the posterior $p(c|x)$ and $p(x) = \sum_c
# p(c)\,p(x|c)$ too. Thirty steps of the EM algorithm fit it.

# %%
COMPONENTS = 30


def log_joint(x):
    """log p(x, c) in nats, [B, components]."""
    return x @ prototypes.log().T + (1 - x) @ (1 - prototypes).log().T + weights.log()


generator = torch.Generator().manual_seed(0)
weights = torch.full((COMPONENTS,), 1 / COMPONENTS, dtype=torch.float64)
prototypes = 0.25 + 0.5 * train_x[torch.randperm(len(train_x), generator=generator)[:COMPONENTS]].double()
for _ in range(30):
    share = log_joint(train_x.double()).softmax(-1)  # p(c|x) of each picture
    weights = (share.sum(0) + 1) / (share.sum() + COMPONENTS)
    prototypes = (share.T @ train_x.double() + 0.5) / (share.sum(0)[:, None] + 1)

joint = log_joint(test_x.double()) / math.log(2)  # log2 p(x, c), [360, 30]
log2_px = joint.exp2().sum(-1).log2()
quote("mixture", -log2_px.mean().item(), abs=0.3)
quote("mixture_best", -joint.max(-1).values.mean().item(), abs=0.3)

# %% [markdown]
# How to code a picture by this? ANS wants a table of symbols. A table of pictures has $2^{64}$ entries. Given $c$ it
# is easy: pixel by pixel, with the tables of $p(x|c)$. So choose a $c$, push it by $p(c)$, and push $x$ by $p(x|c)$.
# With the best $c$ for each picture that takes {{mixture_best:.2f}} bits on average. But $-\log_2 p(x)$ is
# {{mixture:.2f}}. The difference is small here, and soon it will be large. Where does it come from? The decoder
# learns which $c$ it was. If two prototypes would do as well, then the choice between them is one bit that tells
# nothing of the picture.
#
# (Thirty prototypes are as good as the VAE here, whose bar in figure 7.1 stands at {{elbo_bits:.2f}}. Digits of 64
# pixels are that simple. The number of prototypes that a picture needs grows exponentially with what can vary in it,
# and then there is no way around a $z$ with many coordinates.)
#
# ## Bits back
#
# Unless the choice itself carries a message! Let bits that are there already choose $c$. Pop $c$ from the message by
# the posterior $p(c|x)$. The message becomes shorter by $-\log_2 p(c|x)$ bits. Then push $x$ by $p(x|c)$, and $c$ by
# $p(c)$. The decoder pops $c$, then $x$. Now it knows $x$, so it knows $p(c|x)$, and pushes $c$ by it: it gets the
# bits back that chose $c$. In sum the message has grown by
#
# $$-\log_2 p(c) - \log_2 p(x|c) + \log_2 p(c|x) = -\log_2 \frac{p(x, c)}{p(c|x)} = -\log_2 p(x),$$
#
# whichever $c$ it was.


# %%
def push_picture(message, x):
    """Bits-back with the mixture. Gives the message after each of the three steps, and c."""
    without_c, [c] = pop(message, [table_of(log_joint(x.double()).softmax(-1))])
    with_x = push(without_c, x.int().tolist(), pixel_tables(prototypes[c]))
    return [without_c, with_x, push(with_x, [c], [table_of(weights)])], c


unsure = int((joint - log2_px[:, None]).max(-1).values.argmin())  # the picture whose posterior is the least sure
ledgers = {}
for seed in range(40):
    start = random.Random(seed).getrandbits(500)
    messages, c = push_picture(start, test_x[unsure])
    ledgers[c] = np.diff([math.log2(m) for m in (start, *messages)])
print(" c    pop c   push x   push c      net")
for c, ledger in sorted(ledgers.items()):
    print(f"{c:2} " + "".join(f"{bits:9.2f}" for bits in (*ledger, ledger.sum())))
nets = np.array([ledger.sum() for c, ledger in ledgers.items() if joint[unsure, c] > log2_px[unsure] - 7])
quote("one_net", -log2_px[unsure].item(), abs=1.5)
quote("choices", len(ledgers), abs=1.5)
quote("net_spread", np.abs(nets + log2_px[unsure].item()).max(), abs=0.02)
assert len(nets) > 1 and np.abs(nets + log2_px[unsure].item()).max() < 0.02, "each c should give -log2 p(x)"

# %% [markdown]
# The picture is the one whose prototype is the least certain. Forty messages of 500 random bits have chosen among
# {{choices:.0f}} prototypes for it. Each line is another ledger, and the sum is the same in all: $-\log_2 p(x) =
# {{one_net:.2f}}$ bits, to within {{net_spread:.4f}}. (The rest is the rounding of the tables.) The net length is
# exact because the posterior is.
#
# ## The same with a VAE
#
# A VAE has no exact posterior, but it has $q(z|x)$. Pop $z$ by that. The net length then depends on $z$, and its mean
# is
#
# $$\mathbb E_{q(z|x)}\big[-\log_2 p(z) - \log_2 p(x|z) + \log_2 q(z|x)\big] = -\frac{\mathrm{ELBO}}{\ln 2}.$$
#
# The gap between the ELBO and $\log p(x)$, which chapter 2 is about, is now a number of bits that we pay.
#
# One thing is missing. $z$ is a real number, and a table has a finite number of symbols. So cut each latent into $B$
# buckets that have equal probability under the prior. Then $p(z)$ is a table of equal shares: $\log_2 B$ bits for
# each latent. The table of
# $q(z|x)$ holds the mass of the Gaussian in each bucket, a difference of its CDF at two edges. The decoder sees the
# bucket's center, or the median of the prior in it, to be exact.


# %%
BUCKETS = 256
standard = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)


def edges_of(buckets):
    return standard.icdf(torch.arange(buckets + 1).double() / buckets)  # from minus to plus infinity


def centers_of(buckets):
    return standard.icdf((torch.arange(buckets) + 0.5).double() / buckets)


def posterior_cdf(model, x, edges):
    """The CDF of each latent's q(z|x) at the edges: [..., 64] -> [..., latents, B + 1]."""
    mean, log_variance = (value.double()[..., None] for value in model.encode(x))
    return standard.cdf((edges - mean) / torch.exp(0.5 * log_variance))


EDGES, CENTERS = edges_of(BUCKETS), centers_of(BUCKETS).float()
PRIOR = [list(range(0, UNIT + 1, UNIT // BUCKETS))] * LATENTS


def posterior_tables(model, x):
    return (posterior_cdf(model, x, EDGES) * UNIT).round().long().tolist()


def likelihood_tables(model, z):
    return pixel_tables(model.decoder(CENTERS[z]).sigmoid())


def encode(model, message, x):
    """Put a picture on the message. Gives the message after each of the three steps."""
    without_z, z = pop(message, posterior_tables(model, x))
    with_x = push(without_z, x.int().tolist(), likelihood_tables(model, z))
    return [without_z, with_x, push(with_x, z, PRIOR)]


def decode(model, message):
    """The same steps from the last to the first, with pop for push and push for pop."""
    with_x, z = pop(message, PRIOR)
    without_z, pixels = pop(with_x, likelihood_tables(model, z))
    x = torch.tensor(pixels).float()
    return push(without_z, z, posterior_tables(model, x)), x


def chain(pictures, initial_bits):
    """Pictures go on one message after another: all messages, three for each picture after the first."""
    messages = [random.Random(0).getrandbits(initial_bits) | 1 << initial_bits]
    for x in pictures:
        messages += encode(model, messages[-1], x)
    return messages


messages = chain(test_x, 128)
message = messages[-1]
for x in test_x.flip(0):
    message, found = decode(model, message)
    assert (found == x).all()
assert message == messages[0]  # the initial bits too

lengths = np.array([math.log2(m) for m in messages])
ledger = np.diff(lengths).reshape(ALL, 3)
net = ledger.sum(1)
print("picture    pop z   push x   push z      net    -ELBO")
for k in range(5):
    print(f"{k + 1:7}  " + "".join(f"{bits:9.2f}" for bits in (*ledger[k], net[k], elbo_bits[k])))
for name, bits in zip(("popped", "pushed_x", "pushed_z"), ledger.mean(0), strict=True):
    quote(name, abs(bits), abs=1.0)
quote("net", net.mean(), abs=0.7)
quote("excess", net.mean() - elbo_bits.mean().item(), abs=0.4)
quote("excess_error", (net - elbo_bits.numpy()).std() / math.sqrt(ALL), rel=0.2)
quote("file", math.ceil(lengths[-1] / 8), rel=0.03)
quote("raw_file", ALL * PIXELS / 8, abs=0.1)
quote("without", (ledger[:, 1] + ledger[:, 2]).mean(), abs=1.0)
assert np.allclose(ledger[:, 2], LATENTS * 8, atol=1e-6)
assert abs(net.mean() / elbo_bits.mean() - 1) < 0.02, "the net length should be minus the ELBO over ln 2"

# %% tags=["hide-input"] alt="A staircase of bars: for each of five pictures the message becomes some 55 bits shorter, then a little longer, then 64 bits longer. Its length after each picture follows the sum of minus the ELBO."
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for step, (name, color) in enumerate({"pop $z$": ORANGE, "push $x$": GREEN, "push $z$": BLUE}.items()):
    axis.bar(range(step, 15, 3), ledger[:5, step], bottom=lengths[step:15:3], color=color, label=name)
expected = lengths[0] + elbo_bits[:5].cumsum(0)
axis.plot(
    range(2, 15, 3), expected, "_", color="black", markersize=24, label="initial bits and the sum of $-$ELBO / ln 2"
)
axis.set(ylabel="length of the message (bits)", ylim=(0, None))
axis.set_xticks(range(1, 15, 3), [f"picture {k}" for k in range(1, 6)])
axis.legend(loc="lower right")

# %% [markdown]
# *Figure 7.2. Five pictures go on a message of 128 random bits.*
#
# On average over the 360 pictures, {{popped:.2f}} bits are popped, {{pushed_x:.2f}} are pushed for $x$ and
# {{pushed_z:.0f}} for $z$. The net is {{net:.2f}} bits. Minus the ELBO is {{elbo_bits:.2f}}; the difference is
# {{excess:.2f}} ± {{excess_error:.2f}}. (Each picture draws one $z$, so a single net scatters around its ELBO.)
# Everything is a file of {{file:,.0f}} bytes, for {{raw_file:,.0f}} bytes of pixels. It decodes to the same 360
# pictures, from the last to the first, and leaves the 128 bits of the beginning.
#
# Without bits back, to push $z$ and $x$ costs {{without:.1f}} bits, more than the {{raw_bits:.0f}} pixels themselves.
#
# ## What do the buckets cost?
#
# Predict: let each latent have 1,024 buckets in place of 256. To push $z$ then costs 10 bits for each latent in place
# of 8, so 16 bits more for a picture. By how much does the net change?


# %%
def mean_lengths(model, x, log2_buckets, draws=10):
    """Mean net length with bits back, and the length with the likeliest bucket and no bits back, in bits."""
    mass = posterior_cdf(model, x, edges_of(2**log2_buckets)).diff(dim=-1)  # q(z|x) of each bucket
    z = torch.stack(
        [mass.argmax(-1), *torch.multinomial(mass.flatten(0, -2), draws, True).T.reshape(draws, *mass.shape[:-1])]
    )
    logits = model.decoder(centers_of(2**log2_buckets).float()[z])
    log2_px_z = F.logsigmoid((2 * x - 1) * logits).double().sum(-1) / math.log(2)
    pushed = latents_of(model) * log2_buckets - log2_px_z  # [1 + draws, B]
    popped = -mass.log2().expand(draws + 1, *mass.shape).gather(-1, z[..., None]).sum((-1, -2))
    return (pushed - popped)[1:].mean().item(), pushed[0].mean().item()


def latents_of(model):
    return model.decoder[0].in_features


torch.manual_seed(0)
grid = {b: mean_lengths(model, test_x, b) for b in range(11)}
for b, (with_bits_back, without) in grid.items():
    print(f"{2**b:5} buckets: bits back {with_bits_back:6.2f}, without {without:6.2f}")
for b in (4, 8, 10):
    quote(f"net_{b}", grid[b][0], abs=0.7)
best = min(grid, key=lambda b: grid[b][1])
quote("best_buckets", 2**best, abs=0.1 if not FAST else 4)
quote("best_without", grid[best][1], abs=1.0)
assert abs(grid[10][0] - grid[6][0]) < 0.3 and abs(grid[10][0] - elbo_bits.mean()) < 0.3
assert grid[10][1] - grid[8][1] > 15

# %% tags=["hide-input"] alt="Bits per picture against the number of buckets on a log scale. With bits back the curve falls to minus the ELBO and stays there. Without, it has a minimum at few buckets and then rises by a straight line."
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(
    [2**b for b in grid],
    [value[1] for value in grid.values()],
    "s-",
    color=ORANGE,
    label="$z$ and $x$, without bits back",
)
axis.plot([2**b for b in grid], [value[0] for value in grid.values()], "o-", color=BLUE, label="bits back")
axis.axhline(elbo_bits.mean(), color="black", linestyle="--", linewidth=1, label="$-$ELBO / ln 2")
axis.set_xscale("log", base=2)
axis.set(xlabel="buckets for each latent", ylabel="bits per picture", ylim=(0, 100))
axis.legend()

# %% [markdown]
# *Figure 7.3. Bits per picture against the number of buckets.*
#
# By nothing: {{net_8:.2f}} bits with 256 buckets, {{net_10:.2f}} with 1,024, and {{net_4:.2f}} with 16. Four times as
# many buckets cost two bits more in the push, and the pop takes two bits more from the message. Only buckets that are
# wide beside $q(z|x)$ cost something. Without bits back one has to be stingy: the best is {{best_buckets:.0f}}
# buckets and {{best_without:.1f}} bits.
#
# ## Initial bits
#
# Something has to be on the message before the first picture can pop its $z$. What if nothing is there?

# %%
starts = {}
for bits in (0, 32, 64, 128, 256):
    found = chain(test_x[:100], bits)
    starts[bits] = [math.log2(found[3 * k]) for k in (0, 1, 100)]
    print(f"{bits:3} initial bits: {starts[bits][1]:6.1f} bits after picture 1, {starts[bits][2]:7.1f} after 100")
quote("start_0", starts[0][1], abs=15)
quote("start_128", starts[128][1] - 128, abs=15)
quote("end_0", starts[0][2], rel=0.05)
quote("end_128", starts[128][2], rel=0.05)
quote("end_256", starts[256][2], rel=0.05)

# %% [markdown]
# From an empty message the first picture costs {{start_0:.0f}} bits; from 128 initial bits it costs
# {{start_128:.0f}}. The coder does not complain, it only grows too long: with no bits to choose, $z$ falls where it
# falls. After 100 pictures the message has {{end_0:,.0f}} bits from an empty start, {{end_128:,.0f}} from 128 and
# {{end_256:,.0f}} from 256. So **initial bits** are a cost that is paid once, about what the $z$ of one picture
# takes, and an empty start saves nothing. A longer chain makes it small. If the initial bits are data that one wants
# to send in any case, it is nothing: the decoder gives them back.
#
# There is a catch. The popped bits are to be like dice, but they are what was pushed last, the $z$ of the picture
# before. If the pictures' latents together are not distributed by the prior, these bits are not quite random. Here
# this is within the error of the difference above. (Reference 3 speaks of *clean bits*.)
#
# ## Why floats break it
#
# The decoder has to compute the same tables as the encoder. Not nearly the same: a share that differs by one part in
# 65,536 sends all that follows astray. But floating-point addition depends on the order of its terms. Another number
# of threads, another batch size or another processor adds in another order. Here is that experiment: one matrix
# product, its terms in two orders.

# %%
hidden = F.relu(model.decoder[0](CENTERS[torch.randint(BUCKETS, (4000, LATENTS), generator=generator)]))  # [4000, 128]
matrix = model.decoder[2].weight.T  # [128, 64]
shuffled = torch.randperm(len(matrix), generator=generator)
one, other = hidden @ matrix, hidden[:, shuffled] @ matrix[shuffled]
differ = (one != other).double().mean().item()
quote("floats_differ", differ, abs=0.3)
quote("floats_by", (one - other).abs().max().item(), rel=3)
assert differ > 0.01 and torch.allclose(one, other, atol=1e-4)

rounded = {}
for bits in (8, 12, 16):
    shares = [(logits.double().sigmoid() * 2**bits).round() for logits in (one, other)]
    rounded[bits] = int((shares[0] != shares[1]).sum())
    print(f"rounded to {bits:2} bits: {rounded[bits]} of {one.numel()} shares differ")
quote("shares", one.numel(), abs=0.1)
quote("rounded_16", rounded[16], rel=1.5)
quote("rounded_12", rounded[12], abs=60)
quote("rounded_8", rounded[8], abs=15)
assert rounded[16] > 0

# %% [markdown]
# {{floats_differ:.0%}} of the logits differ, by {{floats_by:.0e}} at most. Does rounding help? It makes the
# differences rarer, and does not end them: of {{shares:,.0f}} shares, {{rounded_16:.0f}} differ when rounded to 16
# bits, {{rounded_12:.0f}} with 12 and {{rounded_8:.0f}} with 8. Wherever the steps are, some values lie beside the
# edge of one. And one is enough:


# %%
class OtherOrder(nn.Module):
    """The same decoder on a machine that adds the last matrix product in another order."""

    def __init__(self, decoder):
        super().__init__()
        self.first, self.last = decoder[:2], decoder[2]

    def forward(self, z):
        return self.first(z)[..., shuffled] @ self.last.weight.T[shuffled] + self.last.bias


elsewhere, message, right = copy.deepcopy(model), messages[-1], 0
elsewhere.decoder = OtherOrder(model.decoder)
for k in reversed(range(ALL)):
    try:
        message, x = decode(elsewhere, message)
    except ZeroDivisionError:  # a wrong x, by whose q(z|x) this z is impossible
        break
    right += int((x == test_x[k]).all())
print(f"{right} of {ALL} pictures came back")
quote("right", right, abs=ALL)
assert right < ALL

# %% [markdown]
# On the other machine {{right:.0f}} of the 360 pictures come back. Then a share differs, and all that is decoded after
# that is noise.
#
# The remedy is arithmetic without rounding. **Integers** add up to the same in every order. Round the weights and the
# inputs of a layer to integers, $W \approx \mathtt{rint}(2^{14} W)/2^{14}$ and so on, and multiply those. Nothing
# overflows as long as all sums stay below $2^{53}$, for up to there a float64 holds integers exactly. So even the
# fast matrix product can be used.

# %%
W, h = (2**14 * matrix.double()).round(), (2**10 * hidden.double()).round()
bound = (h.abs().max() * W.abs().sum(0).max()).item()  # no sum of any order is larger
one, other = h @ W, h[:, shuffled] @ W[shuffled]
assert bound < 2**53 and (one == other).all()
quote("bound", math.log2(bound), abs=3)
quote("integer_error", (one / 2**24 - hidden.double() @ matrix.double()).abs().max().item(), rel=1.0)

# %% [markdown]
# Now both orders agree in every bit. The sums stay below $2^{{{bound:.0f}}}$. Against the exact product the logits
# are off by {{integer_error:.0e}} at most, which costs no bits to speak of. GELUs, sigmoids and CDFs are the other
# danger: their last bit depends on the library. A codec stores them as tables.

# %% [markdown]
# ## The real thing
#
# vaelab has all of this as two commands. `compress` turns the model of a run into whole numbers, once, and codes with
# those.
#
# ```bash
# vaelab compress RUN digits.npy -o digits.vae
# vaelab decompress RUN digits.vae -o back.npy
# ```
#
# Here they are in Python. The pictures are now the gray digits, with levels from 0 to 16. The likelihood is a
# beta-binomial distribution of these 17 levels, the VAE has 16 latents and a hidden layer of 256, and the pictures
# are the 180 test pictures of the run.

# %%
work = tempfile.TemporaryDirectory()
folder = Path(work.name)
keys = {
    "data.binarize": "none",
    "likelihood.name": "beta-binomial",
    "model.latent_dim": 16,
    "network.hidden": [256],
    "training.learning_rate": 3e-3,
    "training.threads": 1,
}
run = vaelab.train("vae", data="digits", epochs=5 if FAST else 40, out=folder / "run", overrides=keys, progress=False)
examples = run.data()["test"].read().numpy()
np.save(folder / "digits.npy", examples)

vaelab.compress(run, folder / "digits.npy", folder / "digits.vae")
vaelab.decompress(run, folder / "digits.vae", folder / "back.npy")
back = np.load(folder / "back.npy")
assert back.dtype == examples.dtype and (back == examples).all()

report = measure(run, folder / "digits.npy", folder / "digits.vae")  # what `vaelab compress --report` tells
dims = examples[0].size
rows = {"vaelab": report.compressed.bytes}
for found in report.classical:
    if found.bytes is not None and found.how == "solid":
        rows[found.codec] = found.bytes
for name, size in sorted(rows.items(), key=lambda row: row[1]):
    print(f"{name:>12}: {size:5} bytes, {8 * size / examples.size:.3f} bits/dim")
quote("real_bytes", rows["vaelab"], rel=0.05)
quote("real_dim", report.compressed.bits_per_dim, rel=0.05)
quote("real_elbo", report.nelbo_bits_per_dim, rel=0.05)
quote("real_header", report.compressed.bytes - report.compressed.payload_bytes, rel=0.3)
quote("real_initial", report.compressed.initial_bits // 8, rel=1.0)
quote("real_model", report.model_bytes / 1e6, rel=0.2)
names = {"PNG": "png", "WebP": "webp", "JPEG XL e9": "jxl", "xz -9e": "xz", "brotli -11": "brotli"}
for codec, name in names.items():
    if codec in rows:  # JPEG XL and brotli come with vaelab[bench]
        quote(f"real_{name}", rows[codec], rel=0.02)
quote("real_overhead", report.overhead, abs=0.02)
assert abs(report.overhead) < 0.05
work.cleanup()

# %% [markdown]
# The arrays are the same, byte for byte. The sizes of whole files, where the others also get all 180 pictures as one:
#
# | | Bytes |
# |---|---|
# | PNG | {{real_png:,.0f}} |
# | WebP, lossless | {{real_webp:,.0f}} |
# | xz | {{real_xz:,.0f}} |
# | JPEG XL, lossless, effort 9 | {{real_jxl:,.0f}} |
# | brotli, level 11 | {{real_brotli:,.0f}} |
# | `vaelab compress` | **{{real_bytes:,.0f}}** |
#
# *Table 7.1. 180 held-out digits with 17 levels of gray.*
#
# That is {{real_dim:.3f}} bits per dimension for the file, of which minus the ELBO is {{real_elbo:.3f}}. A header of
# {{real_header:.0f}} bytes and {{real_initial:.0f}} bytes of initial bits are most of the rest; with more pictures
# they weigh less. What is left is {{real_overhead:.1%}} of the ELBO: rounding, and the chance of one $z$ for each
# picture.
#
# What the table does not count is the model: whoever decodes needs it, and it has {{real_model:.1f}} megabytes. For
# 180 small digits that is absurd. For millions of pictures of the same kind it is nothing. `vaelab compress --report`
# gives both sums.
#
# ## And if some loss is allowed?
#
# JPEG does not give back every pixel. A VAE can do that too, and needs no bits-back for it: **the picture is replaced
# by its code.** Take the mean of $q(z|x)$, round each latent to a multiple of a step $\Delta$, and push the integers
# with ANS. The decoder's output is the picture. A large $\Delta$ gives few bits and a large error.
#
# The pictures are the gray digits again, now with the division of this chapter. Error is told as PSNR, $-10
# \log_{10}$ of the mean squared error, for gray levels from 0 to 1: each 10 dB less means an error ten times as
# large. The VAE has 16 latents and a normal likelihood of variance 0.02. JPEG gets all 360 pictures as one, so that
# each digit is one of its blocks of 8 × 8 pixels, and its header is not counted.
#
# A third one is there to be fair. **PCA** is the linear VAE of chapter 5, with the same rounding and the same coder.
# It has seen the same training digits. Predict: which is best at few bits, and which at many?

# %%
train_gray, test_gray = (levels / 16).float()[order].split([1437, ALL])


def gaussian_loss(model, x, epsilon, variance=0.02):
    mean, log_variance = model.encode(x)
    error = ((x - model.decoder(mean + torch.exp(0.5 * log_variance) * epsilon)) ** 2).sum(-1)
    return (error / (2 * variance) + kl_by_latent(mean, log_variance).sum(-1)).mean()


torch.manual_seed(0)
gray_model = train(VAE(16, hidden=256), gaussian_loss, train_gray, max(STEPS, 500))
middle = train_gray.mean(0)
directions = torch.linalg.svd(train_gray - middle, full_matrices=False).Vh[:32]  # the first 32 of PCA
codecs = {
    "VAE": (lambda x: gray_model.encode(x)[0], gray_model.decoder),
    "PCA": (lambda x: (x - middle) @ directions.T, lambda z: z @ directions + middle),
}


def lossy(codec, x, step):
    """Code pictures with rounded latents: bits per pixel, and what is decoded."""
    analyze, synthesize = codec
    seen = (analyze(train_gray) / step).round().long()  # the tables count what the training set has
    lowest, span = int(seen.min()), int(seen.max() - seen.min()) + 1
    counts = torch.stack([F.one_hot(column - lowest, span).sum(0) for column in seen.T])
    tables = table_of((counts + 0.1) / (counts + 0.1).sum(-1, keepdim=True))
    symbols = ((analyze(x) / step).round().long() - lowest).clamp(0, span - 1)
    message = 2**32
    for row in symbols.tolist():
        message = push(message, row, tables)
    bits = (math.log2(message) - 32) / x.numel()
    found = []
    for _ in x:
        message, row = pop(message, tables)
        found.insert(0, row)
    decoded = synthesize((torch.tensor(found) + lowest) * step).clamp(0, 1)
    return bits, decoded


def jpeg(x, quality):
    """All pictures as one JPEG: bits per pixel without its header, and what is decoded."""
    file = io.BytesIO()
    Image.fromarray((mosaic(x) * 255).round().byte().numpy()).save(file, "jpeg", quality=quality, optimize=True)
    content = file.getvalue()
    bits = 8 * (len(content) - content.index(b"\xff\xda")) / x.numel()  # what follows the last segment of the header
    decoded = torch.tensor(np.array(Image.open(file))) / 255
    return bits, decoded.view(18, 8, 20, 8).transpose(1, 2).reshape(ALL, PIXELS)


def psnr(x, decoded):
    return -10 * math.log10(((x - decoded) ** 2).mean().item())


def curve(x):
    """Bits per pixel and PSNR of each codec."""
    steps = {"VAE": (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8), "PCA": (0.06, 0.125, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4)}
    made = {name: [lossy(codecs[name], x, step) for step in steps[name]] for name in codecs}
    made["JPEG"] = [jpeg(x, quality) for quality in (95, 90, 80, 70, 50, 30, 20, 10, 5)]
    return {name: [(bits, psnr(x, decoded)) for bits, decoded in points] for name, points in made.items()}


curves = curve(test_gray)
turned = curve(test_gray.flip(1))  # the same digits, upside down and mirrored
for name, points in curves.items():
    print(name + ":", ", ".join(f"{bits:.2f} bits {value:.1f} dB" for bits, value in points))


def at(points, wanted, of):
    """The other coordinate where a curve has a wanted value: of=0 for bits, of=1 for dB."""
    points = sorted(points)
    return float(np.interp(wanted, [point[of] for point in points], [point[1 - of] for point in points]))


quote("vae_low", at(curves["VAE"], 0.35, of=0), abs=0.6)
quote("pca_low", at(curves["PCA"], 0.35, of=0), abs=0.3)
quote("jpeg_bits", at(curves["JPEG"], at(curves["VAE"], 0.35, of=0), of=1), rel=0.15)
quote("vae_ceiling", max(value for _, value in curves["VAE"]), abs=0.6)
quote("pca_ceiling", max(value for _, value in curves["PCA"]), abs=0.3)
quote("jpeg_best", max(value for _, value in curves["JPEG"]), abs=1)
quote("jpeg_most", max(bits for bits, _ in curves["JPEG"]), rel=0.1)
quote("vae_turned", max(value for _, value in turned["VAE"]), abs=0.7)
quote("jpeg_turned", max(value for _, value in turned["JPEG"]), abs=1)
weights_bytes = 4 * sum(parameter.numel() for parameter in gray_model.decoder.parameters())
quote("weights_kb", weights_bytes / 1000, abs=0.1)
quote("pixels_kb", test_gray.numel() / 1000, abs=0.01)
assert at(curves["VAE"], 0.35, of=0) > at(curves["PCA"], 0.35, of=0) + (0 if FAST else 1)
assert max(curves["PCA"])[1] > max(curves["VAE"])[1] + 2 and max(curves["JPEG"])[1] > max(curves["PCA"])[1] + 5

# %% tags=["hide-input"] alt="PSNR against bits per pixel on a log scale. At few bits the VAE is best, then PCA, and JPEG far to the right. The VAE stays at a ceiling of 20 dB, PCA at 26, and JPEG goes on to 44. On turned digits the VAE is 5 dB worse."
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (name, points), color, marker in zip(curves.items(), (BLUE, GREEN, ORANGE), "os^", strict=True):
    axis.plot(*zip(*points, strict=True), marker + "-", color=color, label=name)
axis.plot(*zip(*turned["VAE"], strict=True), "o:", color=PINK, label="VAE, digits turned by 180°")
axis.set_xscale("log", base=2)
axis.set(xlabel="bits per pixel", ylabel="PSNR (dB)", xticks=[0.125, 0.25, 0.5, 1, 2, 4, 8])
axis.set_xticklabels(["⅛", "¼", "½", "1", "2", "4", "8"])
axis.legend(loc="upper left")

# %% [markdown]
# *Figure 7.4. What is lost, against what is paid. Held-out gray digits.*
#
# At 0.35 bits per pixel, 22 bits for a picture, the VAE has {{vae_low:.1f}} dB and PCA {{pca_low:.1f}}. JPEG needs
# {{jpeg_bits:.2f}} bits per pixel for what the VAE has there. But this is how far it goes:
#
# - **It has a ceiling.** Finer steps bring the VAE to {{vae_ceiling:.1f}} dB and no further: what its decoder cannot
#   draw, no $z$ can say. PCA with 32 directions ends at {{pca_ceiling:.1f}} dB. JPEG goes on, to {{jpeg_best:.1f}} dB
#   at {{jpeg_most:.1f}} bits per pixel.
# - **It knows digits, and nothing else.** Turn the same digits by 180°: the VAE has {{vae_turned:.1f}} dB at best.
#   JPEG has {{jpeg_turned:.1f}}, as before.
# - **The decoder needs the model.** Its weights are {{weights_kb:.0f}} kilobytes, and these pictures are
#   {{pixels_kb:.0f}} at 8 bits a pixel. A model pays when there are far more pictures than here, of the kind that it
#   was trained on.
# - **The error is squared error.** It is what this VAE was trained for and what PSNR measures. It is not how people
#   look at pictures, which JPEG was made for.
#
# ## Exercises
#
# **Exercise 1.** A VAE has an ELBO of $-97.3$ nats on pictures of 28 × 28 pixels. Write the bits per dimension.
#
# <details><summary>Hint</summary>
#
# Mind the sign, the unit and the number of pixels.
#
# </details>


# %% tags=["exercise"]
def bits_per_dimension(elbo, dimensions):
    """From an ELBO in nats per example."""
    # begin solution
    return -elbo / (dimensions * math.log(2))
    # end solution


# %% tags=["check"]
assert abs(bits_per_dimension(-97.3, 784) - 0.17905) < 1e-4, "-97.3 nats are 0.179 bits for each of 784 pixels"
assert abs(bits_per_dimension(-64 * math.log(2), 64) - 1) < 1e-12, "fair coins take one bit each"

# %% [markdown]
# **Exercise 2.** Take a picture off that `push_picture` has put on the message by the mixture. Give the message of
# before, and $x$.
#
# <details><summary>Hint</summary>
#
# Pop $c$ by $p(c)$, then $x$ by $p(x|c)$. Which table did `push_picture` pop $c$ by? Push it back by the same.
#
# </details>


# %% tags=["exercise"]
def pop_picture(message):
    """Undo push_picture: gives the message before it, and the picture, a float tensor [64]."""
    # begin solution
    with_x, [c] = pop(message, [table_of(weights)])
    without_c, pixels = pop(with_x, pixel_tables(prototypes[c]))
    x = torch.tensor(pixels).float()
    return push(without_c, [c], [table_of(log_joint(x.double()).softmax(-1))]), x
    # end solution


# %% tags=["check"]
start = random.Random(1).getrandbits(300)
message = start
for x in test_x[:20]:
    message = push_picture(message, x)[0][-1]
for x in test_x[:20].flip(0):
    message, found = pop_picture(message)
    assert (found == x).all(), "the picture is another"
assert message == start, "the bits that chose c are not all back"

# %% [markdown]
# **Exercise 3.** The ledger of one picture, before it is coded: what are the three lines, and the net, for given
# log-densities in nats?
#
# <details><summary>Hint</summary>
#
# A pop makes the message shorter, so its line is negative. Lengths are minus base-2 logarithms.
#
# </details>


# %% tags=["exercise"]
def ledger_of(log_qz_x, log_px_z, log_pz):
    """Bits added by the pop of z, the push of x, the push of z; and their sum."""
    # begin solution
    steps = [log_qz_x / math.log(2), -log_px_z / math.log(2), -log_pz / math.log(2)]
    return [*steps, sum(steps)]
    # end solution


# %% tags=["check"]
c = 3  # with an exact posterior, the net is -log2 p(x)
x = test_x[:1].double()
log_qz_x = log_joint(x).log_softmax(-1)[0, c].item()
log_pz = weights[c].log().item()
log_px_z = log_joint(x)[0, c].item() - log_pz
bits = ledger_of(log_qz_x, log_px_z, log_pz)
assert len(bits) == 4 and abs(sum(bits[:3]) - bits[3]) < 1e-9, "three steps and their sum"
assert abs(bits[3] + log2_px[0].item()) < 1e-6, "the net should be -log2 p(x)"
assert bits[0] < 0 < min(bits[1:3]), "a pop makes the message shorter, a push longer"

# %% [markdown]
# **Exercise 4.** Cut a latent into buckets. Write the table of $\mathcal N(\mu, \sigma^2)$ for given edges, which
# begin at
# $-\infty$ and end at $\infty$.
#
# <details><summary>Hint</summary>
#
# Round the CDF at the edges, not the masses of the buckets: rounded masses do not add up to `UNIT`.
#
# </details>


# %% tags=["exercise"]
def gaussian_table(mean, scale, edges):
    """Whole numbers from 0 to UNIT, one for each edge, as a list."""
    # begin solution
    return (standard.cdf((edges - mean) / scale) * UNIT).round().long().tolist()
    # end solution


# %% tags=["check"]
table = gaussian_table(0.3, 0.5, EDGES)
assert table[0] == 0 and table[-1] == UNIT, "from 0 to UNIT"
assert np.allclose(np.diff(gaussian_table(0.0, 1.0, EDGES)), UNIT / BUCKETS), "the prior gives equal shares"
drawn = [CENTERS[pop(random.Random(k).getrandbits(200), [table])[1][0]].item() for k in range(4000)]
assert abs(np.mean(drawn) - 0.3) < 0.04 and abs(np.std(drawn) - 0.5) < 0.03, "popping should draw from N(0.3, 0.5²)"

# %% [markdown]
# ## Summary
#
# - A probability is a length: $-\log_2 p$ bits. ANS reaches it with whole numbers, one integer and a few lines.
# - Popping is sampling that can be undone. So old bits can choose the latent, and come back.
# - With an exact posterior the net length is $-\log_2 p(x)$, whatever was chosen. With $q(z|x)$ it is $-\mathrm{ELBO}
#   / \ln 2$ on average. Measured: {{net:.2f}} bits against {{elbo_bits:.2f}}.
# - Finer buckets cost nothing net. Initial bits are paid once.
# - Encoder and decoder need the same numbers to the last bit. Floats do not give that, integers do.
# - With loss, the VAE was ahead at few bits ({{vae_low:.1f}} dB against {{pca_low:.1f}} of PCA), and stopped at
#   {{vae_ceiling:.1f}} dB.
#
# ## References
#
# 1. G. E. Hinton and D. van Camp (1993). *Keeping the Neural Networks Simple by Minimizing the Description Length of the
#    Weights.* COLT. Where bits back come from.
# 2. B. J. Frey and G. E. Hinton (1997). *Efficient Stochastic Source Coding and an Application to a Bayesian Network Source
#    Model.* The Computer Journal 40. Bits back with a coder that is a queue, and what that costs.
# 3. J. Townsend, T. Bird and D. Barber (2019). *Practical Lossless Compression with Latent Variables using Bits Back Coding.*
#    arXiv:1901.04866. Bits back with ANS: section 2.
# 4. J. Duda (2013). *Asymmetric Numeral Systems: Entropy Coding Combining Speed of Huffman Coding with Compression Rate of
#    Arithmetic Coding.* arXiv:1311.2540.
# 5. F. H. Kingma, P. Abbeel and J. Ho (2019). *Bit-Swap: Recursive Bits-Back Coding for Lossless Compression with
#    Hierarchical Latent Variables.* arXiv:1905.06845. Several layers of latents, with the initial bits of one.
# 6. R. Bamler (2022). *Understanding Entropy Coding With Asymmetric Numeral Systems (ANS): a Statistician's Perspective.*
#    arXiv:2201.01741. More of ANS, in Python.
#
# [`reference/bits_back.py`](../reference/bits_back.py) has the codec of this chapter in one file.
