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
# # 3. Gradients through noise
#
# The encoder of a VAE gives a mean and a scale, then dice are thrown, then the decoder's cost is computed. How does the
# cost tell the encoder what to do better? There are two answers. They agree on average. One needs hundreds of times as
# many draws as the other.

# %% tags=["hide-input"] alt="Three panels. Left: a parabola with dots on it; a vertical arrow at each shows the slope. Middle: the same dots as triangles up and down, whose weight grows and shrinks. Right: histograms of single estimates; the path's is narrow, the score function's is wide with a long tail, both have the same mean."
import itertools
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal, kl_divergence

from vaelab.course import FAST, quote

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"  # Okabe & Ito 2008


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


mean, sigma = torch.tensor(1.0), torch.tensor(1.0)
figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
line, some = torch.linspace(-2.2, 4, 100), mean + sigma * torch.special.ndtri(torch.linspace(0.04, 0.96, 9))
for axis, title in zip(
    axes, ["path: the slope at each draw", "score: the weight of each draw", "single estimates"], strict=True
):
    axis.set_title(title, fontsize=10)
for axis in axes[:2]:
    axis.plot(line, line**2, color=BLACK, lw=1)
    axis.set(xlabel="z", ylabel="f(z) = z²", ylim=(-3, 14))
axes[0].plot(some, some**2, "o", color=BLUE)
axes[0].quiver(some, some**2, 0 * some, 2 * some, angles="xy", scale_units="xy", scale=1, color=BLUE, width=0.012)
for sign, marker, color in ((1, "^", ORANGE), (-1, "v", PINK)):
    chosen = some[(some - mean) * sign > 0]
    axes[1].scatter(chosen, chosen**2, s=30 + 60 * (chosen - mean).abs(), marker=marker, color=color)
axes[1].plot(line, 8 * Normal(mean, sigma).log_prob(line).exp() - 3, color=BLUE, lw=1)
axes[1].plot(line, 8 * Normal(mean + 0.45, sigma).log_prob(line).exp() - 3, "--", color=ORANGE, lw=1)
epsilon = noise(20_000)
z = mean + sigma * epsilon
axes[2].hist((z**2 * epsilon / sigma).clamp(-12, 25), 60, density=True, color=ORANGE, alpha=0.6, label="score")
axes[2].hist(2 * z, 60, density=True, histtype="step", lw=2, color=BLUE, label="path")
axes[2].axvline(2.0, color=BLACK, ls=":", label="exact")
axes[2].set(xlabel="estimate of the gradient", ylabel="density")
axes[2].legend(fontsize=8)
# %% [markdown]
# *Figure 3.1. How does the mean of $f(z) = z^2$ change when the normal distribution moves to the right? Left: let the
# draws move with it; the arrow is the slope, the change of each draw's cost. Middle: leave them, and give more weight
# to those on the right (triangles up; the two bell curves are before and after). Right: what 20,000 single draws say
# (estimates beyond −12 and 25 are put into the last bars).*
#
# ## The question
#
# A draw $z$ comes from $q(z) = N(\mu, \sigma^2)$, the normal distribution with mean $\mu$ and variance $\sigma^2$. A
# function $f(z)$ is its cost. $\mathbb{E}_q[f(z)]$ is the mean cost over all draws. We want its gradient with respect
# to $\mu$ and $\sigma$. In a VAE, $q$ is the approximate posterior $q(z|x)$ of a picture $x$, and $f(z) = -\log p(x|z)$.
#
# First, what does not work. `sample()` is a throw of dice. Nothing flows back through it.

# %%
parameter = torch.tensor(1.0, requires_grad=True)
assert not Normal(parameter, 1.0).sample().requires_grad
assert Normal(parameter, 1.0).rsample().requires_grad  # what this chapter explains

# %% [markdown]
# ## Two answers
#
# **The path.** Write the draw as $z = \mu + \sigma\varepsilon$, with noise $\varepsilon \sim N(0, 1)$ that depends on
# nothing. This is the **reparameterization**. Now $f(z)$ is an ordinary function of $\mu$ and $\sigma$ along the path of
# each $\varepsilon$. Differentiate it inside the mean:
#
# $$\frac{\partial}{\partial\mu}\mathbb{E}_q[f(z)] = \mathbb{E}_\varepsilon\big[f'(z)\big], \qquad
# \frac{\partial}{\partial\sigma}\mathbb{E}_q[f(z)] = \mathbb{E}_\varepsilon\big[f'(z)\,\varepsilon\big].$$
#
# **The score function.** Leave the draw alone, and differentiate its density. Since $\nabla q = q\,\nabla \log q$,
#
# $$\frac{\partial}{\partial\mu}\int q(z) f(z)\,dz = \mathbb{E}_q\Big[f(z)\,\frac{\partial \log q(z)}{\partial\mu}\Big]
# = \mathbb{E}_q\Big[f(z)\,\frac{z - \mu}{\sigma^2}\Big] = \mathbb{E}_\varepsilon\Big[f(z)\,\frac{\varepsilon}{\sigma}\Big].$$
#
# $\partial \log q/\partial\mu$ is called the **score**. The estimator is also known as REINFORCE. It needs no slope of
# $f$, only its value. That is its strength, and its trouble: a value does not say in which direction it is better.
#
# Test both where everything is known. There are $D$ latents, each with the same $\sigma$ and a mean $\mu_j = c_j + d$, and
# the cost is $f(z) = \sum_j (z_j - c_j)^2$. Its mean is $\sum_j (d^2 + \sigma^2)$, so the gradient with respect to
# $\mu_1$ is $2d$. One draw estimates it as


