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
# # 6. Collapse
#
# A latent is **silent** if the encoder gives the prior for it, whatever the picture. If all are silent, the VAE has
# collapsed. Sometimes that is the best it can do, sometimes the decoder needs no code, and sometimes training went wrong.
# This chapter tells the three apart by numbers. It begins where everything is exact: the linear VAE of chapter 5.

# %% tags=["hide-input"] alt="The KL of each of 20 latents of a trained linear VAE against variance over noise. The points lie on a curve that is zero up to 1 and then rises as half the logarithm."
import copy
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from vaelab.course import FAST, quote
from vaelab.evaluation.latents import active

torch.set_num_threads(1)
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008: safe for the color-blind
STEPS = 200 if FAST else 800
DRAWS = 50 if FAST else 200
PIXELS = 64

levels = torch.tensor(load_digits().data)
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
gray = levels / 16 - (levels / 16).mean(0)  # [1797, 64] gray levels less the mean picture, float64
covariance = gray.T @ gray / len(gray)
eigenvalues, U = torch.linalg.eigh(covariance)
eigenvalues, U = eigenvalues.flip(0).clamp(min=0), U.flip(1)  # the largest first


def kl_by_latent(mean, log_variance):
    """KL of each latent to the prior, in nats: [B, q] -> [B, q]."""
    return 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance)


def train_linear(latents, variance):
    """The linear VAE of chapter 5 at a fixed σ²: KL of each latent [q], and the encoder V [q, 64]."""
    rows = math.sqrt(PIXELS) * (U * eigenvalues.sqrt()) @ U.T  # 64 rows with the pictures' covariance
    generator = torch.Generator().manual_seed(0)
    W = 0.1 * torch.randn(PIXELS, latents, generator=generator, dtype=torch.float64)
    V = 0.1 * torch.randn(latents, PIXELS, generator=generator, dtype=torch.float64)
    log_variance = torch.zeros(latents, dtype=torch.float64)
    parameters = [p.requires_grad_() for p in (W, V, log_variance)]
    steps = 500 if FAST else 1000
    optimizer = torch.optim.Adam(parameters, lr=0.05, betas=(0.95, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        mean = rows @ V.T
        squared_error = ((rows - mean @ W.T) ** 2).sum(-1) + (log_variance.exp() * (W**2).sum(0)).sum()
        kl = kl_by_latent(mean, log_variance)
        optimizer.zero_grad()
        (squared_error / (2 * variance) + kl.sum(-1)).mean().backward()
        optimizer.step()
        schedule.step()
    return kl.mean(0).detach(), V.detach()


NOISE, LINEAR = 0.1, 20
kl_linear, V = train_linear(LINEAR, NOISE)
kl_linear, places = kl_linear.sort(descending=True)

figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
ratio = torch.logspace(-0.6, 1.3, 200)
axis.plot(
    ratio, 0.5 * ratio.log().clamp(min=0), color=BLUE, label="exact: $\\frac{1}{2}\\,\\ln(\\lambda/\\sigma^2)$ above 1"
)
axis.plot(eigenvalues[:LINEAR] / NOISE, kl_linear, "o", color=ORANGE, label="trained, latent by latent")
axis.axvline(1, color="gray", linestyle="--", linewidth=1)
axis.set(
    xscale="log",
    xlabel="variance of the direction over variance of the noise, $\\lambda_j/\\sigma^2$",
    ylabel="KL of the latent (nats)",
)
axis.legend()

# %% [markdown]
# *Figure 6.1. A linear VAE with 20 latents, trained on the digits at $\sigma^2 = 0.1$. Left of the dashed line, latents
# are silent.*
#
# ## The threshold, latent by latent
#
# The likelihood is $p(x|z) = \mathcal N(Wz, \sigma^2 I)$ with a fixed $\sigma^2$. The digits have the variance $\lambda_j$ along
# their principal direction $j$. Chapter 5 found that the best linear VAE gives each direction a latent of its own, with
#
# $$\mathrm{KL}_j = \max\Big(0, \tfrac12 \ln \frac{\lambda_j}{\sigma^2}\Big).$$
#
# A direction that varies less than the noise is not worth telling. To tell it costs more nats of rate than it saves in
# distortion. This is no failure of training: the silence is at the optimum.
#
# The usual count of latents that speak looks at the posterior's mean. A latent is an **active unit** if its mean varies
# over the pictures: $\mathrm{Var}_x(E_q[z_j]) > 0.01$. In the linear VAE that variance is $1 - \sigma^2/\lambda_j$, so an
# active unit has $\lambda_j > 1.01\,\sigma^2$. The two measures agree.


# %%
def active_units(mean):
    """How many latents have posterior means [N, q] that vary over the pictures by more than 0.01."""
    return int((mean.var(0, correction=0) > 0.01).sum())


exact_kl = 0.5 * (eigenvalues[:LINEAR] / NOISE).log().clamp(min=0)
mean = gray @ V[places].T  # [1797, 20], the most telling latent first
worst = (kl_linear - exact_kl).abs().max().item()
quote("linear_worst", worst, abs=0.005)
quote("linear_exact", int((eigenvalues > NOISE).sum()), abs=0.1)
quote("linear_active", active_units(mean), abs=0.1 if not FAST else 3)
normal = torch.distributions.Normal(mean[:9], torch.full((9, LINEAR), 0.3).double())  # a KL that PyTorch knows
known_kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
assert torch.allclose(kl_by_latent(mean[:9], 2 * torch.tensor(0.3).double().log()), known_kl)
assert (kl_linear - exact_kl)[:5].abs().max() < 0.01
assert worst < (0.1 if FAST else 0.01), "the KL of a latent is not half the logarithm of λ/σ²"
exact_variance = (1 - NOISE / eigenvalues[:LINEAR]).clamp(min=0)
assert (mean.var(0, correction=0) - exact_variance).abs().max() < (0.2 if FAST else 0.03)
assert active_units(mean) == active(mean).sum()  # vaelab counts them in the same way

# %% [markdown]
# The trained KL of every latent lies within {{linear_worst:.4f}} nats of the formula. Of the 20 latents,
# {{linear_exact:.0f}} have $\lambda_j > \sigma^2$, and {{linear_active:.0f}} are active units.
#
# ## What happens in a deep VAE?
#
# Now encoder and decoder are networks with a hidden layer of 128 units, and ten latents. Raise the noise $\sigma^2$ step by
# step. A deep VAE can use more than straight directions, so it might hold out longer. Predict: at which $\sigma^2$ does it
# collapse?
#
# One class serves the whole chapter. Its likelihood is either normal with a fixed `noise` $= \sigma^2$, or that of a binary
# picture. The binary one can also look at pixels that come before the one it predicts; `reach` says at how many, and 0 is
# the usual VAE. We shall need that later.


# %%
class VAE(nn.Module):
    def __init__(self, latents, reach=0, noise=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, 128), nn.ReLU(), nn.Linear(128, PIXELS))
        self.noise = noise
        self.pixel_weights = nn.Parameter(torch.zeros(PIXELS, PIXELS))
        self.register_buffer("earlier", torch.ones(PIXELS, PIXELS).tril(-1).triu(-reach))  # [i, j]: may i look at j?

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=-1)

    def logits(self, x, z):
        return self.decoder(z) + x @ (self.pixel_weights * self.earlier).T

    def log_likelihood(self, x, z):
        """log p(x|z) in nats, summed over the pixels: [..., B]."""
        if self.noise is not None:
            return torch.distributions.Normal(self.decoder(z), math.sqrt(self.noise)).log_prob(x).sum(-1)
        return F.logsigmoid((2 * x - 1) * self.logits(x, z)).sum(-1)


