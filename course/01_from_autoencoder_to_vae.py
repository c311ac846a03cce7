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
# # 1. From autoencoder to VAE
#
# An autoencoder learns to copy pictures through a code of a few numbers. To make a new picture, decode a new code. Below
# that goes wrong. This chapter finds out why, tries to rescue it, and arrives at the variational autoencoder (VAE).

# %% tags=["hide-input"] alt="Two scatter plots of codes of digits, and two rows of decoded random codes. The autoencoder's codes spread over a range of more than ten with gaps, the VAE's fill a disc of radius two or three around 0. The autoencoder's random pictures show only a few kinds of digits."
import copy
import itertools
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from vaelab.course import FAST, quote

torch.set_num_threads(1)
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"  # Okabe & Ito 2008
EPOCHS = 12 if FAST else 40
PIXELS, BATCH = 64, 64

levels, all_labels = load_digits(return_X_y=True)
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
pictures = (torch.tensor(levels) > 8).float()[order]  # [1797, 64]: each pixel is 1 (ink) or 0
labels = torch.tensor(all_labels)[order]
train_x, test_x = pictures.split([1437, 360])


class Autoencoder(nn.Module):
    """A picture -> two vectors of the code's size; a code -> 64 logits. The second vector is for later."""

    def __init__(self, latents):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, 128), nn.ReLU(), nn.Linear(128, PIXELS))

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=-1)


def distortion_of(logits, x):
    """-log p(x|z) in nats, summed over the pixels: [..., B, 64] -> [..., B]."""
    return F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def kl_to_prior(mean, log_variance):
    """The rate, as in chapter 0: KL(N(mean, variance) || N(0, I)) in nats, [B, L] -> [B]."""
    return 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(-1)


def train(latents, noise, beta=0.0):
    """Train on distortion + beta * rate, with a code that has "no" noise, noise of scale "one", or "learned" noise.

    Gives the model, and after each epoch the spread of the means over the pictures and the average noise.
    """
    torch.manual_seed(0)
    model = Autoencoder(latents)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    history = []
    for _ in range(EPOCHS):
        for x in train_x[torch.randperm(len(train_x))].split(BATCH):
            mean, log_variance = model.encode(x)
            epsilon = torch.randn_like(mean)
            sigma = {"no": 0.0, "one": 1.0, "learned": torch.exp(0.5 * log_variance)}[noise]
            z = mean + sigma * epsilon
            loss = distortion_of(model.decoder(z), x).mean()
            if beta:
                loss = loss + beta * kl_to_prior(mean, log_variance).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            mean, log_variance = model.encode(train_x)
        scale = torch.exp(0.5 * log_variance).mean().item() if noise == "learned" else float(noise == "one")
        history.append((mean.var(0).mean().sqrt().item(), scale))
    return model, history