# %%
def estimates(d, sigma, D, draws):
    """The gradient with respect to the first mean, from one draw each: path and score; and f. [draws] each."""
    epsilon = noise(draws, D)
    from_c = d + sigma * epsilon  # z - c
    f = (from_c**2).sum(-1)
    path = 2 * from_c[:, 0]
    score = f * epsilon[:, 0] / sigma
    return path, score, f


# Is it what autograd says, for one draw?
mean = torch.full((5,), 0.7, requires_grad=True)  # c is 0
epsilon = noise(100, 5)
z = mean + 0.5 * epsilon
path, score, f = estimates(0.7, 0.5, 5, 100)
(by_path,) = torch.autograd.grad((z[3] ** 2).sum(), mean, retain_graph=True)
(by_score,) = torch.autograd.grad(f[3] * Normal(mean, 0.5).log_prob(z[3].detach()).sum(), mean)
assert torch.isclose(by_path[0], path[3]) and torch.isclose(by_score[0], score[3])

# %% [markdown]
# ## The variance, exactly
#
# Both have the mean $2d$. Their variances follow from the moments of $\varepsilon$ ($\mathbb{E}\,\varepsilon^2 = 1$,
# $\mathbb{E}\,\varepsilon^4 = 3$, $\mathbb{E}\,\varepsilon^6 = 15$). The path's is $4\sigma^2$. The other latents do not
# occur in it. For the score function, let $m$ and $v$ be mean and variance of what the $D - 1$ other latents add to $f$:
#
# $$m = (D-1)(d^2 + \sigma^2), \qquad v = (D-1)(4 d^2\sigma^2 + 2\sigma^4),$$
#
# $$\mathrm{Var} = \frac{d^4 + 18 d^2\sigma^2 + 15\sigma^4 + 2 m (d^2 + 3\sigma^2) + m^2 + v}{\sigma^2} - 4d^2.$$
#
# The term $m^2$ grows with the *square* of $D$. Every other latent's cost is multiplied by $\varepsilon_1$, which has
# nothing to do with it.
#
# ## A baseline
#
# Part of that is easy to remove. A constant $b$ times the score has mean 0, so $(f(z) - b)\,\varepsilon/\sigma$ has the
# same mean. It is a **control variate**, and $b$ is called a **baseline**. The variance is least at
#
# $$b^* = \frac{\mathbb{E}[f\,\varepsilon_1^2]}{\mathbb{E}[\varepsilon_1^2]} = d^2 + 3\sigma^2 + m,$$
#
# and is then smaller by $b^{*2}/\sigma^2$. The plain mean, $b = \mathbb{E} f$, is less by $2\sigma^2$ than $b^*$. It
# costs only $4\sigma^2$ more variance.


# %%
def exact_variances(d, sigma, D):
    """Of the path, the score function, the score function with the best baseline, and with the mean as baseline."""
    m, v = (D - 1) * (d**2 + sigma**2), (D - 1) * (4 * d**2 * sigma**2 + 2 * sigma**4)
    f2_eps2 = d**4 + 18 * d**2 * sigma**2 + 15 * sigma**4 + 2 * m * (d**2 + 3 * sigma**2) + m**2 + v  # E[f² ε²]
    score = f2_eps2 / sigma**2 - 4 * d**2
    best_b = d**2 + 3 * sigma**2 + m
    best = score - best_b**2 / sigma**2
    return {"path": 4 * sigma**2, "score": score, "best baseline": best, "mean baseline": best + 4 * sigma**2}


def measured_variances(d, sigma, D, draws):
    path, score, f = estimates(d, sigma, D, draws)
    per_f = noise(draws, D)[:, 0] / sigma
    best_b, mean_b = d**2 + 3 * sigma**2 + (D - 1) * (d**2 + sigma**2), D * (d**2 + sigma**2)
    assert abs(path.mean() - 2 * d) < 5 * path.std() / draws**0.5
    assert abs(score.mean() - 2 * d) < 5 * score.std() / draws**0.5
    found = {"path": path, "score": score, "best baseline": (f - best_b) * per_f, "mean baseline": (f - mean_b) * per_f}
    return {name: estimate.var().item() for name, estimate in found.items()}


DRAWS = 100_000 if FAST else 200_000
sizes = [1, 2, 5, 10, 20, 50]
exact = {D: exact_variances(1.0, 1.0, D) for D in sizes}
measured = {D: measured_variances(1.0, 1.0, D, DRAWS) for D in sizes}
for D, name in itertools.product(sizes, exact[1]):
    assert abs(measured[D][name] / exact[D][name] - 1) < 0.06, (D, name)
for D in sizes:  # with d = σ = 1 it is short
    assert exact[D]["score"] == 30 + 22 * (D - 1) + 4 * (D - 1) ** 2
    assert exact[D]["best baseline"] == 14 + 6 * (D - 1)
assert abs(measured_variances(0.5, 2.0, 3, DRAWS)["score"] / exact_variances(0.5, 2.0, 3)["score"] - 1) < 0.06
small = exact_variances(1.0, 0.1, 20)
quote("score_20", exact[20]["score"], abs=1e-6)
quote("score_20_measured", measured[20]["score"], rel=0.02)
quote("best_20", exact[20]["best baseline"], abs=1e-6)
quote("needed_20", exact[20]["score"] / 4, abs=1e-6)
quote("needed_best_20", exact[20]["best baseline"] / 4, abs=1e-6)
quote("needed_small", small["score"] / small["path"], rel=1e-6)
quote("needed_small_best", small["best baseline"] / small["path"], rel=1e-6)
print(f"20 latents: exact {exact[20]['score']:.0f}, measured {measured[20]['score']:.0f}")