def train(model, pictures, weight=lambda progress: 1.0, free_bits=0.0):
    """Train by minus the ELBO. The rate counts `weight` times; `progress` goes from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        x = pictures[torch.randint(len(pictures), (128,), generator=generator)]
        mean, log_variance = model.encode(x)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
        distortion = -model.log_likelihood(x, z).mean()
        kl = kl_by_latent(mean, log_variance).mean(0)  # [q], averaged over the batch
        rate = kl.clamp(min=free_bits).sum()
        optimizer.zero_grad()
        (distortion + weight(step / STEPS) * rate).backward()
        optimizer.step()
        schedule.step()
    return model


def new(*args, **options):
    """A VAE whose first weights are the same in every run."""
    torch.manual_seed(0)
    return VAE(*args, **options)


deep_rates = {}
for noise in (0.05, 0.2, 0.5, 0.65, 0.8):
    train_grey = gray[order[:1437]].float()
    model = train(new(10, noise=noise), train_grey)
    with torch.no_grad():
        deep_rates[noise] = kl_by_latent(*model.encode(train_grey)).sum(-1).mean().item()


def water_filling_rate(noise):
    """The rate of the best linear VAE at a fixed σ², in nats."""
    return 0.5 * (eigenvalues.clamp(min=noise) / noise).log().sum().item()


for noise, rate in deep_rates.items():
    print(f"σ² = {noise:4}: deep {rate:6.3f} nats, linear {water_filling_rate(noise):6.3f}")
quote("largest", eigenvalues[0].item(), rel=1e-6)
quote("deep_below", deep_rates[0.5], abs=0.1)
quote("linear_below", water_filling_rate(0.5), abs=1e-4)
quote("deep_near", deep_rates[0.65], abs=0.03)
quote("linear_near", water_filling_rate(0.65), abs=1e-4)
ratio = eigenvalues[0].item() / 0.65
quote("gain_near", 0.5 * (ratio - 1 - math.log(ratio)), rel=1e-6)  # ELBO of latent 1 at its best, less that of silence
quote("deep_above", deep_rates[0.8], abs=0.01)
assert deep_rates[0.05] > deep_rates[0.2] > deep_rates[0.5] > 0.05 > max(deep_rates[0.65], deep_rates[0.8])
assert 0.65 < eigenvalues[0] < 0.8

# %% tags=["hide-input"] alt="Rate against noise variance for linear and deep VAEs. Both fall to zero near the largest variance of the digits, 0.7."
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
grid = torch.linspace(0.04, 0.95, 300).tolist()
axis.plot(grid, [water_filling_rate(noise) for noise in grid], color=BLUE, label="linear, 64 latents, exact")
axis.plot(deep_rates.keys(), deep_rates.values(), "s", color=ORANGE, label="deep, 10 latents, trained")
axis.axvline(eigenvalues[0].item(), color="gray", linestyle="--", linewidth=1, label="$\\sigma^2 = \\lambda_1$")
axis.set_yscale("function", functions=(lambda rate: rate.clip(0) ** 0.5, lambda root: root**2))
axis.set(
    xlabel="noise $\\sigma^2$", ylabel="rate (nats per picture)", ylim=(0, 12), yticks=[0, 0.1, 0.5, 1, 2, 4, 8, 12]
)
axis.legend()

# %% [markdown]
# *Figure 6.2. The rate against the noise. The axis of the rate shows its square root, to spread small rates.*
#
# The linear VAE falls silent at the largest variance, $\sigma^2 = \lambda_1 = {{largest:.3f}}$, and the deep one near it. At
# $\sigma^2 = 0.5$ its rate is {{deep_below:.2f}} nats (linear: {{linear_below:.2f}}), at 0.65 it is {{deep_near:.4f}} (linear:
# {{linear_near:.3f}}), and at 0.8 {{deep_above:.4f}}. At 0.65 speaking would gain the linear VAE {{gain_near:.4f}} nats of ELBO,
# too little for noisy training to find.
#
# The reason that a deep network obeys the linear threshold: near collapse, the encoder moves the means by very little. A
# network whose input is moved by very little acts like a matrix. So whether silence is stable is decided by the linear
# model. (This holds near silence. A deep VAE could have another optimum far from it.)
#
# ## How many latents does a VAE need?
#
# From here on the digits are binary, as in chapter 0, and there is no $\sigma^2$ to turn. All numbers are of held-out
# pictures. For $\log p(x)$ we take importance sampling with $K = 200$ draws a picture:
#
# $$\log p(x) \approx \log \frac1K \sum_k w_k, \qquad w_k = \frac{p(x|z_k)\,p(z_k)}{q(z_k|x)}, \qquad z_k \sim q(z|x).$$


# %%
def log_weights(model, x, draws, seed=1):
    """log w [K, B], and log p(x|z) [K, B]."""
    mean, log_variance = model.encode(x)
    epsilon = torch.randn(draws, *mean.shape, generator=torch.Generator().manual_seed(seed))
    z = mean + torch.exp(0.5 * log_variance) * epsilon
    log_px_z = model.log_likelihood(x, z)
    log_pz = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)
    log_qz_x = -0.5 * (epsilon**2 + log_variance + math.log(2 * math.pi)).sum(-1)
    return log_px_z + log_pz - log_qz_x, log_px_z


@torch.no_grad()
def evaluate(model, x, draws=DRAWS):
    """Rate, ELBO, log p(x) in nats per picture; active units; and the KL of each latent, the largest first."""
    mean, log_variance = model.encode(x)
    kl = kl_by_latent(mean, log_variance)
    log_w, log_px_z = log_weights(model, x, draws)
    return {
        "rate": kl.sum(-1).mean().item(),
        "elbo": (log_px_z.mean(0) - kl.sum(-1)).mean().item(),
        "log_px": (log_w.logsumexp(0) - math.log(draws)).mean().item(),
        "active": active_units(mean),
        "kl": kl.mean(0).sort(descending=True).values,
    }


binary = (levels > 8).float()
train_x, test_x = binary[order].split([1437, 360])

# Held to an exact answer: with one latent, log p(x) is an integral over a line.
with torch.no_grad():
    tiny = new(1)
    line = torch.linspace(-8, 8, 2001)
    log_joint = tiny.log_likelihood(test_x[:20], line.view(-1, 1, 1)) - 0.5 * (line**2 + math.log(2 * math.pi)).view(
        -1, 1
    )
    integral = (log_joint.logsumexp(0) + math.log(16 / 2000)).mean().item()
    assert abs(evaluate(tiny, test_x[:20], draws=5000)["log_px"] - integral) < 0.01

# %% [markdown]
# Train VAEs with 2, 5, 10 and 50 latents. The rate counts from 0 in the beginning to 1 at half the time: **KL warm-up**.
# Why, you will see in a moment.


# %%
def warm_up(progress):
    return min(1.0, 2 * progress)


models = {latents: train(new(latents), train_x, weight=warm_up) for latents in (2, 5, 10, 50)}
found = {latents: evaluate(model, test_x) for latents, model in models.items()}
for latents, e in found.items():
    print(
        f"{latents:2} latents: {e['active']:2} active, rate {e['rate']:.2f}, ELBO {e['elbo']:.2f}, log p(x) {e['log_px']:.2f}"
    )
    quote(f"active_{latents}", e["active"], abs=0.5 + 0.2 * latents)
    quote(f"rate_{latents}", e["rate"], abs=0.5)
    quote(f"elbo_{latents}", e["elbo"], abs=0.4)
    quote(f"log_px_{latents}", e["log_px"], abs=0.4)
    assert e["log_px"] > e["elbo"]
assert found[10]["elbo"] > found[2]["elbo"] + 0.5

# %% [markdown]
# | Latents | Active units | Rate | ELBO | $\log p(x)$ |
# |---|---|---|---|---|
# | 2 | {{active_2:.0f}} | {{rate_2:.2f}} | {{elbo_2:.2f}} | {{log_px_2:.2f}} |
# | 5 | {{active_5:.0f}} | {{rate_5:.2f}} | {{elbo_5:.2f}} | {{log_px_5:.2f}} |
# | 10 | {{active_10:.0f}} | {{rate_10:.2f}} | {{elbo_10:.2f}} | {{log_px_10:.2f}} |
# | 50 | {{active_50:.0f}} | {{rate_50:.2f}} | {{elbo_50:.2f}} | {{log_px_50:.2f}} |
#
# *Table 6.1. Held-out digits, nats per picture.*
#
# ## Is a silent latent bad?
#
# Take the VAE with 10 latents and add 40 that are silent: the encoder gives them mean 0 and log-variance 0, and the decoder
# has zero weights for them. What does that cost?


# %%
@torch.no_grad()
def with_silent_latents(model, more):
    """The same VAE with `more` latents that say nothing."""
    old = model.decoder[0].in_features
    wide = copy.deepcopy(model)
    wide.encoder[2], wide.decoder[0] = nn.Linear(128, 2 * (old + more)), nn.Linear(old + more, 128)
    for parameter in (wide.encoder[2].weight, wide.encoder[2].bias, wide.decoder[0].weight):
        parameter.zero_()
    for half in (0, 1):  # means, then log-variances
        here = slice(half * (old + more), half * (old + more) + old)
        wide.encoder[2].weight[here] = model.encoder[2].weight[half * old : (half + 1) * old]
        wide.encoder[2].bias[here] = model.encoder[2].bias[half * old : (half + 1) * old]
    wide.decoder[0].weight[:, :old] = model.decoder[0].weight
    wide.decoder[0].bias.copy_(model.decoder[0].bias)
    return wide


wide = with_silent_latents(models[10], 40)
x, z = test_x[:100], torch.randn(100, 50, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    assert torch.allclose(wide.log_likelihood(x, z), models[10].log_likelihood(x, z[:, :10]), atol=1e-4)
    rate_wide = kl_by_latent(*wide.encode(test_x)).sum(-1).mean().item()
assert abs(rate_wide - found[10]["rate"]) < 1e-4
log_px_wide = quote("log_px_wide", evaluate(wide, test_x)["log_px"], abs=0.4)
assert abs(log_px_wide - found[10]["log_px"]) < 0.05

# %% [markdown]
# Nothing. The rate is the same, $p(x|z)$ is the same, so the ELBO is the same. $\log p(x)$ is {{log_px_wide:.2f}} nats, and was
# {{log_px_10:.2f}}; the difference is the noise of other draws. A silent latent is harmless. Do not choose the number of latents by how many
# are active, and do not mend silence for its own sake.
#
# But this gives a test. **A VAE with 50 latents contains every VAE with 10.** So its best ELBO is at least as good. If
# training ends below, then it is training that failed.
#
# ## Collapse of optimization
#
# Train the 50 latents without warm-up. Then try two remedies.
#
# - **KL warm-up**: as above, the rate counts little in the beginning.
# - **Free bits**: the rate of a latent, averaged over the batch, costs nothing below a limit $c$:
#   $\;\sum_j \max(c, \mathrm{KL}_j)$ in place of $\sum_j \mathrm{KL}_j$.

# %%
models["plain"] = train(new(50), train_x)
models["free 0.05"] = train(new(50), train_x, free_bits=0.05)
models["free 0.2"] = train(new(50), train_x, free_bits=0.2)
trained_on = {}
for name in ("plain", "free 0.05", "free 0.2", 50, 10):
    found[name], trained_on[name] = evaluate(models[name], test_x), evaluate(models[name], train_x, draws=50)["elbo"]
    e = found[name]
    print(
        f"{name}: {e['active']} active, rate {e['rate']:.2f}, ELBO {e['elbo']:.2f} (training {trained_on[name]:.2f}), log p(x) {e['log_px']:.2f}"
    )
for key, name in (("plain", "plain"), ("free_low", "free 0.05"), ("free_high", "free 0.2")):
    quote(f"active_{key}", found[name]["active"], abs=5)
    quote(f"rate_{key}", found[name]["rate"], abs=0.8)
    quote(f"elbo_{key}", found[name]["elbo"], abs=0.7)
    quote(f"log_px_{key}", found[name]["log_px"], abs=0.7)
    quote(f"trained_{key}", trained_on[name], abs=0.7)
quote("trained_50", trained_on[50], abs=0.4)
quote("trained_10", trained_on[10], abs=0.4)
quote("lost", trained_on[10] - trained_on["plain"], abs=0.8)
assert trained_on["plain"] < trained_on[10] - 0.5 and trained_on["plain"] < trained_on[50] - 0.5
assert trained_on["plain"] < trained_on["free 0.05"] and trained_on["free 0.2"] < trained_on["free 0.05"]
assert found["free 0.2"]["rate"] > found["free 0.05"]["rate"]

# %% [markdown]
# | 50 latents | Active | Rate | ELBO, training | ELBO, held out | $\log p(x)$ |
# |---|---|---|---|---|---|
# | plain | {{active_plain:.0f}} | {{rate_plain:.2f}} | {{trained_plain:.2f}} | {{elbo_plain:.2f}} | {{log_px_plain:.2f}} |
# | warm-up | {{active_50:.0f}} | {{rate_50:.2f}} | {{trained_50:.2f}} | {{elbo_50:.2f}} | {{log_px_50:.2f}} |
# | free bits, 0.05 nats | {{active_free_low:.0f}} | {{rate_free_low:.2f}} | {{trained_free_low:.2f}} | {{elbo_free_low:.2f}} | {{log_px_free_low:.2f}} |
# | free bits, 0.2 nats | {{active_free_high:.0f}} | {{rate_free_high:.2f}} | {{trained_free_high:.2f}} | {{elbo_free_high:.2f}} | {{log_px_free_high:.2f}} |
# | *10 latents, warm-up* | {{active_10:.0f}} | {{rate_10:.2f}} | {{trained_10:.2f}} | {{elbo_10:.2f}} | {{log_px_10:.2f}} |
#
# *Table 6.2. The same 50 latents, trained in four ways, and 10 for comparison.*

# %% tags=["hide-input"] alt="KL of each latent in falling order for 50 latents: plain training drops to zero after a few, warm-up after many, free bits of 0.2 is flat at 0.2."
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
lines = {
    "plain": (ORANGE, "o", "plain"),
    50: (BLUE, "s", "warm-up"),
    "free 0.05": (GREEN, "^", "free bits, 0.05"),
    "free 0.2": (PINK, "x", "free bits, 0.2"),
}
for name, (color, marker, label) in lines.items():
    axis.plot(range(1, 31), found[name]["kl"][:30], marker + "-", color=color, label=label, markersize=4, linewidth=1)
axis.set(xlabel="latent, in falling order (30 of 50)", ylabel="KL of the latent (nats)")
axis.legend()
# %% [markdown]
# *Figure 6.3. The KL latent by latent.*
#
# On the training pictures, plain training ends {{lost:.1f}} nats below the VAE with 10 latents, which it contains. By the
# test above, this is the optimizer's failure. In the first steps the decoder cannot read the code yet. Every nat of rate
# is waste, and the fastest way down is to silence the latents. A silent latent gives the decoder only noise, so the
# decoder turns its weights down. Then the encoder has no reason to speak again. Reference 5 follows how the encoder
# lags behind the decoder in these steps.
#
# Warm-up lets the two find each other first. It raises the ELBO, so it is a real remedy here. It is not a whole one: on
# the training pictures it comes to {{trained_50:.2f}} nats, and 10 latents to {{trained_10:.2f}}.
#
# Free bits are another matter. With 0.05 nats a latent, training comes to {{trained_free_low:.2f}}, above plain training.
# With 0.2 nats, 50 latents may speak 10 nats for nothing, useful or not, and it comes to {{trained_free_high:.2f}}. Both have
# {{active_free_low:.0f}} active units, more than any other. But the limit put them there. **Judge a remedy by the ELBO
# or by $\log p(x)$, not by the rate or by active units.**
#
# ## What happens with a strong decoder?
#
# A decoder that predicts each pixel from earlier pixels can do much without a code. Ours takes the `reach` pixels before
# (in reading order) with weights of their own, on top of what $z$ says:
#
# $$\mathrm{logit}_i = \mathrm{decoder}(z)_i + \sum_{j = i - \mathrm{reach}}^{i - 1} A_{ij}\, x_j.$$
#
# A product of such conditional probabilities is a probability of the picture, as long as pixel $i$ looks at *earlier*
# pixels alone. For each decoder we also train one whose code is silenced on purpose, by a rate that counts 1,000 times. The
# difference of the two is what the code is worth.

# %%
strong = new(10, reach=63)
with torch.no_grad():
    strong.pixel_weights.normal_(generator=torch.Generator().manual_seed(0))
slopes = torch.autograd.functional.jacobian(lambda x: strong.logits(x, torch.zeros(10)), test_x[0])  # [i, j]
assert (slopes.triu() == 0).all() and (slopes.tril(-1) != 0).sum() == 64 * 63 / 2, (
    "a pixel looks at itself or at later ones"
)

worth = {}
for reach in (0, 8, 63):
    speaks = evaluate(train(new(10, reach=reach), train_x), test_x)
    silent = evaluate(train(new(10, reach=reach), train_x, weight=lambda progress: 1000.0), test_x)
    worth[reach] = speaks["elbo"] - silent["elbo"]
    quote(f"reach_{reach}_rate", speaks["rate"], abs=0.6)
    quote(f"reach_{reach}_elbo", speaks["elbo"], abs=0.5)
    quote(f"reach_{reach}_silent", silent["elbo"], abs=0.4)
    quote(f"worth_{reach}", worth[reach], abs=0.6)
    print(
        f"reach {reach:2}: rate {speaks['rate']:.2f}, ELBO {speaks['elbo']:.2f}; silent {silent['elbo']:.2f} with rate {silent['rate']:.4f}"
    )
    assert silent["rate"] < 0.05
    plain_strong = speaks
quote("strong_log_px", plain_strong["log_px"], abs=0.5)
assert worth[0] > worth[8] > worth[63]

# %% [markdown]
# | Decoder sees | Rate | ELBO | ELBO, code silenced | What the code is worth |
# |---|---|---|---|---|
# | no pixels | {{reach_0_rate:.2f}} | {{reach_0_elbo:.2f}} | {{reach_0_silent:.2f}} | {{worth_0:.2f}} |
# | 8 earlier pixels | {{reach_8_rate:.2f}} | {{reach_8_elbo:.2f}} | {{reach_8_silent:.2f}} | {{worth_8:.2f}} |
# | all earlier pixels | {{reach_63_rate:.2f}} | {{reach_63_elbo:.2f}} | {{reach_63_silent:.2f}} | {{worth_63:.2f}} |
#
# *Table 6.3. Ten latents, trained without warm-up, held-out digits. The stronger the decoder, the less there is to tell.*
#
# What the code is worth falls from {{worth_0:.1f}} nats to {{worth_63:.1f}}. The rate falls with it. Nothing is broken: what
# the decoder can see by itself need not be told. With a decoder strong enough to be right without $z$, silence is the
# optimum.
#
# Can the remedies help here? Predict: which of rate, ELBO and $\log p(x)$ will rise?

# %%
remedies = {
    "warm": evaluate(train(new(10, reach=63), train_x, weight=warm_up), test_x),
    "free": evaluate(train(new(10, reach=63), train_x, free_bits=0.5), test_x),
}
for name, e in remedies.items():
    print(f"{name}: rate {e['rate']:.2f}, ELBO {e['elbo']:.2f}, log p(x) {e['log_px']:.2f}")
    quote(f"{name}_rate", e["rate"], abs=0.6)
    quote(f"{name}_elbo", e["elbo"], abs=0.5)
    quote(f"{name}_log_px", e["log_px"], abs=0.5)
    assert e["rate"] > plain_strong["rate"] + 0.3 and e["elbo"] < plain_strong["elbo"] + (1.0 if FAST else 0.1)

# %% [markdown]
# | All earlier pixels | Rate | ELBO | $\log p(x)$ |
# |---|---|---|---|
# | plain | {{reach_63_rate:.2f}} | {{reach_63_elbo:.2f}} | {{strong_log_px:.2f}} |
# | warm-up | {{warm_rate:.2f}} | {{warm_elbo:.2f}} | {{warm_log_px:.2f}} |
# | free bits, 0.5 nats | {{free_rate:.2f}} | {{free_elbo:.2f}} | {{free_log_px:.2f}} |
#
# *Table 6.4. Remedies where nothing was broken.*
#
# Both remedies raise the rate, and neither raises the ELBO: it goes from {{reach_63_elbo:.2f}} to {{warm_elbo:.2f}} and
# {{free_elbo:.2f}}. More is said through $z$ and less through the pixels, for the same total or a worse one. That can still
# be what you want: a code that says more, for search or for labels. Then say so, and do not call it a better model of
# the pictures.
#
# Look at $\log p(x)$ too. It went from {{strong_log_px:.2f}} to {{warm_log_px:.2f}} with warm-up, up where the ELBO did not
# rise. The gap between the two depends on how far the exact posterior is from a diagonal one, and that changed. So neither
# number stands for the other.
#
# ## Which of the three is it?
#
# | | The optimum is silent | The decoder needs no code | Training failed |
# |---|---|---|---|
# | where | $\lambda_j < \sigma^2$, β too large | strong decoder | many latents |
# | sign | a smaller $\sigma^2$ or β wakes it | ELBO as good with the code silenced | ELBO below a smaller model's |
# | remedy | the right $\sigma^2$: learn it | a weaker decoder, if you need the code | warm-up |
# | here | figures 6.1, 6.2 | table 6.3 | table 6.2 |
#
# First exclude the slips of chapter 0. A mean over pixels in place of a sum is of the first kind: chapter 5 shows which
# $\sigma^2$ it means.
#
# ## Exercises
#
# **Exercise 1.** Write the rate with free bits. It is averaged over the pictures first, and limited then.
#
# <details><summary>Hint</summary>
#
# The limit is for each latent, not for each picture. A picture may have less than the limit if another has more.
#
# </details>


# %% tags=["exercise"]
def free_bits_rate(kl, limit):
    """The rate that the loss counts, in nats, a scalar; kl [B, q]."""
    # begin solution
    return kl.mean(0).clamp(min=limit).sum()
    # end solution


# %% tags=["check"]
kl = torch.tensor([[0.0, 2.0], [0.9, 4.0]], requires_grad=True)  # averages 0.45 and 3
assert abs(free_bits_rate(kl, 0.5).item() - 3.5) < 1e-6, "the averages 0.45 and 3 count as 0.5 and 3"
assert abs(free_bits_rate(kl, 0.0).item() - 3.45) < 1e-6, "without a limit it is the rate"
free_bits_rate(kl, 0.5).backward()
assert (kl.grad == torch.tensor([[0.0, 0.5], [0.0, 0.5]])).all(), "below the limit a latent is free: no gradient"

# %% [markdown]
# **Exercise 2.** In a linear VAE with a fixed $\sigma^2$, the weight β is raised. At which β does the latent of a direction
# with variance $\lambda$ fall silent?
#
# <details><summary>Hint</summary>
#
# Chapter 5: β at a fixed $\sigma^2$ is the variance $\beta \sigma^2$.
#
# </details>


# %% tags=["exercise"]
def silencing_beta(direction_variance, noise):
    """The β from which on the latent is silent."""
    # begin solution
    return direction_variance / noise
    # end solution


# %% tags=["check"]
def beta_loss(w, beta, direction_variance, noise):
    """Distortion + β rate for x of one dimension and x = w z + noise, at the best encoder for this w."""
    level = beta * noise
    gain, s2 = w / (w**2 + level), level / (w**2 + level)
    error = (1 - w * gain) ** 2 * direction_variance + w**2 * s2
    return error / (2 * noise) + beta * 0.5 * (s2 + gain**2 * direction_variance - 1 - math.log(s2))


for lam, noise in ((0.7, 0.02), (0.3, 0.1)):
    beta = silencing_beta(lam, noise)
    w = 0.01 * math.sqrt(lam)  # a latent that begins to speak
    below, above = (beta_loss(w, b * beta, lam, noise) - beta_loss(0.0, b * beta, lam, noise) for b in (0.99, 1.01))
    assert below < 0, f"λ = {lam}, σ² = {noise}: at a β 1 % smaller, speaking should pay"
    assert above > 0, f"λ = {lam}, σ² = {noise}: at a β 1 % larger, it should not"

# %% [markdown]
# **Exercise 3.** Estimate $\log p(x)$ from log-weights.
#
# <details><summary>Hint</summary>
#
# Average the weights, not their logarithms. `logsumexp` does it without overflow; mind the $\log K$.
#
# </details>


# %% tags=["exercise"]
def log_px_estimate(log_w):
    """log p(x) of each picture, [B]; log_w [K, B]."""
    # begin solution
    return log_w.logsumexp(0) - math.log(log_w.shape[0])
    # end solution


# %% tags=["check"]
# z ~ N(0, 1) and x|z ~ N(z, 1), so x ~ N(0, 2). The draws are from the prior, so w = p(x|z).
values = torch.tensor([0.0, 1.0, -2.0])
draws_of_z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
log_w = torch.distributions.Normal(draws_of_z, 1.0).log_prob(values)
exact_log_px = torch.distributions.Normal(0.0, math.sqrt(2.0)).log_prob(values)
assert torch.allclose(log_px_estimate(log_w), exact_log_px, atol=0.02), f"should be near {exact_log_px.tolist()}"
assert torch.isfinite(log_px_estimate(log_w - 1000)).all(), "log-weights of -1000 should not underflow"

# %% [markdown]
# **Exercise 4.** A decoder may look at earlier pixels only. Write the mask: entry $[i, j]$ is 1 if pixel $i$ may look at
# pixel $j$, which is if $j$ is one of the `reach` pixels before $i$.
#
# <details><summary>Hint</summary>
#
# `torch.arange` for $i$ as a column and for $j$ as a row; then $1 \le i - j \le$ reach.
#
# </details>


# %% tags=["exercise"]
def earlier_pixels(pixels, reach):
    """The mask of 0.0 and 1.0, [pixels, pixels]."""
    # begin solution
    distance = torch.arange(pixels).view(-1, 1) - torch.arange(pixels)
    return ((distance >= 1) & (distance <= reach)).float()
    # end solution


# %% tags=["check"]
weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)  # all 16 pictures of 4 pixels
for reach, entries in ((0, 0), (1, 3), (2, 5), (3, 6)):
    mask = earlier_pixels(4, reach).double()
    total = F.logsigmoid((2 * every - 1) * (every @ (weights * mask).T)).sum(-1).exp().sum().item()
    assert abs(total - 1) < 1e-9, f"reach {reach}: the probabilities of all pictures add up to {total:.3f}, not 1"
    assert mask.sum() == entries, f"reach {reach}: {entries} pairs are allowed"

# %% [markdown]
# ## Summary
#
# - In a linear VAE a latent is silent when $\lambda_j \le \sigma^2$; else its KL is $\tfrac12 \ln(\lambda_j / \sigma^2)$.
#   Measured: within {{linear_worst:.4f}} nats, latent by latent.
# - A deep VAE collapsed near the same place, $\sigma^2 = \lambda_1 = {{largest:.2f}}$.
# - Silent latents cost nothing. Adding 40 to a VAE changed neither its rate nor its $\log p(x)$.
# - A larger VAE contains the smaller. If its ELBO is worse, training failed: here by {{lost:.1f}} nats. Warm-up mended
#   most of that.
# - A strong decoder leaves less to tell: the code was worth {{worth_0:.1f}} nats, then {{worth_63:.1f}}.
# - Free bits and warm-up raise the rate. Whether they help is said by the ELBO and by $\log p(x)$ alone.
#
# ## References
#
# 1. J. Lucas, G. Tucker, R. Grosse and M. Norouzi (2019). *Don't Blame the ELBO! A Linear VAE Perspective on Posterior
#    Collapse.* arXiv:1911.02469. The linear threshold: sections 3 and 4; the noise in deep VAEs: section 6.
# 2. Y. Burda, R. Grosse and R. Salakhutdinov (2016). *Importance Weighted Autoencoders.* arXiv:1509.00519. Active units:
#    section 5; the estimate of $\log p(x)$: equation (8).
# 3. S. R. Bowman et al. (2016). *Generating Sentences from a Continuous Space.* arXiv:1511.06349. KL warm-up, and a strong
#    decoder: section 3.1. Also C. K. Sønderby et al. (2016). *Ladder Variational Autoencoders.* arXiv:1602.02282, section 2.3.
# 4. D. P. Kingma et al. (2016). *Improving Variational Inference with Inverse Autoregressive Flow.* arXiv:1606.04934.
#    Free bits: appendix C.8.
# 5. J. He, D. Spokoyny, G. Neubig and T. Berg-Kirkpatrick (2019). *Lagging Inference Networks and Posterior Collapse in
#    Variational Autoencoders.* arXiv:1901.05534. The lag of the encoder: section 3.
# 6. B. Dai, Z. Wang and D. Wipf (2020). *The Usual Suspects? Reassessing Blame for VAE Posterior Collapse.*
#    arXiv:1912.10702. Kinds of collapse told apart: section 3.
# 7. X. Chen et al. (2017). *Variational Lossy Autoencoder.* arXiv:1611.02731. Why a strong decoder leaves the code
#    unused: section 2.