@torch.no_grad()
def show(axis, images):
    """A row of pictures, [n, 64], side by side. White is 1, black is 0."""
    row = F.pad(images.reshape(-1, 8, 8), (0, 1), value=0.5).permute(1, 0, 2).reshape(8, -1)[:, :-1]
    axis.imshow(row, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


plane = {"autoencoder": train(2, "no")[0], "VAE": train(2, "learned", beta=1.0)[0]}
figure, axes = plt.subplots(2, 2, figsize=(8, 5), height_ratios=[4, 1], layout="constrained")
random_codes = torch.randn(10, 2, generator=torch.Generator().manual_seed(2))
colors = [BLUE, ORANGE, GREEN, PINK, BLACK, "#56B4E9", "#7A6A00", "#8B3A62", "#555555", "#3B3B98"]
for (name, model), column in zip(plane.items(), axes.T, strict=True):
    with torch.no_grad():
        codes = model.encode(train_x)[0]
        for digit in range(10):
            column[0].scatter(*codes[labels[:1437] == digit].T, s=22, lw=0.3, c=colors[digit], marker=f"${digit}$")
        column[0].plot(*random_codes.T, "k+", ms=9, mew=2)
        column[0].set(title=name, xlabel="first latent", ylabel="second latent")
        show(column[1], torch.sigmoid(model.decoder(random_codes)))
        column[1].set_title("decoded from the crosses", fontsize=9)

# %% [markdown]
# *Figure 1.1. Above: the code of each training picture (for the VAE, its mean), drawn as the digit that it shows. The
# ten crosses are the same random codes on both sides. Below: what the decoders make of them.*
#
# ## What an autoencoder is
#
# An autoencoder has two networks. The **encoder** takes a picture $x$, here 64 pixels that are 0 or 1, and gives a
# **code** $z$ of a few numbers, the **latents**. The **decoder** takes $z$ and gives for each pixel $i$ a logit $a_i$.
# Its sigmoid $p_i = 1/(1 + e^{-a_i})$ is the probability that the pixel is 1. Training makes the **distortion** small,
# the surprise of the decoder at the picture, in nats ($\log$ is the natural logarithm):
#
# $$-\log p(x|z) = -\sum_i \big[x_i \log p_i + (1 - x_i) \log (1 - p_i)\big].$$
#
# `distortion_of` in the cell above is this sum. There is nothing else in the loss. How well does it copy?

# %%
a, x = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
assert torch.isclose(distortion_of(a, x), -(torch.sigmoid(a[0]).log() + (1 - torch.sigmoid(a[1])).log()))


@torch.no_grad()
def copied(model, x, noise, draws=20):
    """Distortion of pictures that are encoded and decoded again, in nats per picture."""
    mean, log_variance = model.encode(x)
    epsilon = torch.randn(draws, *mean.shape, generator=torch.Generator().manual_seed(0))
    return distortion_of(model.decoder(mean + noise * torch.exp(0.5 * log_variance) * epsilon), x).mean().item()


LATENTS = 16
autoencoder, _ = train(LATENTS, "no")
quote("copied_2", copied(plane["autoencoder"], train_x, 0), abs=0.5)
quote("copied_16", copied(autoencoder, train_x, 0), abs=0.2)
assert copied(autoencoder, train_x, 0) < copied(plane["autoencoder"], train_x, 0) / 2
print(f"2 latents: {copied(plane['autoencoder'], train_x, 0):.1f} nats, 16: {copied(autoencoder, train_x, 0):.2f}")

# %% [markdown]
# With 2 latents the distortion of the training pictures is {{copied_2:.1f}} nats. With 16 latents it is
# {{copied_16:.1f}} nats: an almost perfect copy. Two latents can be drawn on paper, sixteen are what one would use. From
# here on we measure both.
#
# ## Where are the codes?
#
# To draw a new picture we need a new code. From where? Nothing in the loss says where codes should lie. Let $c$ be any
# factor. Multiply the encoder's last layer by $c$, and divide the decoder's first weights by $c$. Each code is now $c$
# times as far out, and each picture is decoded as before.

# %%
scaled, exact = copy.deepcopy(autoencoder).double(), copy.deepcopy(autoencoder).double()
with torch.no_grad():
    for parameter in scaled.encoder[-1].parameters():
        parameter.mul_(1000)
    scaled.decoder[0].weight.div_(1000)
    z, z_scaled = exact.encode(test_x.double())[0], scaled.encode(test_x.double())[0]
    assert torch.allclose(z_scaled, 1000 * z)
    assert torch.allclose(scaled.decoder(z_scaled), exact.decoder(z))
    spread = z.std(0)
quote("spread_least", spread.min().item(), rel=0.1)
quote("spread_most", spread.max().item(), rel=0.1)
print(f"standard deviation of a latent over the pictures: {spread.min():.1f} to {spread.max():.1f}")

# %% [markdown]
# The codes are 1,000 times as large, and the loss is the same. The scale of the codes is an accident of training: here
# the standard deviations of the 16 latents are between {{spread_least:.1f}} and {{spread_most:.1f}}. The same holds for
# a shift, and for a rotation.
#
# ## Three attempts to draw
#
# So measure where the codes are, and draw there. Three attempts:
#
# 1. from the standard normal distribution $N(0, I)$, as with a VAE;
# 2. from the **box** between the smallest and the largest value of each latent;
# 3. from the **normal distribution fitted** to the training codes: their mean and their covariance.
#
# How good is a drawn picture? Make each pixel 1 where its probability is above ½, and count the pixels that differ from
# the nearest real picture. *Drawn to real* tells whether what we draw is like a digit. *Real to drawn* looks from each
# held-out picture for the nearest drawn one: it tells whether all kinds of digits are drawn. Both have a floor, the
# distance from held-out pictures to training pictures.


# %%
def nearest(these, those):
    """For each of these pictures, the number of pixels in which the nearest of those differs: [n, 64], [m, 64] -> [n]."""
    return torch.cdist(these, those, p=1).min(1).values


assert nearest(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])).item() == 1


@torch.no_grad()
def ways_to_draw(model, n=1437):
    """Codes from four places: [n, L] each, by name."""
    codes, generator = model.encode(train_x)[0], torch.Generator().manual_seed(1)
    latents = codes.shape[1]
    low, high = codes.min(0).values, codes.max(0).values
    normal = torch.randn(n, latents, generator=generator)
    return {
        "prior": normal,
        "box": low + (high - low) * torch.rand(n, latents, generator=generator),
        "fitted": codes.mean(0) + normal @ torch.linalg.cholesky(codes.T.cov()).T,
        "codes": codes,
    }


@torch.no_grad()
def judge(model, z):
    """Drawn to real, and real to drawn, in pixels."""
    drawn = (model.decoder(z) > 0).float()  # the logit is above 0 where the probability is above 1/2
    return nearest(drawn, train_x).mean().item(), nearest(test_x, drawn).mean().item()