# %% tags=["hide-input"] alt="Variance against the number of latents, both logarithmic. The path's stays at 4. The score function's rises from 30 to 11,000, with the best baseline to 308. Measured points lie on the exact lines."
figure, axis = plt.subplots(figsize=(7, 3.3), layout="constrained")
styles = {"score": (ORANGE, "--", "s"), "best baseline": (GREEN, "-.", "^"), "path": (BLUE, "-", "o")}
for name, (color, style, marker) in styles.items():
    axis.loglog(sizes, [exact[D][name] for D in sizes], style, color=color, label=f"{name}, exact")
    axis.loglog(sizes, [measured[D][name] for D in sizes], marker, color=color, label=f"{name}, measured")
axis.set(xlabel="number of latents $D$", ylabel="variance of one estimate")
axis.legend(fontsize=8)
# %% [markdown]
# *Figure 3.2. Variance of the two estimators for $d = \sigma = 1$. Lines: the formulas. Markers: 200,000 draws.*
#
# For $d = \sigma = 1$ the variances are 4, $30 + 22(D-1) + 4(D-1)^2$, and with the best baseline $14 + 6(D-1)$. At
# $D = 20$ the score function has {{score_20:,.0f}} (measured {{score_20_measured:,.0f}}), with the baseline
# {{best_20:.0f}}. The mean of $n$ draws has an $n$-th of the variance. So to match *one* draw of the path, the score
# function needs {{needed_20:.0f}} draws, or {{needed_best_20:.0f}} with the best baseline.
#
# It gets worse as $\sigma$ shrinks, which it does in training. The path's variance, $4\sigma^2$, goes to 0. The score
# function's goes to infinity. With $\sigma = 0.1$ and 20 latents it needs {{needed_small:,.0f}} draws; with the best
# baseline, {{needed_small_best:,.0f}}.
#
# ## What happens if the cost has a jump?
#
# Let the cost be 1 for $z > 0$ and 0 otherwise. Its mean is $P(z > 0)$, and the derivative with respect to $\mu$ is the
# density of $q$ at 0. Predict what the path says.

# %%
mean, sigma, epsilon = torch.tensor(0.5, requires_grad=True), 1.0, noise(DRAWS)
z = mean + sigma * epsilon
jump = (1 + torch.sign(z)) / 2  # autograd knows the slope of a sign: 0
jump_exact = Normal(mean, sigma).log_prob(torch.tensor(0.0)).exp().item()
jump_score = (jump.detach() * epsilon / sigma).mean().item()
jump_path = torch.autograd.grad(jump.mean(), mean)[0].item()
quote("jump_exact", jump_exact, abs=1e-6)
quote("jump_score", jump_score, abs=0.01)
assert jump_path == 0 and abs(jump_score - jump_exact) < 0.01

k, z = 4.0, 0.5 + epsilon  # a fast wave, cos(kz): the exact variances are k²/2 and 1/2, up to exp(-k²)
for name, estimate, variance in (("path", -k * torch.sin(k * z), k**2 / 2), ("score", torch.cos(k * z) * epsilon, 0.5)):
    assert abs(quote(f"wave_{name}", estimate.var().item(), rel=0.01) / variance - 1) < 0.03

# %% [markdown]
# The exact gradient is {{jump_exact:.3f}}. The score function says {{jump_score:.3f}}. The path says 0: the slope of a
# jump is 0 wherever it exists, and no draw hits the jump. The path estimator needs a cost without jumps. For the same
# reason it does not serve discrete latents; those need the score function, or a smooth stand-in such as the
# Gumbel-softmax.
#
# Nor does the path always have the smaller variance. For a fast wave, $f(z) = \cos(4z)$ with $\mu = 0.5$ and $\sigma = 1$,
# it has {{wave_path:.1f}} and the score function {{wave_score:.1f}}. Slopes that change sign within one $\sigma$ say
# little. How it is in a VAE must be measured.
#
# ## On a real VAE
#
# Now the digits of chapter 0, with 8 latents. The loss is distortion + rate. The rate has a closed form, so only the
# distortion needs an estimator. For the score function we differentiate `(distortion.detach() - baseline) * log_qz_x`.
# Its value means nothing, but its gradient with respect to the encoder is the estimate: a **surrogate**.

# %%
torch.set_default_dtype(torch.float32)
EPOCHS = 8 if FAST else 30
PIXELS, LATENTS, BATCH = 64, 8, 64
pictures = (torch.tensor(load_digits(return_X_y=True)[0]) > 8).float()
train_x, test_x = pictures[torch.randperm(1797, generator=torch.Generator().manual_seed(0))].split([1437, 360])


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 2 * LATENTS))
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 128), nn.ReLU(), nn.Linear(128, PIXELS))


def log_variance_head(a):
    """The scale from the encoder's second output a: the usual way."""
    return torch.exp(0.5 * a)


def distortion_of(model, z, x):
    """-log p(x|z) in nats: [..., B]."""
    logits = model.decoder(z)
    return F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def rate_of(mean, sigma):
    """KL(N(mean, sigma²) || N(0, I)) in nats: [B]."""
    return 0.5 * (sigma**2 + mean**2 - 1 - torch.log(sigma**2)).sum(-1)