vae, vae_history = train(LATENTS, "learned", beta=1.0)
floor = quote("floor", nearest(test_x, train_x).mean().item(), abs=1e-3)
judged = {}
for latents, pair in ((2, plane), (16, {"autoencoder": autoencoder, "VAE": vae})):
    ways = ways_to_draw(pair["autoencoder"])
    for way, z in ways.items():
        judged[way, latents] = judge(pair["autoencoder"], z)
    judged["vae", latents] = judge(pair["VAE"], ways["prior"])
for (way, latents), (to_real, to_drawn) in judged.items():
    quote(f"{way}_{latents}_to_real", to_real, abs=0.3)
    quote(f"{way}_{latents}_to_drawn", to_drawn, abs=0.3)
    print(f"{latents:2} latents, {way:6}: drawn to real {to_real:5.2f}, real to drawn {to_drawn:5.2f}")
assert all(judged["vae", 16][0] < judged[way, 16][0] - 0.5 for way in ("prior", "box", "fitted"))
assert judged["prior", 2][1] > judged["vae", 2][1] + 0.3
assert all(judged[way, 2][1] < judged["vae", 2][1] + 0.3 for way in ("box", "fitted"))

# %% [markdown]
# | Codes drawn from | 2 latents: drawn to real | real to drawn | 16 latents: drawn to real | real to drawn |
# |---|---|---|---|---|
# | autoencoder, $N(0, I)$ | {{prior_2_to_real:.1f}} | {{prior_2_to_drawn:.1f}} | {{prior_16_to_real:.1f}} | {{prior_16_to_drawn:.1f}} |
# | autoencoder, box | {{box_2_to_real:.1f}} | {{box_2_to_drawn:.1f}} | {{box_16_to_real:.1f}} | {{box_16_to_drawn:.1f}} |
# | autoencoder, fitted normal | {{fitted_2_to_real:.1f}} | {{fitted_2_to_drawn:.1f}} | {{fitted_16_to_real:.1f}} | {{fitted_16_to_drawn:.1f}} |
# | autoencoder, the training codes | {{codes_2_to_real:.1f}} | {{codes_2_to_drawn:.1f}} | {{codes_16_to_real:.1f}} | {{codes_16_to_drawn:.1f}} |
# | VAE, $N(0, I)$ | {{vae_2_to_real:.1f}} | {{vae_2_to_drawn:.1f}} | {{vae_16_to_real:.1f}} | {{vae_16_to_drawn:.1f}} |
#
# *Table 1.1. Pixels of 64 that differ. Real to real: {{floor:.1f}}. Below the floor in "drawn to real" means too smooth
# or copied, not too good.*
#
# With 2 latents the first attempt draws a few kinds of digits only: {{prior_2_to_drawn:.1f}} pixels from real to drawn,
# where the VAE has {{vae_2_to_drawn:.1f}}. But the box ({{box_2_to_drawn:.1f}}) and the fitted normal
# ({{fitted_2_to_drawn:.1f}}) draw as well as the VAE. In a plane, 1,437 codes leave little room for holes.
#
# With 16 latents no attempt works. The best is {{fitted_16_to_real:.1f}} pixels from anything real, where real pictures
# are {{floor:.1f}} from each other and the VAE's {{vae_16_to_real:.1f}}. Decoding training codes gives
# {{codes_16_to_real:.2f}}: that is no drawing, but copying. What lies between the codes was never trained.

# %% tags=["hide-input"] alt="Five rows of twelve pictures. Real digits; blots from the autoencoder with codes from the standard normal; fragments of strokes from the box and the fitted normal; the VAE's row looks like digits."
figure, axes = plt.subplots(5, 1, figsize=(8, 4), layout="constrained")
ways = ways_to_draw(autoencoder)
with torch.no_grad():
    rows = {"real": test_x[:12]}
    for name, way in (("$N(0, I)$", "prior"), ("box", "box"), ("fitted normal", "fitted")):
        rows[f"autoencoder,\n{name}"] = torch.sigmoid(autoencoder.decoder(ways[way][:12]))
    rows["VAE,\n$N(0, I)$"] = torch.sigmoid(vae.decoder(ways["prior"][:12]))
for axis, (name, images) in zip(axes, rows.items(), strict=True):
    show(axis, images)
    axis.set_ylabel(name, rotation=0, ha="right", va="center")

# %% [markdown]
# *Figure 1.2. Drawn with 16 latents: three ways with the autoencoder, one with the VAE.*
#
# ## First idea: noise on the code
#
# The decoder has seen 1,437 points and nothing between them. So let it see more: give each picture not a point, but a
# cloud. The encoder gives a mean $\mu$ and, if we like, a scale $\sigma$ for each latent. We decode
#
# $$z = \mu + \sigma\,\varepsilon, \qquad \varepsilon \sim N(0, I).$$
#
# In the code above: `z = mean + sigma * epsilon`. Codes near $\mu$ must now decode to the same picture. The loss stays
# the distortion. Predict: what will the encoder do about the noise, if $\sigma = 1$ is fixed? And if it may choose
# $\sigma$?

# %%
fixed, fixed_history = train(LATENTS, "one")
free, free_history = train(LATENTS, "learned")
spread_fixed, spread_vae = fixed_history[-1][0], vae_history[-1][0]
sigma_free, sigma_vae = free_history[-1][1], vae_history[-1][1]
quote("spread_start", fixed_history[0][0], rel=0.1)
quote("spread_fixed", spread_fixed, rel=0.1)
quote("spread_vae", spread_vae, rel=0.1)
quote("sigma_free", sigma_free, rel=0.2)
quote("sigma_vae", sigma_vae, rel=0.1)
assert spread_fixed > fixed_history[-3][0]  # it still grows
assert spread_fixed > 3 * fixed_history[0][0] and spread_fixed > 5 * spread_vae and sigma_free < 0.2 * sigma_vae
print(f"noise 1: spread {fixed_history[0][0]:.1f} -> {spread_fixed:.1f}; learned noise: sigma -> {sigma_free:.3f}")

# %% tags=["hide-input"] alt="Two line charts over epochs. Left: the spread of the codes rises without end with noise 1, and levels off below 1 for the VAE. Right: the learned noise falls toward 0 without a rate, and levels off below 1 with it."
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
runs = {"noise 1": (fixed_history, BLUE, "-"), "noise learned": (free_history, ORANGE, "--")}
runs["noise learned + rate (VAE)"] = (vae_history, GREEN, ":")
for name, (history, color, style) in runs.items():
    spreads, sigmas = zip(*history, strict=True)
    axes[0].semilogy(range(1, EPOCHS + 1), spreads, style, color=color, lw=2, label=name)
    axes[1].semilogy(range(1, EPOCHS + 1), sigmas, style, color=color, lw=2, label=name)
axes[0].set(xlabel="epoch", ylabel="spread of the means", title="signal")
axes[1].set(xlabel="epoch", ylabel="average $\\sigma$", title="noise")
axes[0].legend(fontsize=8)
# %% [markdown]
# *Figure 1.3. The spread of the means (the root of their variance over the pictures, averaged over latents) and the
# noise, with and without a rate.*
#
# Noise alone is no remedy. With $\sigma = 1$ the means run apart: their spread was {{spread_start:.1f}} after one epoch,
# is {{spread_fixed:.0f}} at the end, and still grows. The farther apart the codes, the less a noise of 1 matters. With a
# learned $\sigma$ the encoder turns the noise off: it falls to {{sigma_free:.3f}}. Either way the cloud shrinks to a
# point, seen from where the codes are. We have an autoencoder again. In the VAE the spread stays at {{spread_vae:.2f}} and
# the noise at {{sigma_vae:.2f}}.
#
# The code needs a price. It must cost something to be far out, and something to be precise.
#
# ## Second idea: a price
#
# Choose one distribution from which we want to draw codes later, the **prior** $p(z) = N(0, I)$. The cloud of picture
# $x$ is the **approximate posterior** $q(z|x) = N(\mu, \mathrm{diag}\,\sigma^2)$. The price is how far it is from the
# prior, the Kullback–Leibler divergence. This is the **rate**:
#
# $$\mathrm{KL}(q(z|x)\,\|\,p(z)) = \mathbb{E}_{q(z|x)}\big[\log q(z|x) - \log p(z)\big]
# = \tfrac12 \sum_j \left(\sigma_j^2 + \mu_j^2 - 1 - \log \sigma_j^2\right).$$
#
# $\mathbb{E}_{q(z|x)}$ is the mean over draws of $z$ from the cloud. Look at the terms. $\mu_j^2$ pulls the means
# together. $-\log \sigma_j^2$ grows without end when $\sigma_j \to 0$: it keeps the noise on. The rate is 0 if
# $\mu = 0$ and $\sigma = 1$, a code that says nothing. `kl_to_prior` above is the right-hand side. Is it equal to the
# middle?

# %%
mean, log_variance = torch.tensor([[1.5, -0.3]]).double(), torch.tensor([[-1.0, 0.4]]).double()
z = mean + torch.exp(0.5 * log_variance) * torch.randn(
    1_000_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
)
log_qz_x = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance)).log_prob(z).sum(-1)
log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
kl = log_qz_x - log_pz
assert abs(kl.mean() - kl_to_prior(mean, log_variance)) < 5 * kl.std() / 1000  # five standard errors
exact = torch.distributions.kl_divergence(
    torch.distributions.Normal(mean, torch.exp(0.5 * log_variance)), torch.distributions.Normal(0.0, 1.0)
).sum(-1)
assert torch.allclose(kl_to_prior(mean, log_variance), exact)