some_mean, some_sigma = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0.1, 1.0, 2.0])
assert torch.allclose(
    rate_of(some_mean, some_sigma), kl_divergence(Normal(some_mean, some_sigma), Normal(0.0, 1.0)).sum(-1), atol=1e-5
)


def loss_of(model, x, estimator, baseline=0.0, head=log_variance_head, draws=1):
    """The loss, whose gradient is the estimate. Gives also the distortion of each draw: [draws, B]."""
    mean, a = model.encoder(x).chunk(2, dim=-1)
    sigma = head(a)
    z = mean + sigma * torch.randn(draws, *mean.shape)
    if estimator == "path":
        distortion = distortion_of(model, z, x)
        return (distortion + rate_of(mean, sigma)).mean(), distortion.detach()
    distortion = distortion_of(model, z.detach(), x)  # for the decoder; nothing flows to the encoder
    loss = distortion + rate_of(mean, sigma)
    if estimator != "sample":
        fixed = distortion.detach()
        if estimator == "others":  # the mean of the other draws for the same picture
            baseline = (fixed.sum(0) - fixed) / (draws - 1)
        log_qz_x = Normal(mean, sigma).log_prob(z.detach()).sum(-1)
        loss = loss + (fixed - baseline) * (log_qz_x - log_qz_x.detach())  # value 0, gradient the estimate
    return loss.mean(), distortion.detach()


@torch.no_grad()
def evaluate(model, head=log_variance_head, draws=10):
    """ELBO and rate of the held-out pictures, in nats per picture."""
    mean, a = model.encoder(test_x).chunk(2, dim=-1)
    epsilon = torch.randn(draws, *mean.shape, generator=torch.Generator().manual_seed(0))
    rate = rate_of(mean, head(a)).mean().item()
    return -(distortion_of(model, mean + head(a) * epsilon, test_x).mean().item() + rate), rate


def train(estimator, epochs, head=log_variance_head, draws=1):
    """A trained VAE, and the held-out ELBO after each epoch. "average": the baseline is a running mean over batches."""
    torch.manual_seed(0)
    model, running, history = VAE(), 0.0, []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for _ in range(epochs):
        for x in train_x[torch.randperm(len(train_x))].split(BATCH):
            optimizer.zero_grad()
            loss, distortion = loss_of(model, x, estimator, running, head, draws)
            loss.backward()
            optimizer.step()
            if estimator == "average":
                running = 0.9 * running + 0.1 * distortion.mean() if running else distortion.mean()
        history.append(evaluate(model, head)[0])
    return model, history


ways = {
    "path": ("path", 1, BLUE, "-"),
    "score, 4 draws, baseline": ("others", 4, GREEN, "-."),
    "score, running baseline": ("average", 1, PINK, ":"),
    "score": ("score", 1, ORANGE, "--"),
    "sample(), no gradient": ("sample", 1, BLACK, (0, (1, 4))),
}
trained = {name: train(estimator, EPOCHS, draws=draws) for name, (estimator, draws, _, _) in ways.items()}
for name, (model, history) in trained.items():
    print(f"{name:26} ELBO {history[-1]:.1f}, rate {evaluate(model)[1]:.2f}")

# %% tags=["hide-input"] alt="Held-out ELBO against epochs for five ways. The path and the score function with four draws and a baseline rise together to the top, a running baseline ends lower, no baseline lower still, and no gradient lowest."
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, (_, _, color, style) in ways.items():
    axis.plot(range(1, EPOCHS + 1), trained[name][1], ls=style, color=color, lw=2, label=name)
axis.set(xlabel="epoch", ylabel="held-out ELBO (nats per picture)", ylim=(-32, None))
axis.legend(fontsize=8)
keys = ("path", "others", "average", "score", "sample")
for key, (_, history) in zip(keys, trained.values(), strict=True):
    quote(f"elbo_{key}", history[-1], abs=1.5 if key == "score" else 0.8)  # that one staggers
quote("rate_path", evaluate(trained["path"][0])[1], abs=0.5)
quote("lost_score", trained["path"][1][-1] - trained["score"][1][-1], abs=1.5)
last = [history[-1] for _, history in trained.values()]
assert abs(last[0] - last[1]) < 1
assert last[0] > last[2] + 0.5 and last[2] > last[3] + 0.5 and last[0] > last[4] + 1
assert evaluate(trained["sample(), no gradient"][0])[1] < 0.01

# %% [markdown]
# *Figure 3.3. The same network, trained with five estimates of the encoder's gradient.*
#
# | The encoder's gradient | ELBO (nats) |
# |---|---|
# | path | {{elbo_path:.1f}} |
# | score function, 4 draws; the baseline of each is the mean of the other three | {{elbo_others:.1f}} |
# | score function, baseline: running mean over the batches | {{elbo_average:.1f}} |
# | score function | {{elbo_score:.1f}} |
# | `sample()` in place of `rsample()` | {{elbo_sample:.1f}} |
#
# Four draws with a baseline do as well here as one of the path, at four times the work in the decoder. Without a
# baseline, {{lost_score:.1f}} nats are lost.
#
# The last row is a common mistake. Nothing crashes, since the decoder and the rate still have gradients. But the encoder
# hears of the rate only. It brings the rate below 0.01 nats, where the path's VAE has {{rate_path:.1f}}.
#
# How far apart are the gradients themselves? Take the trained VAE and one batch, and estimate the encoder's gradient
# again and again. Add the variances of all {{weights:,.0f}} weights.