# %% [markdown]
# ## What the rate counts
#
# The rate is a number of nats. Nats of what? Take the smallest example. There are $N = 8$ pictures, all equally likely,
# and one latent. Their means lie on a line, at distance $d$ from each other, with noise $\sigma = 1$. Someone tells you
# $z$. How much do you learn about which picture it is? That is the **mutual information** of picture and code,
#
# $$I = \frac1N \sum_n \mathbb{E}_{q(z|x_n)}\Big[\log \frac{q(z|x_n)}{q(z)}\Big], \qquad q(z) = \frac1N \sum_m q(z|x_m).$$
#
# If the clouds do not overlap, $z$ names the picture. Then $q(z) = q(z|x_n)/N$ where $x_n$'s cloud lies, and
# $I = \log N$: here $\log 8 = 2.08$ nats, or 3 bits. If $d = 0$, then $I = 0$. In between, sum over a fine grid of $z$.
#
# The average rate is never below $I$. It is $I + \mathrm{KL}(q(z)\,\|\,p(z))$: one pays in addition where all codes
# together do not look like the prior. Try all scales of the code. The best factor makes the variance of $q(z)$ equal
# to 1, and the average rate is then
#
# $$\tfrac12 \log\Big(1 + \frac{\text{variance of the means}}{\sigma^2}\Big),$$
#
# which is also the most that a channel with this signal and this noise can carry (Shannon's formula).


# %%
def line_of_codes(d, N=8, sigma=1.0):
    """Mutual information, and the average rate at the best scale by Shannon's formula and by the KL: three numbers, nats."""
    means = d * (torch.arange(N, dtype=torch.float64) - (N - 1) / 2)
    z, step = torch.linspace(-9 - N * d / 2, 9 + N * d / 2, 100_001, dtype=torch.float64), (18 + N * d) / 100_000
    q_given_x = torch.distributions.Normal(means[:, None], sigma).log_prob(z).exp()  # [N, grid]
    q = q_given_x.mean(0)
    information = (torch.xlogy(q_given_x, q_given_x / q.clamp_min(1e-300))).sum(-1).mul(step).mean()
    signal = (means**2).mean()
    shannon = 0.5 * torch.log1p(signal / sigma**2)
    c = (signal + sigma**2) ** -0.5  # the best factor
    log_variance = torch.full((N, 1), 2 * math.log(c * sigma), dtype=torch.float64)
    rate = kl_to_prior(c * means[:, None], log_variance).mean()
    log_prior = torch.distributions.Normal(0.0, 1 / c).log_prob(z)  # as the prior lies before the code is scaled by c
    assert abs(information + (torch.xlogy(q, q) - q * log_prior).sum() * step - rate) < 1e-6  # I + KL(q(z) || p(z))
    return information.item(), shannon.item(), rate.item()


for d in (0.0, 0.5, 3.0):
    information, shannon, rate = line_of_codes(d)
    assert abs(shannon - rate) < 1e-12 and information <= shannon + 1e-9
assert abs(line_of_codes(16.0)[0] - math.log(8)) < 1e-9 and abs(line_of_codes(0.0)[0]) < 1e-9
assert abs(line_of_codes(0.1)[0] / line_of_codes(0.1)[1] - 1) < 0.01  # small signals: what is paid is what is told
information, shannon, _ = line_of_codes(2.0)
quote("line_information", information, abs=1e-6)
quote("line_rate", shannon, abs=1e-6)
print(f"d = 2: I {information:.3f} nats, rate {shannon:.3f} nats, log 8 = {math.log(8):.3f}")

# %% tags=["hide-input"] alt="Information and rate against the distance of neighboring codes. Both start at 0 together; the information levels off at log 8, the rate goes on rising slowly."
distances = torch.linspace(0, 8, 41)
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
curves = torch.tensor([line_of_codes(d.item()) for d in distances])
axis.plot(distances, curves[:, 1], "--", color=ORANGE, lw=2, label="average rate at the best scale (what is paid)")
axis.plot(distances, curves[:, 0], "-", color=BLUE, lw=2, label="mutual information $I$ (what is told)")
axis.axhline(math.log(8), color=BLACK, ls=":", label="log 8")
axis.set(xlabel="distance of neighboring means, in units of $\\sigma$", ylabel="nats")
axis.legend()

# %% [markdown]
# *Figure 1.4. Eight codes on a line. At a distance of 2 the code tells {{line_information:.2f}} nats and costs
# {{line_rate:.2f}}. Far apart it tells log 8, and every further nat is paid for nothing.*
#
# ## The VAE
#
# Now add the price to the loss. Averaged over the pictures,
#
# $$\text{loss} = \underbrace{-\,\mathbb{E}_{q(z|x)}[\log p(x|z)]}_{\text{distortion}}
# + \underbrace{\mathrm{KL}(q(z|x)\,\|\,p(z))}_{\text{rate}}.$$
#
# That is the VAE. `train(LATENTS, "learned", beta=1.0)` has trained it. A nat of rate is paid only if it saves more than
# a nat of distortion. Minus this loss is a lower bound of $\log p(x)$, and so weight 1 is not a choice but a theorem
# (chapter 2). How much do the codes tell? The training set is finite, so $I$ can be computed as above, with draws in
# place of the grid. It is at most $\log 1437 = 7.27$ nats, and a little less here, since some pictures occur more than
# once: at most the **entropy** $-\sum_k p_k \log p_k$ of the different pictures, where $p_k$ is the share of picture $k$.


# %%
@torch.no_grad()
def told(model):
    """Average rate of the training pictures, and the mutual information of picture and code, in nats."""
    mean, log_variance = (part.double() for part in model.encode(train_x))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = mean + torch.exp(0.5 * log_variance) * noise
    q = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    log_qz_all = torch.stack([q.log_prob(one).sum(-1) for one in z])  # [draw from picture n, under picture m]
    log_qz = torch.logsumexp(log_qz_all, dim=1) - math.log(len(z))
    return kl_to_prior(mean, log_variance).mean().item(), (log_qz_all.diagonal() - log_qz).mean().item()


counts = torch.unique(train_x, dim=0, return_counts=True)[1].double() / len(train_x)
entropy = quote("entropy", -(counts * counts.log()).sum().item(), abs=1e-6)
rate_vae, told_vae = told(vae)
rate_free, told_free = told(free)
for name, value, tolerance in (
    ("rate_vae", rate_vae, 0.5),
    ("told_vae", told_vae, 0.4),
    ("told_free", told_free, 0.01),
):
    quote(name, value, abs=tolerance)
quote("rate_free", rate_free, rel=0.2)
quote("copied_vae", copied(vae, test_x, 1), abs=0.6)
quote("copied_test", copied(autoencoder, test_x, 0), abs=0.8)
assert told_vae < rate_vae and abs(told_free - entropy) < 0.02 and rate_free > 10 * rate_vae
print(f"VAE: rate {rate_vae:.2f}, tells {told_vae:.2f}; without a price: rate {rate_free:.0f}, tells {told_free:.4f}")

# %% [markdown]
# Without a price, the code tells {{told_free:.2f}} nats: the name of the training picture, all of the entropy
# ({{entropy:.2f}}). It would cost {{rate_free:.0f}} nats. The VAE tells {{told_vae:.1f}} nats and pays {{rate_vae:.1f}}.
# Pictures that look alike share room, and the room between them is not empty.
#
# The VAE pays for this with its copies: the distortion of held-out pictures is {{copied_vae:.1f}} nats, the
# autoencoder's {{copied_test:.1f}}. If you only want to copy, take the autoencoder.
#
# ## Halfway between two digits
#
# A test of the room between the codes: take two held-out pictures of different digits, and decode the middle of their
# codes. How far is it from the nearest real picture?

# %%
with torch.no_grad():
    first, second = test_x[:180], test_x[180:]
    different = labels[1437:1617] != labels[1617:]
    first, second = first[different], second[different]
    halfway = {"pixels": ((first + second) / 2 > 0.5).float()}
    for name, model in (("autoencoder", autoencoder), ("vae", vae)):
        z = (model.encode(first)[0] + model.encode(second)[0]) / 2
        halfway[name] = (model.decoder(z) > 0).float()
        halfway[f"{name}_ends"] = (model.decoder(model.encode(torch.cat([first, second]))[0]) > 0).float()
for name, images in halfway.items():
    quote(f"halfway_{name}", nearest(images, train_x).mean().item(), abs=0.3)
    print(f"{name:16} {nearest(images, train_x).mean():.2f} pixels")
lost = {
    name: nearest(halfway[name], train_x).mean() - nearest(halfway[f"{name}_ends"], train_x).mean()
    for name in ("autoencoder", "vae")
}
assert lost["autoencoder"] > lost["vae"] + 0.2

# %% tags=["hide-input"] alt="Two pairs of rows, each row a walk of eleven pictures from one digit to another. The autoencoder's are sharp throughout, the VAE's are softer and change more evenly."
figure, axes = plt.subplots(4, 1, figsize=(8, 3.4), layout="constrained")
with torch.no_grad():
    for place, (i, j) in enumerate([(3, 7), (12, 25)]):
        for offset, (name, model) in enumerate((("autoencoder", autoencoder), ("VAE", vae))):
            start, end = model.encode(first[i : i + 1])[0], model.encode(second[j : j + 1])[0]
            steps = torch.linspace(0, 1, 11)[:, None]
            show(axes[2 * place + offset], torch.sigmoid(model.decoder((1 - steps) * start + steps * end)))
            axes[2 * place + offset].set_ylabel(name, rotation=0, ha="right", va="center")