# %%
torch.manual_seed(1)
model, batch = trained["path"][0], test_x[:64]
weights = list(model.encoder.parameters())
REPEATS = 80 if FAST else 400
with torch.no_grad():
    mean, a = model.encoder(batch).chunk(2, dim=-1)
    z = mean + log_variance_head(a) * torch.randn(200, *mean.shape)
    each_mean = distortion_of(model, z, batch).mean(0)  # [B]: each picture's own baseline, from other draws


def gradients(loss):
    """REPEATS estimates of the gradient with respect to the encoder's weights: [REPEATS, weights]."""
    found = [torch.autograd.grad(loss(), weights) for _ in range(REPEATS)]
    return torch.stack([torch.cat([part.flatten() for part in one]) for one in found])


by = {
    "path": gradients(lambda: loss_of(model, batch, "path")[0]),
    "score": gradients(lambda: loss_of(model, batch, "score")[0]),
    "mean": gradients(lambda: loss_of(model, batch, "score", baseline=each_mean)[0]),
}
total = {name: found.var(0).sum().item() for name, found in by.items()}
quote("weights", by["path"].shape[1], abs=1e-6)
quote("times_score", total["score"] / total["path"], rel=0.2)
quote("times_mean", total["mean"] / total["path"], rel=0.2)
for name in ("score", "mean"):  # the same mean? The distance is what chance makes it
    distance = ((by[name].mean(0) - by["path"].mean(0)) ** 2).sum().item()
    assert 0.5 < distance / ((total[name] + total["path"]) / REPEATS) < 1.6, name
assert total["score"] > 10 * total["mean"] > 10 * total["path"]
print(f"variance, times that of the path: score {total['score'] / total['path']:.0f}", end=", ")
print(f"with each picture's mean as baseline {total['mean'] / total['path']:.1f}")

# %% [markdown]
# The score function has {{times_score:.0f}} times the variance of the path. With each picture's own mean distortion as a
# baseline, it is {{times_mean:.0f}} times. The means agree: they are as far apart as chance makes them.
#
# ## Why the log-variance?
#
# The encoder's last layer gives any number $a$, and $\sigma$ must be positive. Four ways are in use:
#
# | Name | $\sigma(a)$ | slope $\sigma'(a)$ |
# |---|---|---|
# | log-variance | $e^{a/2}$ | $\sigma/2$ |
# | log-scale | $e^{a}$ | $\sigma$ |
# | softplus | $\log(1 + e^a)$ | $1 - e^{-\sigma}$ |
# | direct | $a$ | 1 |
#
# What does the loss look like in $a$? Near a picture's code, the distortion is about a parabola with curvature $s$, so
# noise costs $\tfrac12 s\sigma^2$. The rate has $-\log\sigma$, and a $\tfrac12\sigma^2$ that we count into $s$. So
#
# $$L(a) = \tfrac12 s\,\sigma(a)^2 - \log \sigma(a), \qquad \sigma_* = s^{-1/2}, \qquad L''(a_*) = \frac{2\,\sigma'(a_*)^2}{\sigma_*^2},$$
#
# where $*$ marks the minimum. With the log-variance, $L'' = \tfrac12$ *whatever* $\sigma_*$ is; with the log-scale, 2.
# Directly, it is $2/\sigma_*^2$: it grows 100-fold when $\sigma_*$ falls tenfold. One learning rate cannot suit all
# latents.

# %%
heads = {
    "log-variance": (lambda a: torch.exp(0.5 * a), lambda sigma: 2 * torch.log(sigma), lambda sigma: sigma / 2),
    "log-scale": (torch.exp, torch.log, lambda sigma: sigma),
    "softplus": (F.softplus, lambda sigma: torch.log(torch.expm1(sigma)), lambda sigma: 1 - torch.exp(-sigma)),
    "direct": (lambda a: 1.0 * a, lambda sigma: sigma, torch.ones_like),
}


def descend(name, best, learning_rate=0.4, start=1.5, most=10_000):
    """Steps of gradient descent from start * best until sigma is within 1 % of `best`; infinity if it never is."""
    head, inverse, _ = heads[name]
    a = inverse(torch.tensor(start * best, dtype=torch.float64)).requires_grad_()
    for step in range(most):
        sigma = head(a)
        if abs(sigma.item() / best - 1) < 0.01:
            return step
        (slope,) = torch.autograd.grad(0.5 * sigma**2 / best**2 - torch.log(sigma), a)
        a = (a - learning_rate * slope).detach().requires_grad_()
        if not a.isfinite():
            break
    return math.inf


steps = {}
for best, (name, (head, inverse, slope)) in itertools.product((0.05, 0.5, 5.0), heads.items()):
    sigma = torch.tensor(best, dtype=torch.float64)

    def cost(a, head=head, s=best**-2):
        return 0.5 * s * head(a) ** 2 - torch.log(head(a))

    curvature = torch.autograd.functional.hessian(cost, inverse(sigma))
    assert torch.isclose(curvature, 2 * slope(sigma) ** 2 / sigma**2), name
    steps[name, best] = descend(name, best)
    print(f"{name:12} best sigma {best:4}: curvature {curvature:7.3f}, steps {steps[name, best]}")
assert len({steps["log-variance", best] for best in (0.05, 0.5, 5.0)}) == 1
assert steps["direct", 0.05] == math.inf and steps["direct", 5.0] > 5 * steps["log-variance", 5.0]
quote("steps_log_variance", steps["log-variance", 0.05], abs=1)
quote("steps_direct_large", steps["direct", 5.0], abs=2)
quote("steps_softplus_small", steps["softplus", 0.05], abs=1)
quote("steps_softplus_large", steps["softplus", 5.0], abs=2)