# %% [markdown]
# *Figure 1.5. Straight walks from code to code, 16 latents.*
#
# Halfway, the autoencoder is {{halfway_autoencoder:.1f}} pixels from the nearest real picture, and the VAE
# {{halfway_vae:.1f}}. Mixing the two pictures (1 where both are 1) gives {{halfway_pixels:.1f}}. A smooth picture is near to
# others anyway, so compare with the ends of the walks: {{halfway_autoencoder_ends:.1f}} for the autoencoder,
# {{halfway_vae_ends:.1f}} for the VAE. The way through the middle costs the autoencoder more.
#
# ## What happens if the price changes?
#
# Let a nat of rate cost $\beta$ nats of distortion. Predict rate and distortion for $\beta \to 0$ and for large $\beta$.

# %% tags=["hide-input"] alt="Rate and distortion against beta on a logarithmic axis. The rate falls from about 200 nats to 0, the distortion rises from 3 to 25 nats, the value of a decoder that ignores the code."
betas = [0.001, 0.03, 0.3, 1, 3, 10, 30]
swept = {beta: vae if beta == 1 else train(LATENTS, "learned", beta=float(beta))[0] for beta in betas}
rates = {beta: told(model)[0] for beta, model in swept.items()}
distortions = {beta: copied(model, test_x, 1) for beta, model in swept.items()}
often = train_x.mean(0).clamp(1e-4, 1 - 1e-4)
silent = distortion_of(often.logit().expand_as(test_x), test_x).mean().item()
to_drawn = {beta: judge(model, ways["prior"])[1] for beta, model in swept.items()}
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
axis.loglog(betas, [max(rate, 1e-2) for rate in rates.values()], "o-", color=BLUE, label="rate (training pictures)")
axis.loglog(betas, distortions.values(), "s--", color=ORANGE, label="distortion (held-out pictures)")
axis.axhline(silent, color=BLACK, ls=":", label="distortion of a silent code")
axis.set(xlabel="$\\beta$ (nats of distortion for one nat of rate)", ylabel="nats per picture")
axis.legend(fontsize=8, loc="lower left")
quote("rate_small", rates[0.001], rel=0.1)
for name, beta in (("small", 0.001), ("large", 30)):
    quote(f"distortion_{name}", distortions[beta], abs=0.8)
    quote(f"to_drawn_{name}", to_drawn[beta], abs=0.6)
quote("silent", silent, abs=1e-3)
falling = list(rates.values())
assert all(one > two for one, two in itertools.pairwise(falling) if one > 0.1)
assert rates[30] < 0.01 and abs(distortions[30] - silent) < 0.5
assert min(to_drawn, key=to_drawn.get) not in (0.001, 30)

# %% [markdown]
# *Figure 1.6. What is paid and what is lost, for seven prices. Rates below 0.01 are drawn at 0.01.*
#
# At $\beta = 0.001$ the rate is {{rate_small:.0f}} nats and the distortion {{distortion_small:.1f}}: the autoencoder is
# back. Drawing from the prior fails again, with {{to_drawn_small:.1f}} pixels from real to drawn. At $\beta = 30$ the rate
# is below 0.01 nats. The code is silent, and the distortion is {{distortion_large:.1f}} nats. A decoder that ignores the
# code and knows only how often each pixel is 1 has {{silent:.1f}}. Every drawn picture is the same, on average
# {{to_drawn_large:.1f}} pixels from a real one.
# Chapter 5 computes where each latent falls silent, and chapter 6 shows it in deep networks.
#
# ## Exercises
#
# **Exercise 1.** An encoder's last layer and a decoder's first layer are `nn.Linear`. Change their weights or biases in
# place, so that every code is moved by `shift` and no decoded picture changes.
#
# <details><summary>Hint</summary>
#
# The decoder computes $W z + b$. With $z + s$ in place of $z$ it computes $W z + W s + b$. What must $b$ become?
#
# </details>


# %% tags=["exercise"]
@torch.no_grad()
def move_codes(last, first, shift):
    """Change the layers `last` (of the encoder) and `first` (of the decoder) in place. shift: [L]."""
    # begin solution
    last.bias += shift
    first.bias -= first.weight @ shift
    # end solution


# %% tags=["check"]
torch.manual_seed(0)
last, first = nn.Linear(5, 3), nn.Linear(3, 4)
some, shift = torch.randn(7, 5), torch.tensor([1.0, -20.0, 300.0])
with torch.no_grad():
    codes_before, before = last(some), first(last(some))
    move_codes(last, first, shift)
    assert torch.allclose(last(some), codes_before + shift, atol=1e-4), "the codes should move by `shift`"
    assert torch.allclose(first(last(some)), before, atol=1e-3), "the decoder's first layer should give what it gave"