# %% [markdown]
# From $1.5\,\sigma_*$ with a learning rate of 0.4, the log-variance needs {{steps_log_variance:.0f}} steps to come within
# 1 %, for $\sigma_*$ of 0.05, 0.5 and 5 alike. Directly, it needs {{steps_direct_large:.0f}} for 5, and never arrives for
# 0.05. Softplus is like a log-scale when small ({{steps_softplus_small:.0f}} steps for 0.05) and like the direct way when
# large ({{steps_softplus_large:.0f}} for 5).
#
# And it must not break. Which values of $a$ give a rate or a gradient that is not a finite number, in float32?

# %%
breaks = {}
log_sigma = {"log-variance": lambda a: a / 2, "log-scale": lambda a: a}  # known before σ is
for name, (head, _, _) in heads.items():
    raw = torch.tensor([-200.0, -80.0, -1.0, 1.0, 80.0, 200.0], requires_grad=True)
    log = log_sigma.get(name, lambda a, head=head: torch.log(head(a)))(raw)
    rates = 0.5 * (head(raw) ** 2 - 1) - log
    (slopes,) = torch.autograd.grad(rates.sum(), raw)
    breaks[name] = [value for value, r, g in zip(raw.tolist(), rates, slopes, strict=True) if not (r + g).isfinite()]
    print(f"{name:12} breaks at a = {breaks[name]}")
assert breaks["direct"] == [-200.0, -80.0, -1.0] and breaks["log-variance"] == [200.0]
assert -200.0 in breaks["softplus"] and 200.0 not in breaks["softplus"]
torch.manual_seed(0)
with torch.no_grad():
    negative = (VAE().encoder(train_x).chunk(2, dim=-1)[1] < 0).float().mean().item()
    unsafe = torch.log(VAE().encoder(train_x).chunk(2, dim=-1)[1])
assert unsafe.isnan().any()
quote("negative", negative, abs=0.1)
for key, name in (("softplus", "softplus"), ("direct", "direct")):
    offset = {"softplus": 0.5413, "direct": 1.0}[name]  # so that training starts from a scale near 1, as the others do
    quote(f"elbo_{key}", train("path", EPOCHS, head=lambda a, n=name, o=offset: heads[n][0](a + o))[1][-1], abs=0.8)

# %% [markdown]
# The first two never take a logarithm of $\sigma$: the log-variance enters the rate as it is. It breaks only at very large
# $a$, where the rate is astronomical and pushes back. Softplus breaks at very negative $a$, where it rounds to 0.
# Directly, every negative $a$ breaks $\log\sigma$: in a new encoder that is {{negative:.0%}} of the outputs, and the first
# loss is NaN. Writing $\log\sigma^2$ hides this, since $a^2$ does not mind the sign; then $\sigma$ may cross 0, where
# the rate is infinite.
#
# In this small VAE, Adam hides the difference: the held-out ELBO is {{elbo_path:.1f}} with the log-variance,
# {{elbo_softplus:.1f}} with softplus, and {{elbo_direct:.1f}} directly with $\log\sigma^2$ and a start at $\sigma = 1$.
#
# ## The rate: formula or draws?
#
# The rate may be computed by its closed form, or from the same draw as $\log q(z|x) - \log p(z)$. For one latent the
# second has the right mean, and the variance
#
# $$\mathrm{Var}\big[\log q(z|x) - \log p(z)\big] = \mu^2\sigma^2 + \tfrac12(\sigma^2 - 1)^2.$$
#
# So take the closed form? For the *value*, yes. For the *gradient* it is less clear. Take a model where all is known:
# $p(z) = N(0, 1)$, and $p(x|z) = N(z, s^2)$ with standard deviation $s$. Its exact posterior is
# $N\big(\tfrac{x}{1 + s^2}, \tfrac{s^2}{1 + s^2}\big)$. Let $q$ be just that, so that every gradient should be 0. There
# are three estimates of the ELBO's gradient with respect to $\mu$, from one draw:
#
# - **Closed-form rate**: $\frac{x - z}{s^2} - \mu$. Variance $\sigma^2/s^4$.
# - **Sampled rate**, differentiated as it stands. Two parts: the path through $z$, and $\mu$ and $\sigma$ inside
#   $\log q$. At the exact posterior, $\log p(x, z) - \log q(z|x) = \log p(x)$ is the same for all $z$, so the path part
#   is 0. The other is minus the score: mean 0, variance $1/\sigma^2$.
# - **Path only** ("sticking the landing"): leave that second part out, by detaching $\mu$ and $\sigma$ inside $\log q$.
#   Variance 0.


# %%
def elbo_gradients(x, s, mean, sigma, epsilon):
    """Gradient with respect to the mean of q, for each draw, by three estimates: [draws] each."""
    means = torch.full_like(epsilon, mean, requires_grad=True)
    z = means + sigma * epsilon
    log_px_z, log_pz = Normal(z, s).log_prob(x), Normal(0.0, 1.0).log_prob(z)
    elbos = {
        "closed": log_px_z - 0.5 * (sigma**2 + means**2 - 1 - math.log(sigma**2)),
        "sampled": log_px_z + log_pz - Normal(means, sigma).log_prob(z),
        "path only": log_px_z + log_pz - Normal(means.detach(), sigma).log_prob(z),
    }
    return {name: torch.autograd.grad(elbo.sum(), means, retain_graph=True)[0] for name, elbo in elbos.items()}