# %% [markdown]
# **Exercise 2.** Codes with means `mean` and scales `sigma` are all multiplied by one factor $c$, means and scales alike.
# The decoder can undo that, so the distortion does not change. Which $c > 0$ makes the average rate least?
#
# <details><summary>Hint</summary>
#
# Write the rate with $c\mu$ and $c\sigma$. It is $\tfrac12 \sum_j (c^2 (\sigma_j^2 + \mu_j^2) - 1 - \log \sigma_j^2 - 2 \log c)$.
# Set the derivative with respect to $c$ to 0.
#
# </details>


# %% tags=["exercise"]
def best_factor(mean, sigma):
    """The best c, a tensor of no dimensions. mean, sigma: [N, L]."""
    # begin solution
    return (mean**2 + sigma**2).mean() ** -0.5
    # end solution


# %% tags=["check"]
generator = torch.Generator().manual_seed(0)
for scale in (0.2, 5.0):
    mean, sigma = scale * (1 + torch.randn(50, 3, generator=generator)), torch.rand(50, 3, generator=generator) + 0.1
    tried = torch.logspace(-2, 2, 4001)
    rates_tried = torch.stack([kl_to_prior(c * mean, 2 * torch.log(c * sigma)).mean() for c in tried])
    least = tried[rates_tried.argmin()]
    assert abs(best_factor(mean, sigma) / least - 1) < 2e-3, f"trying 4,001 factors finds {least:.3f}"

# %% [markdown]
# **Exercise 3.** A pixel's value is $x \sim N(0, \lambda)$. Its code is one latent, $z = a x + \sigma \varepsilon$, at the
# scale where $z$ has variance 1. The best guess of $x$ from $z$ is linear. Which mean squared error is left, if the code
# has an average rate of $R$ nats?
#
# <details><summary>Hint</summary>
#
# The variance of the means is $a^2 \lambda = 1 - \sigma^2$, so Shannon's formula gives $R = -\tfrac12 \log \sigma^2$. The
# best guess is $a\lambda z$, and its error is $\lambda - a^2 \lambda^2$.
#
# </details>


# %% tags=["exercise"]
def error_left(variance, rate):
    """Mean squared error of the best guess. variance: λ; rate: R in nats."""
    # begin solution
    return variance * math.exp(-2 * rate)
    # end solution


# %% tags=["check"]
generator = torch.Generator().manual_seed(0)
for variance, sigma2 in ((4.0, 0.5), (0.3, 0.05)):
    x = variance**0.5 * torch.randn(400_000, 1, generator=generator)
    mean = ((1 - sigma2) / variance) ** 0.5 * x
    z = mean + sigma2**0.5 * torch.randn(x.shape, generator=generator)
    rate = kl_to_prior(mean, torch.full_like(mean, math.log(sigma2))).mean().item()
    guess = torch.linalg.lstsq(z, x).solution * z  # the best linear guess, found from the data
    measured = ((x - guess) ** 2).mean().item()
    assert abs(error_left(variance, rate) / measured - 1) < 0.02, f"measured {measured:.4f} at {rate:.3f} nats"

# %% [markdown]
# ## Summary
#
# - An autoencoder's loss says nothing about where codes lie: multiply them by 1,000, and it is the same.
# - With 2 latents, a normal distribution fitted to the codes draws well. With 16 it does not: {{fitted_16_to_real:.1f}}
#   pixels from anything real, where the VAE has {{vae_16_to_real:.1f}}.
# - Noise alone is no remedy: the codes run apart (spread {{spread_fixed:.0f}}), or the noise dies (σ = {{sigma_free:.3f}}).
# - The **rate** $\mathrm{KL}(q(z|x)\,\|\,p(z))$ is the price that stops both. It is at least what the code tells about
#   the picture, and that is at most $\log N$ for $N$ pictures.
# - VAE = noise + rate. $\beta \to 0$ gives back the autoencoder, a large $\beta$ a silent code.
#
# Next: [chapter 2](02_the_evidence_lower_bound.py) derives the loss from one demand: make the pictures probable.
#
# ## References
#
# 1. G. E. Hinton and R. R. Salakhutdinov (2006). *Reducing the Dimensionality of Data with Neural Networks.* Science
#    313:504–507. Deep autoencoders, and figure 3: digits in a plane of two latents.
# 2. D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. The loss: equation (10); the
#    closed form of the rate: appendix B.
# 3. P. Ghosh et al. (2020). *From Variational to Deterministic Autoencoders.* arXiv:1903.12436. The third attempt done
#    well, a density fitted to the codes after training: section 4.
# 4. M. D. Hoffman and M. J. Johnson (2016). *ELBO Surgery.* NIPS workshop on approximate Bayesian inference. The average
#    rate is mutual information plus the divergence of $q(z)$ from the prior.
# 5. T. M. Cover and J. A. Thomas (2006). *Elements of Information Theory*, second edition. Shannon's formula: theorem
#    9.1.1; exercise 3: theorem 10.3.2.
# 6. I. Higgins et al. (2017). *beta-VAE.* ICLR 2017. The price β: equation (4).