x, s = torch.tensor(1.3, dtype=torch.float64), 0.5
mean, sigma = x.item() / (1 + s**2), (s**2 / (1 + s**2)) ** 0.5
epsilon = noise(DRAWS).double()
z = 0.8 + 0.3 * epsilon
kl = Normal(0.8, 0.3).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
assert abs(kl.mean() - kl_divergence(Normal(0.8, 0.3), Normal(0.0, 1.0))) < 5 * kl.std() / DRAWS**0.5
assert abs(kl.var() / (0.8**2 * 0.3**2 + 0.5 * (0.3**2 - 1) ** 2) - 1) < 0.02
found = elbo_gradients(x, s, mean, sigma, epsilon)
assert abs(found["closed"].var() / (sigma**2 / s**4) - 1) < 0.02
assert abs(found["sampled"].var() / (1 / sigma**2) - 1) < 0.02
assert found["path only"].abs().max() < 1e-12
elsewhere = elbo_gradients(x, s, 0.2, 0.9, epsilon)  # not the posterior: the gradient is (x - μ)/s² - μ
for name, estimate in elsewhere.items():
    assert abs(estimate.mean() - ((x - 0.2) / s**2 - 0.2)) < 5 * estimate.std() / DRAWS**0.5, name
for name, key in (("closed", "closed"), ("sampled", "sampled")):
    quote(f"variance_{key}", found[name].var().item(), rel=0.01)


def sampled_loss(stop):
    mean, a = model.encoder(batch).chunk(2, dim=-1)
    sigma = log_variance_head(a)
    z = mean + sigma * torch.randn_like(mean)
    q = Normal(mean.detach(), sigma.detach()) if stop else Normal(mean, sigma)
    log_qz_x, log_pz = q.log_prob(z).sum(-1), Normal(0.0, 1.0).log_prob(z).sum(-1)
    return (distortion_of(model, z, batch) + log_qz_x - log_pz).mean()


torch.manual_seed(2)
for key, stop in (("sampled", False), ("path_only", True)):
    quote(f"times_{key}", gradients(lambda stop=stop: sampled_loss(stop)).var(0).sum().item() / total["path"], rel=0.2)

# %% [markdown]
# With $s = 0.5$, measured: {{variance_closed:.2f}} with the closed form, {{variance_sampled:.2f}} sampled (exactly 3.2
# and 5), and 0 for the path only. In the trained VAE above, the encoder's gradient has {{times_sampled:.2f}} times the
# variance of the closed form when the rate is sampled, and {{times_path_only:.2f}} times with the path only. A real
# posterior is not quite normal, so nothing is 0. The closed form is a good habit, and not the last word.
#
# ## Replayed noise
#
# With $\varepsilon$ from a generator with a known seed, the loss is an ordinary function. Then the path's gradient can be
# checked: move $\mu$ by a little $h$ to both sides *with the same noise*, and compare. What happens with fresh noise?

# %%
h, x, repeats = 1e-3, torch.tensor(1.3, dtype=torch.float64), 2000


def cost(mean, seed):
    """A distortion whose slope we know: one draw for each of `repeats` pictures."""
    return (mean + 0.5 * noise(repeats, seed=seed).double() - x) ** 2


exact_slope = 2 * (0.4 + 0.5 * noise(repeats, seed=1).double() - x)  # along the path of the same noise
replayed = (cost(0.4 + h, seed=1) - cost(0.4 - h, seed=1)) / (2 * h)
fresh = (cost(0.4 + h, seed=1) - cost(0.4 - h, seed=2)) / (2 * h)
assert (replayed - exact_slope).abs().max() < 1e-9
d, sigma = 0.4 - 1.3, 0.5
spread = ((4 * d**2 * sigma**2 + 2 * sigma**4) / (2 * h**2)) ** 0.5  # two costs with variance 4d²σ² + 2σ⁴ each
assert abs(fresh.std() / spread - 1) < 0.08
quote("replayed", exact_slope.std().item(), rel=0.02)
quote("fresh", fresh.std().item(), rel=0.05)
print(f"spread of the difference quotient: replayed {replayed.std():.2f}, fresh {fresh.std():.0f}")

# %% [markdown]
# With replayed noise, the difference quotient equals the slope to $10^{-9}$, draw by draw. It scatters by
# {{replayed:.2f}} from draw to draw. With fresh noise it scatters by {{fresh:.0f}}, and by ten times more with a tenth of
# $h$. The same holds whenever two losses are compared, of two models or two settings: use the same noise in both.
#
# ## Exercises
#
# **Exercise 1.** Estimate the gradient with respect to the *log-variance* by the score function. The noise is given.
#
# <details><summary>Hint</summary>
#
# $\log q(z) = -\tfrac12 \log\sigma^2 - \tfrac{(z-\mu)^2}{2\sigma^2} + \text{const}$. Differentiate with respect to
# $\log\sigma^2$ at fixed $z$, then put $z - \mu = \sigma\varepsilon$.
#
# </details>


# %% tags=["exercise"]
def score_estimate(f, epsilon):
    """Estimates of the gradient of E[f] with respect to log σ²: [draws]. f, epsilon: [draws]."""
    # begin solution
    return f * 0.5 * (epsilon**2 - 1)
    # end solution


# %% tags=["check"]
epsilon = noise(1_000_000).double()
for mean, sigma in ((0.0, 1.0), (1.0, 0.5)):
    found = score_estimate((mean + sigma * epsilon) ** 2, epsilon)
    error = abs(found.mean() - sigma**2)  # E[z²] = μ² + σ², and its derivative with respect to log σ² is σ²
    assert error < 5 * found.std() / 1000, f"the mean should be {sigma**2}, found {found.mean():.3f}"

# %% [markdown]
# **Exercise 2.** There are $K$ draws for each picture. Give each draw the mean of the *other* draws as its baseline, and
# average the estimates over the draws. (Why not the mean of all? It holds the draw itself, so it is not constant.)
#
# <details><summary>Hint</summary>
#
# The sum of the others is the sum of all, less the draw itself. There are $K - 1$ of them.
#
# </details>


# %% tags=["exercise"]
def leave_one_out(f, score):
    """One estimate per picture: [B]. f, score: [K, B]."""
    # begin solution
    others = (f.sum(0) - f) / (len(f) - 1)
    return ((f - others) * score).mean(0)
    # end solution


# %% tags=["check"]
for K in (2, 4):
    epsilon = noise(K, 400_000).double()
    f = (3 + epsilon) ** 2  # μ = 3, σ = 1: the gradient is 6
    found = leave_one_out(f, epsilon)
    assert found.shape == (400_000,), "one estimate per picture"
    assert abs(found.mean() - 6) < 5 * found.std() / 400_000**0.5, f"the mean should be 6, found {found.mean():.3f}"
    exact = 118 / K - 36 * (K - 2) / (K * (K - 1)) + 38 / (K * (K - 1))  # it is the sample covariance of f and ε
    assert abs(found.var() / exact - 1) < 0.05, f"with {K} draws the variance is {exact:.1f}, found {found.var():.1f}"

# %% [markdown]
# **Exercise 3.** Reparameterize another distribution. The logistic distribution with mean $\mu$ and scale $s$ has
# $P(z \le t) = 1/(1 + e^{-(t - \mu)/s})$. Turn uniform noise $u$ between 0 and 1 into draws.
#
# <details><summary>Hint</summary>
#
# Solve $u = P(z \le t)$ for $t$.
#
# </details>


# %% tags=["exercise"]
def draw_logistic(mean, scale, u):
    """A draw for each u, through which gradients flow to mean and scale."""
    # begin solution
    return mean + scale * (torch.log(u) - torch.log1p(-u))
    # end solution


# %% tags=["check"]
u = torch.rand(500_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
mean, scale = torch.tensor([1.0, 0.7], dtype=torch.float64, requires_grad=True).unbind()
z = draw_logistic(mean, scale, u)
for t in (-1.0, 1.0, 2.0):
    share, wanted = (z <= t).double().mean(), torch.sigmoid((t - mean) / scale)
    assert abs(share - wanted) < 0.004, f"P(z <= {t}) should be {wanted:.3f}, found {share:.3f}"
slopes = torch.autograd.grad((z**2).mean(), (mean, scale))  # E[z²] = μ² + s²π²/3
assert abs(slopes[0] - 2) < 0.02, "the gradient of E[z²] with respect to the mean should be 2μ"
assert abs(slopes[1] - 2 * 0.7 * math.pi**2 / 3) < 0.05, "the gradient with respect to the scale should be 2sπ²/3"

# %% [markdown]
# ## Summary
#
# - The **path** (reparameterization, `rsample`): $z = \mu + \sigma\varepsilon$, then the chain rule. It needs a cost with
#   a slope. The **score function** needs only the cost's value.
# - Both are right on average. With 20 latents and $d = \sigma = 1$, one draw of the path is worth {{needed_20:.0f}} of the
#   score function, or {{needed_best_20:.0f}} with the best baseline. In a trained VAE: {{times_score:.0f}} and
#   {{times_mean:.0f}}.
# - `sample()` cuts the gradient without a word: the rate falls below 0.01 nats.
# - With the **log-variance**, $\sigma$ is never negative, and the loss has curvature ½ at the best $\sigma$, however small.
# - The closed-form rate has no variance in its value. In the gradient, the path only can have less.
# - Compare losses with the *same* noise.
#
# Next: [chapter 4](04_what_is_the_likelihood.py) looks at the distortion.
#
# ## References
#
# 1. D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. Reparameterization: section
#    2.4 and equation (4); the score function's variance: section 2.2; sampled and closed-form rate: equations (6), (7).
# 2. D. J. Rezende, S. Mohamed and D. Wierstra (2014). *Stochastic Backpropagation and Approximate Inference in Deep
#    Generative Models.* arXiv:1401.4082. The gradient for the mean of a normal distribution: section 3.
# 3. R. J. Williams (1992). *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning.*
#    Machine Learning 8:229–256. REINFORCE with a baseline: theorem 1.
# 4. S. Mohamed, M. Rosca, M. Figurnov and A. Mnih (2020). *Monte Carlo Gradient Estimation in Machine Learning.*
#    arXiv:1906.10652. Score function: section 4; path: section 5; control variates: section 7; waves: section 3.
# 5. A. Mnih and D. J. Rezende (2016). *Variational Inference for Monte Carlo Objectives.* arXiv:1602.06725. Other draws
#    as a baseline: section 2.
# 6. G. Roeder, Y. Wu and D. Duvenaud (2017). *Sticking the Landing.* arXiv:1703.09194. The path only: algorithm 2.
# 7. E. Jang, S. Gu and B. Poole (2016). *Categorical Reparameterization with Gumbel-Softmax.* arXiv:1611.01144.
