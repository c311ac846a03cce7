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
# # 4. What is the likelihood?
#
# One pixel of handwritten digits, 1,437 times. Five decoders say how often each of its 17 gray levels comes. The five
# losses over the panels are what training would print. Which decoder is best? These numbers cannot tell: the smallest
# is not the best. Why not, and how to make them comparable, is this chapter.

# %% tags=["hide-input"] alt="Five panels. Each shows the same histogram of one pixel's 17 levels, highest at black, and a line. The lines of MSE, BCE and Gaussian miss it, that of the discretized logistic is near, that of the categorical is exact."
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal, kl_divergence

from vaelab.course import FAST, quote, quoted
from vaelab.likelihoods import DiscretizedLogistic

torch.set_num_threads(1)
torch.distributions.Distribution.set_default_validate_args(False)  # quicker
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008: safe for the color-blind
EPOCHS = 8 if FAST else 32
D, LATENTS, BATCH = 64, 8, 64
ALL = torch.arange(17)  # the levels that a pixel can have: 0 is black, 16 is white

digits = torch.tensor(load_digits().data).long()  # [1797, 64]
train_levels, test_levels = digits[torch.randperm(1797, generator=torch.Generator().manual_seed(0))].split([1437, 360])

pixel = train_levels[:, 46]  # row 5, column 6
x = pixel.double() / 16
mean, variance = x.mean(), x.var(correction=0)


def bins(sigma):
    """What N(mean, sigma²) gives to each level, if all below 0 counts as level 0, and all above 16 as level 16."""
    edges = Normal(mean, sigma).cdf((ALL[:-1].double() + 0.5) / 16)
    return torch.diff(edges, prepend=torch.zeros(1), append=torch.ones(1))


def logistic(parameters):
    location, log_scale = torch.tensor(parameters)
    return DiscretizedLogistic(location, log_scale.exp(), 17, 1).log_prob(ALL[:, None] / 16)


fit = minimize(lambda parameters: -logistic(parameters)[pixel].mean().item(), [0.5, -1], method="Nelder-Mead")
often = torch.bincount(pixel, minlength=17).double() / len(pixel)
panels = {
    "MSE": (bins(torch.tensor(0.5).sqrt()), F.mse_loss(mean.expand_as(x), x)),
    "BCE": (torch.softmax(torch.logit(mean) * ALL / 16, 0), F.binary_cross_entropy(mean.expand_as(x), x)),
    "Gaussian": (bins(variance.sqrt()), F.gaussian_nll_loss(mean.expand_as(x), x, variance.expand_as(x))),
    "discretized\nlogistic": (logistic(fit.x).exp(), fit.fun),
    "categorical": (often, F.cross_entropy(often.log().expand(len(pixel), -1), pixel)),
}
figure, axes = plt.subplots(1, 5, figsize=(8, 2.5), sharey=True, layout="constrained")
for axis, (name, (probability, loss)) in zip(axes, panels.items(), strict=True):
    axis.bar(ALL, often, color="0.8")
    axis.plot(ALL, probability, color=BLUE, marker="o", markersize=3)
    axis.set(title=f"{name}\nloss {loss:.3f}", xlabel="level", xticks=[0, 8, 16])
    quote("loss_" + name.split()[0].lower(), loss, rel=1e-3)
    assert abs(probability.sum() - 1) < 1e-5
assert panels["Gaussian"][1] < 0 < panels["MSE"][1] < panels["BCE"][1] < panels["categorical"][1] < fit.fun
axes[0].set_ylabel("probability")

# %% [markdown]
# *Figure 4.1. Gray: how often the pixel has each level. Blue: what each decoder says, if it may choose its parameters
# for this pixel. MSE is a bell curve of variance ½, and what a bell curve puts beyond an end counts for that end. BCE is
# made to add up to 1. Over it: the loss, averaged over the values. The chapter explains all five.*
#
# The categorical decoder fits exactly. Its loss, {{loss_categorical:.2f}}, is the second largest of the five. BCE has
# {{loss_bce:.2f}}, MSE {{loss_mse:.2f}}, the discretized logistic {{loss_discretized:.2f}}, and the Gaussian even
# {{loss_gaussian:.2f}}. Only the categorical and the logistic one are in the same unit.
#
# ## A likelihood is a distribution over what can be seen
#
# A decoder takes a code $z$ and returns numbers. The **likelihood** $p(x|z)$ is what these numbers say of the picture
# $x$. It is a probability distribution: over all that $x$ can be, it adds up to 1. That one rule makes two decoders
# comparable: whoever gives more to what happened has to give less to what did not.
#
# Our pictures have $D = 64$ pixels. Each pixel has a **level** $l \in \{0, 1, \dots, 16\}$, and $x = l/16$ is the same
# on a scale from 0 to 1. Given $z$, the pixels are independent. So $\log p(x|z)$ is a *sum* over pixels, and it is
# enough to look at one. There are two kinds of likelihood.
#
# - A **probability** over values that can be counted: $\sum_l p(l|z) = 1$. Each is at most 1, so $-\log p \ge 0$.
# - A **density** over values on a line: $\int p(x|z)\,dx = 1$. It can be above 1, so $-\log p$ can be negative.
#
# Below, we write each one out for one pixel, and check that sum or integral. To integrate, we add up the area over a
# fine grid (**quadrature**).


# %%
def integral(density, low, high, points=400_001):
    """Quadrature of a function of x."""
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    return torch.trapezoid(density(grid), grid)


def same(a, b):
    """Whether two tensors or numbers agree to 1e-5."""
    return ((torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs() < 1e-5).all()


# %% [markdown]
# ## Bernoulli: BCE unmasked
#
# For a pixel $x \in \{0, 1\}$, the decoder returns a logit $a$, and $\lambda = \mathrm{sigmoid}(a)$ is the probability
# of 1:
#
# $$\log p(x|z) = x \log \lambda + (1 - x) \log (1 - \lambda).$$
#
# Its negative is the **binary cross-entropy** (BCE). The probabilities of 0 and 1 add up to 1. But PyTorch also takes
# $x = 0.3$.


# %%
def bernoulli(x, logit):
    return x * F.logsigmoid(logit) + (1 - x) * F.logsigmoid(-logit)


logit = torch.tensor(-1.3, dtype=torch.float64)
assert same(bernoulli(torch.tensor([0.0, 1.0]), logit).exp().sum(), 1)

area = integral(lambda x: bernoulli(x, logit).exp(), 0, 1)
total = bernoulli(ALL / 16, logit).exp().sum()
quote("bce_area", area, rel=1e-6)
quote("bce_total", total, rel=1e-6)
assert area < 0.5 < 1 < total
print(f"at a = {logit:.1f}: sum over 0 and 1: 1.000, integral from 0 to 1: {area:.3f}, sum over 17 levels: {total:.3f}")

# %% [markdown]
# On gray values, BCE is neither kind of likelihood. At $a = -1.3$ its integral is {{bce_area:.2f}}, and its sum over
# 17 levels is {{bce_total:.2f}}. There are three ways out. Each is another model, with other numbers.
#
# **1. Divide by the integral.** With $C(\lambda)$ for 1 over the integral, $C(\lambda)\,\lambda^x(1-\lambda)^{1-x}$ is
# the density of the **continuous Bernoulli** distribution [1]. The constant has a closed form:
#
# $$C(\lambda) = \frac{2 \operatorname{artanh}(1 - 2\lambda)}{1 - 2\lambda}, \qquad C(\tfrac12) = 2.$$


# %%
def log_c(lam):
    return torch.log(2 * torch.atanh(1 - 2 * lam) / (1 - 2 * lam))


for lam in torch.tensor([0.001, 0.2, 0.499, 0.9], dtype=torch.float64):
    assert same(log_c(lam).exp() * integral(lambda x, lam=lam: bernoulli(x, lam.logit()).exp(), 0, 1), 1)

missing = log_c(torch.tensor([0.499, 0.01], dtype=torch.float64))
quote("missing_half", missing[0], rel=1e-4)
quote("missing_dark", missing[1], rel=1e-4)
print(f"log C: {missing[0]:.3f} nats at λ near 1/2, {missing[1]:.3f} nats at λ = 0.01")

# %% [markdown]
# The constant is not the same everywhere: {{missing_half:.2f}} nats a pixel near $\lambda = \frac12$ and
# {{missing_dark:.2f}} at $\lambda = 0.01$. So leaving it out changes more than the number: it changes which $\lambda$
# is best.
#
# **2. Divide by the sum over the levels.** Since $\lambda^x (1 - \lambda)^{1 - x}$ is $e^{a x}$ times something without
# $x$, this is a softmax of $a\,l/16$. We use it to score a VAE that was trained with BCE.
#
# **3. Say what was drawn.** A level of these digits is a *count*: how many of the $4 \times 4$ dots of a finer black
# and white scan are ink [2]. If each of the 16 dots is ink with probability $\lambda$, the level is binomial:
#
# $$\log p(l|z) = \log \binom{16}{l} + 16\,\big(x \log \lambda + (1 - x) \log(1 - \lambda)\big), \qquad x = l/16.$$
#
# That is BCE, counted 16 times, and a constant without $\lambda$. It sums to 1. So plain BCE on these gray levels
# weighs the picture 16 times less, against the rate, than this model does.


# %%
def softmax_bce(level, logit):
    return level / 16 * logit - torch.logsumexp(ALL / 16 * logit[..., None], -1)


def binomial(level, logit):
    log_ways = math.lgamma(17) - torch.lgamma(level + 1.0) - torch.lgamma(17.0 - level)
    return log_ways + 16 * bernoulli(level / 16, logit)


for likelihood in (softmax_bce, binomial):
    assert same(likelihood(ALL, logit).exp().sum(), 1)
assert same(binomial(ALL, logit), torch.distributions.Binomial(16, logits=logit).log_prob(ALL.double()))

# %% [markdown]
# ## Gaussian: MSE unmasked
#
# The decoder returns a mean $\mu$. With a standard deviation $\sigma$, the density of one pixel is
#
# $$\log p(x|z) = -\frac{(x - \mu)^2}{2\sigma^2} - \log \sigma - \frac12 \log 2\pi.$$


# %%
def gaussian(x, mean, sigma):
    return -((x - mean) ** 2) / (2 * sigma**2) - torch.log(sigma) - 0.5 * math.log(2 * math.pi)


sigma = torch.tensor(0.07, dtype=torch.float64)
assert same(integral(lambda x: gaussian(x, 0.4, sigma).exp(), -2, 3), 1)

# Squared errors differ as this density does, for one sigma only: 1/2 (sum) and D/2 (mean) as variance.
generator = torch.Generator().manual_seed(0)
x, one, other = torch.rand(3, D, generator=generator, dtype=torch.float64)
for reduction, variance in (("sum", 1 / 2), ("mean", D / 2)):
    sigma_hidden = torch.tensor(variance, dtype=torch.float64).sqrt()
    worse = F.mse_loss(one, x, reduction=reduction) - F.mse_loss(other, x, reduction=reduction)
    less_likely = gaussian(x, other, sigma_hidden).sum() - gaussian(x, one, sigma_hidden).sum()
    assert same(worse, less_likely)

# %% [markdown]
# A VAE's loss is distortion + rate ([chapter 0](00_a_broken_vae.py)): $-\log p(x|z)$ plus what the code costs,
# $\mathrm{KL}(q(z|x)\,\|\,p(z))$. With the squared error in place of the distortion, it is
#
# $$\sum_{d=1}^{D} (x_d - \mu_d)^2 + \text{rate} = \sum_{d=1}^{D} \frac{(x_d - \mu_d)^2}{2\sigma^2} + \text{rate},
# \quad\text{if}\quad \frac{1}{2\sigma^2} = 1, \text{ that is } \sigma^2 = \tfrac12.$$
#
# The constants of the density are left out; they move no minimum. For a *mean* over the pixels, $1/(2\sigma^2) = 1/D$, so
# $\sigma^2 = D/2$. Here that is $\sigma = \sqrt{32} = 5.7$, for pixels between 0 and 1. "MSE" is a Gaussian whose σ was
# chosen by whoever chose `reduction`.
#
# **What does σ do?** Predict: the same VAE with σ from 5.7 down to 0.01. What happens to the rate? There is an exact
# answer for *linear* networks ([chapter 5](05_the_linear_vae.py) derives it). Let $\lambda_1 \ge \lambda_2 \ge \dots$ be
# the variances of the data along their principal directions. Direction $i$ is worth a latent only if
# $\lambda_i > \sigma^2$, and then it costs $\frac12 \log(\lambda_i/\sigma^2)$ nats.


# %%
class VAE(nn.Module):
    """`outputs` numbers for each pixel; the encoder always sees x = level / 16."""

    def __init__(self, outputs):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 128), nn.ReLU(), nn.Linear(128, 2 * LATENTS))
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 128), nn.ReLU(), nn.Linear(128, outputs * D))

    def forward(self, levels):
        """One draw of z: the decoder's outputs, a tuple of [B, D], and the rate, [B]."""
        mean, log_variance = self.encoder(levels / 16).chunk(2, dim=-1)
        q = Normal(mean, torch.exp(0.5 * log_variance))
        rate = kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
        return self.decoder(q.rsample()).unflatten(-1, (-1, D)).unbind(-2), rate


def train(log_px_z, outputs=1, extra=()):
    """A VAE that maximizes log_px_z(levels, *outputs), [B, D], minus the rate."""
    torch.manual_seed(0)
    model = VAE(outputs)
    groups = [{"params": model.parameters()}, {"params": extra, "lr": 3e-2}]
    optimizer = torch.optim.Adam(groups[: 1 + bool(extra)], lr=3e-3, fused=True)
    for _ in range(EPOCHS):
        for levels in train_levels[torch.randperm(len(train_levels))].split(BATCH):
            decoded, rate = model(levels)
            loss = (rate - log_px_z(levels, *decoded).sum(-1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def evaluate(model, log_px_z, levels=test_levels, draws=5 if FAST else 20):
    """Rate and distortion of each picture, in nats: [B] and [B]. The distortion is averaged over draws of z."""
    torch.manual_seed(0)
    distortion = torch.zeros(len(levels))
    for _ in range(draws):
        decoded, rate = model(levels)
        distortion -= log_px_z(levels, *decoded).sum(-1) / draws
    return rate, distortion


def dequantize(levels):
    """A uniform draw from the bin of width 1 around each level, on the scale from 0 to 1. Why: see below."""
    return (levels + torch.rand(levels.shape) - 0.5) / 16


noise = 16 * dequantize(train_levels) - train_levels
assert noise.abs().max() <= 0.50001 and abs(noise.mean()) < 0.01 and abs(noise.var() - 1 / 12) < 0.001

sigmas = torch.tensor([32**0.5, 1.0, 0.5**0.5, 0.3, 0.1, 0.01])
fixed, rates = [], []
for s in sigmas:
    fixed.append(train(lambda levels, mean, s=s: gaussian(dequantize(levels), mean, s)))
    rates.append(evaluate(fixed[-1], lambda levels, mean: 0 * mean, draws=1)[0].mean().item())
rate_mean, rate_sum = rates[0], rates[2]
quote("rate_mean", rate_mean, abs=0.003)
quote("rate_sum", rate_sum, rel=0.2)
quote("rate_tenth", rates[4], rel=0.05)
quote("rate_hundredth", rates[5], rel=0.05)
assert rate_mean < 0.01 and rates == sorted(rates)

# %% tags=["hide-input"] alt="Rate against sigma on a logarithmic axis. Markers for the trained VAEs and a line for the linear VAE; both are zero to the right of 0.84 and rise to the left. Vertical lines mark the sigma of the summed and of the mean squared error."
variances = torch.linalg.eigvalsh(torch.cov((train_levels / 16).double().T)).flip(0)  # of each direction, largest first
wide = quote("widest", variances[0], rel=1e-4) ** 0.5
grid = torch.logspace(-2, 1, 200, dtype=torch.float64)
each = 0.5 * torch.log(variances[:LATENTS] / grid[:, None] ** 2).clamp(min=0)
linear = each.sum(-1)
# The best linear code of a direction has variance kept = σ²/λ around a mean of variance 1 - kept: its mean KL is that.
kept = (grid[:, None] ** 2 / variances[:LATENTS]).clamp(max=1)
assert same(each, kl_divergence(Normal((1 - kept).sqrt(), kept.sqrt()), Normal(0.0, 1.0)))
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
axis.plot(grid, linear, color=BLUE, label="linear VAE, 8 latents: formula")
axis.plot(sigmas, rates, "o", color=ORANGE, label="our VAE: measured")
for s, text in ((0.5**0.5, "sum of\nsquares"), (32**0.5, "mean of\nsquares")):
    axis.axvline(s, color="0.5", linestyle=":")
    axis.text(s * 0.95, 42, text, ha="right", va="top")
axis.set(
    xscale="log", xlabel="σ of the decoder (pixels go from 0 to 1)", ylabel="rate (nats per picture)", ylim=(-2, 43)
)
axis.legend(loc="lower left")

# %% [markdown]
# *Figure 4.2. The rate falls as σ grows. The line, for linear networks, is 0 from $\sigma = \sqrt{\lambda_1}$ on.*
#
# The largest variance is $\lambda_1 = {{widest:.2f}}$. With the mean of squares, $\sigma^2 = 32$ is far above it: the rate is
# {{rate_mean:.0e}} nats. The code says nothing (**posterior collapse**). With the sum, $\sigma^2 = 0.5$, it is {{rate_sum:.2f}} nats. With
# $\sigma = 0.1$ it is {{rate_tenth:.0f}}, with 0.01 {{rate_hundredth:.0f}}. So σ sets how much the code says. It does
# what β does in a β-VAE, whose rate is counted β times on purpose.
#
# **Which σ is right?** The one that makes the data most likely. Over $N$ pictures with mean squared error
# $\mathrm{MSE} = \frac{1}{ND}\sum (x - \mu)^2$, the derivative of the log-likelihood is 0 at [3]
#
# $$\frac{d}{d\sigma}\left(-\frac{\mathrm{MSE}}{2\sigma^2} - \log\sigma\right) = \frac{\mathrm{MSE}}{\sigma^3} - \frac1\sigma = 0
# \quad\Longrightarrow\quad \sigma_*^2 = \mathrm{MSE}.$$
#
# Put in, each pixel's loss is $\frac12\log\mathrm{MSE}$ plus $\frac12(\log 2\pi + 1)$. So the *logarithm* of the MSE,
# times $D/2$, is the distortion with the best σ, but for a constant. Or make $\log\sigma$ a parameter, and let Adam find it.


# %%
def optimal_gaussian(x, mean):
    mse = ((x - mean) ** 2).mean()
    return gaussian(x, mean, mse.sqrt())


best = optimal_gaussian(x, one).mean()
assert same(-best, 0.5 * torch.log(F.mse_loss(one, x)) + 0.5 * (math.log(2 * math.pi) + 1))
assert all(gaussian(x, one, F.mse_loss(one, x).sqrt() * off).mean() < best for off in (0.99, 1.01))

log_sigma = nn.Parameter((train_levels / 16).std().log())  # it starts at the spread of the data
learned = train(lambda levels, mean: gaussian(dequantize(levels), mean, log_sigma.exp()), extra=[log_sigma])
sigma_learned = log_sigma.exp().detach()
optimal = train(lambda levels, mean: optimal_gaussian(dequantize(levels), mean))
with torch.no_grad():
    torch.manual_seed(0)
    sigma_optimal = F.mse_loss(optimal(train_levels)[0][0], dequantize(train_levels)).sqrt()
quote("sigma_learned", sigma_learned, rel=0.05)
quote("sigma_optimal", sigma_optimal, rel=0.05)
assert abs(sigma_learned / sigma_optimal - 1) < 0.05
print(f"σ learned {sigma_learned:.4f}, optimal {sigma_optimal:.4f}")

# %% [markdown]
# They agree: {{sigma_learned:.3f}} learned, {{sigma_optimal:.3f}} in closed form.
#
# ## A density can be as large as you like
#
# "My loss is negative. Is that a bug?" Take the simplest model: each pixel has a mean and a σ of its own, without any
# $z$. Put the mean where it is in the data, and train σ by gradient, on levels as they are. Three of the 64 pixels are 0
# in every picture. Predict the loss.

# %% tags=["hide-input"] alt="Loss against steps. Trained on levels as they are, it falls below zero and keeps falling in a straight line. Trained with noise it becomes level."
assert (digits.amax(0) == 0).sum() == 3
STEPS = 400 if FAST else 1000
curves = {}
for name, noisy in (("levels as they are", False), ("with uniform noise", True)):
    torch.manual_seed(0)
    means, log_sigmas = (train_levels / 16).mean(0), torch.zeros(D, requires_grad=True)
    optimizer = torch.optim.Adam([log_sigmas], lr=0.02)
    curves[name] = []
    for _ in range(STEPS):
        x = dequantize(train_levels) if noisy else train_levels / 16
        loss = -gaussian(x, means, log_sigmas.exp()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves[name].append(loss.item())
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for (name, values), color, style in zip(curves.items(), (ORANGE, BLUE), ("-", "--"), strict=True):
    axis.plot(values, color=color, linestyle=style, label=name)
axis.axhline(0, color="0.5", linewidth=0.8)
axis.set(xlabel="step of Adam", ylabel="−log density\n(nats per picture)", ylim=(None, 60))
axis.legend()
raw, noisy = curves.values()
quote("raw_loss", raw[-1], rel=0.1)
assert raw[-1] < raw[STEPS // 2] - 5 < -30 and abs(noisy[-1] - noisy[STEPS // 2]) < 1

# %% [markdown]
# *Figure 4.3. Minus the log-density of pictures on the scale from 0 to 1. One line has no end.*
#
# The loss is {{raw_loss:.0f}} nats, and falls on. No bug: at its mean, a pixel's density is $1/(\sigma\sqrt{2\pi})$. On
# the three constant pixels σ can shrink for ever, and each tenfold gains $3 \log 10 = 6.9$ nats. The model has learned
# nothing by it. It has found that levels lie *at points*, and a density can be infinite at a point. A probability cannot.
#
# **Dequantization.** To make a density compete with a probability, spread each level over its bin: add noise $u$, uniform
# on $[-\frac12, \frac12)$. On the scale of levels a bin has width 1. The probability that the density gives to the
# bin is its integral, and the logarithm of an average is at least the average of the logarithm (Jensen's inequality) [4]:
#
# $$\log p(l|z) = \log \int_{-1/2}^{1/2} p(l + u|z)\,du \;\ge\; \int_{-1/2}^{1/2} \log p(l + u|z)\,du.$$
#
# So a log-density of *noisy* levels, on average, is a lower bound of a log-probability, and those end at 0.
#
# **Change of variables.** Our $x = l/16$ squeezes 16 units into 1, so the density is 16 times as high. To come back,
#
# $$\log p_{\text{levels}}(l) = \log p_{\text{scaled}}(l/16) - D \log 16.$$
#
# For 64 pixels that is 177.4 nats. For 256 levels and 784 pixels, the choice of scale alone is worth
# $784 \log 255 = 4{,}344$ nats. A log-density says nothing until its scale is told.


# %%
def log_bin(lower, upper):
    """log(Φ(upper) − Φ(lower)), in the lower tail, where nothing cancels. Φ(a): the share of N(0, 1) below a."""
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log1p(-torch.exp(torch.special.log_ndtr(lower) - log_upper))


def binned_gaussian(level, mean, sigma):
    """log p(level): the density integrated over the bin; the bins of 0 and 16 reach to infinity."""
    level, mean, sigma = level.double(), mean.double(), sigma.double()
    lower = torch.where(level > 0, ((level - 0.5) / 16 - mean) / sigma, -torch.inf)
    upper = torch.where(level < 16, ((level + 0.5) / 16 - mean) / sigma, torch.inf)
    return log_bin(lower, upper)


u = torch.linspace(-0.5, 0.5, 20_001, dtype=torch.float64)
mean, sigma = torch.tensor([0.93, 0.08], dtype=torch.float64)
density = gaussian((ALL[:, None] + u) / 16, mean, sigma) - math.log(16)  # change of variables, one pixel
bound = torch.trapezoid(density, u)  # the average of the logarithm
closed = torch.trapezoid(density.exp(), u).log()  # the logarithm of the average: a bin with two ends
open_ended = binned_gaussian(ALL, mean, sigma)
assert same(closed[1:-1], open_ended[1:-1])
assert (bound <= closed).all() and (closed <= open_ended + 1e-6).all()
assert same(open_ended.exp().sum(), 1)
quote("closed_sum", closed.exp().sum(), abs=1e-5)
assert same(gaussian(5, 16 * mean, 16 * sigma), gaussian(5 / 16, mean, sigma) - math.log(16))

# The optimal VAE, whose loss looks negative, on three scales.
_, scaled = evaluate(optimal, lambda levels, mean: gaussian(dequantize(levels), mean, sigma_optimal))
rate, binned = evaluate(optimal, lambda levels, mean: binned_gaussian(levels, mean, sigma_optimal))
quote("elbo_scaled", (rate + scaled).mean(), abs=4)
quote("elbo_noisy", (rate + scaled).mean() + D * math.log(16), abs=4)
quote("elbo_binned", (rate + binned).mean(), abs=4)
assert (rate + scaled).mean() < 0 < (rate + binned).mean() < (rate + scaled).mean() + D * math.log(16)

# %% [markdown]
# The same VAE, with the optimal σ, has a loss of {{elbo_scaled:.1f}} nats on the scale from 0 to 1, and of
# {{elbo_noisy:.1f}} on the scale of levels. Both are right; only the second may be compared with probabilities of
# levels. With the integral over the bins, the probability itself, it is {{elbo_binned:.1f}}. Much of the
# difference is waste: a density puts a part of its mass below 0 and above 16. With $\mu = 0.93$ and $\sigma = 0.08$, the 17 bins
# hold {{closed_sum:.2f}}. If the end bins reach to infinity, they hold 1. We score Gaussians so.
#
# ## Categorical and discretized logistic
#
# Why not begin with a probability? The **categorical** likelihood has a logit for each level, and a softmax:
#
# $$\log p(l|z) = a_l - \log \sum_{k=0}^{16} e^{a_k}.$$
#
# It can say anything, at 17 outputs a pixel (256 for a photograph). It does not know that level 7 lies next to 8.
#
# The **discretized logistic** [5, 6] cuts a bell curve into bins. The logistic distribution with location $\mu$ and scale $s$
# puts $F(x) = \mathrm{sigmoid}((x - \mu)/s)$ below $x$. With $h = \frac{1}{32}$, half the width of a bin,
#
# $$p(l|z) = F(x + h) - F(x - h), \quad F(x - h) = 0 \text{ for } l = 0, \quad F(x + h) = 1 \text{ for } l = 16.$$
#
# The two open ends are what lets it put much on 0 and 16. In single precision the difference of two sigmoids is 0 far
# from $\mu$, and its logarithm −∞. With $b$ and $a$ for the two arguments of the sigmoid, upper and lower, the difference
# equals $\mathrm{sigmoid}(b)\,\mathrm{sigmoid}(-a)\,(1 - e^{a-b})$: three factors that never cancel.


# %%
def categorical(level, *logits):
    a = torch.stack(logits, -1)  # [..., 17]
    return a.gather(-1, level[..., None]).squeeze(-1) - torch.logsumexp(a, -1)


def discretized_logistic(level, mean, log_scale):
    x, h, s = level / 16, 1 / 32, log_scale.exp()
    b, a = (x + h - mean) / s, (x - h - mean) / s
    inside = F.logsigmoid(b) + F.logsigmoid(-a) + torch.log(-torch.expm1(-2 * h / s))  # a - b = -2h/s
    return torch.where(level == 0, F.logsigmoid(b), torch.where(level == 16, F.logsigmoid(-a), inside))


def difference(level, mean, scale):
    """The same as a plain difference, with open ends."""
    edges = torch.sigmoid(((ALL[:-1] + 0.5) / 16 - mean) / scale)
    return torch.diff(edges, prepend=torch.zeros(1), append=torch.ones(1))[level]


some = torch.linspace(-3, 3, 17).double()
assert same(sum(categorical(level, *some).exp() for level in ALL), 1)
for mean, scale in ((0.5, 0.2), (0.97, 0.02), (1.3, 0.5)):
    mean, scale = torch.tensor(mean).double(), torch.tensor(scale).double()
    ours = discretized_logistic(ALL, mean, scale.log())
    assert same(ours.exp().sum(), 1) and same(ours.exp(), difference(ALL, mean, scale))
    assert same(ours, DiscretizedLogistic(mean, scale, 17, 1).log_prob(ALL[:, None].double() / 16))  # the library's

# %% [markdown]
# ## Eleven VAEs, one unit
#
# Now train the same network with each, and score all by one thing: $-\text{ELBO}$ for the *17 levels* of the 360
# held-out pictures. BCE is normalized by its softmax. Gaussians are scored by their bins. A Bernoulli VAE knows only whether
# a pixel is ink ($l > 8$). So it gets help: how often, in training, this pixel has level $l$ when it is ink or not,
#
# $$\log p(l|z) = \log p(\text{ink}|z) + \log p(l|\text{ink}).$$
#
# And one model has no $z$ at all: the **histogram** of each pixel. Its $\log p(x)$ is exact. A VAE that does not beat it
# has learned nothing about how pixels go together.


# %%
counts = torch.stack([(train_levels == level).sum(0) for level in ALL], -1) + 0.5  # 0.5: nothing is impossible
log_often = torch.log(counts / counts.sum(-1, keepdim=True)).double()  # [64, 17]


def of_level(table, levels):
    """The entries of a table [64, 17] for levels [B, 64]: [B, 64]."""
    return table.expand(len(levels), -1, -1).gather(-1, levels[..., None]).squeeze(-1)


sides = log_often[:, :9], log_often[:, 9:]  # l ≤ 8, and l > 8: ink
rest = torch.cat([side - side.logsumexp(-1, keepdim=True) for side in sides], -1).float()  # log p(level|ink)
in_bins = [lambda levels, mean, s=s: binned_gaussian(levels, mean, s) for s in sigmas]
trained = {  # name: the trained VAE, and log p(level|z), [B, 64]
    "Bernoulli": (
        train(lambda levels, logit: bernoulli((levels > 8).float(), logit)),
        lambda levels, logit: bernoulli((levels > 8).float(), logit) + of_level(rest, levels),
    ),
    "BCE": (train(lambda levels, logit: bernoulli(levels / 16, logit)), softmax_bce),
    "binomial": (train(binomial), binomial),
    "Gaussian, σ = 1": (fixed[1], in_bins[1]),
    "Gaussian, σ = 0.3": (fixed[3], in_bins[3]),
    "Gaussian, σ = 0.1": (fixed[4], in_bins[4]),
    "Gaussian, σ = 0.01": (fixed[5], in_bins[5]),
    "Gaussian, learned σ": (learned, lambda levels, mean: binned_gaussian(levels, mean, sigma_learned)),
    "Gaussian,\noptimal σ": (optimal, lambda levels, mean: binned_gaussian(levels, mean, sigma_optimal)),
    "discretized\nlogistic": (train(discretized_logistic, outputs=2), discretized_logistic),
    "categorical": (train(categorical, outputs=17), categorical),
}

histogram = -of_level(log_often, test_levels).sum(-1)
nats = {"histogram": (torch.zeros(360), histogram)}
for name, (model, log_px_z) in trained.items():
    decoded, _ = model(test_levels[:20])
    mass = sum(log_px_z(torch.full((20, D), level), *decoded).double().exp() for level in range(17))
    assert torch.allclose(mass, torch.ones(20, D).double(), atol=1e-4), name  # every one sums to 1, at every pixel
    nats[name] = evaluate(model, log_px_z)

keys = ["histogram", "bernoulli", "bce", "binomial", "one", "third", "tenth", "hundredth"]
keys += ["learned", "optimal", "dl", "cat"]
elbo = {}
for key, (rate, distortion) in zip(keys, nats.values(), strict=True):
    elbo[key] = -(rate + distortion)
    if key != "histogram":
        quote(f"t_rate_{key}", rate.mean(), abs=0.01 + 0.06 * rate.mean().item())
    quote(f"t_{key}", -elbo[key].mean(), rel={"histogram": 1e-4, "hundredth": 0.1}.get(key, 0.02))
    quote(f"t_se_{key}", elbo[key].std() / 360**0.5, rel=0.15)
    quote(f"t_bits_{key}", -elbo[key].mean() / (D * math.log(2)), rel=0.1 if key == "hundredth" else 0.02)
    print(f"{key:10} rate {rate.mean():6.2f}  -ELBO {-elbo[key].mean():7.2f} ± {elbo[key].std() / 360**0.5:.2f}")
gain = elbo["dl"] - elbo["cat"]
quote("gain", gain.mean(), abs=1.5)
quote("gain_se", gain.std() / 360**0.5, rel=0.2)
quote("black", (train_levels == 0).float().mean(), abs=1e-6)
by_density = {}
for i in (1, 3, 4, 5):
    rate, scaled = evaluate(fixed[i], lambda levels, mean, s=sigmas[i]: gaussian(dequantize(levels), mean, s))
    by_density[i] = (rate + scaled).mean().item() + D * math.log(16)
quote("density_third", by_density[3], abs=4)
quote("density_tenth", by_density[4], abs=4)

quote("binomial_gain", (elbo["binomial"] - elbo["bce"]).mean(), abs=3)
better = [key for key in keys[1:] if elbo[key].mean() > elbo["histogram"].mean()]
sharp = 1 / 32 / Normal(0.0, 1.0).icdf(torch.tensor(0.99))  # half a bin is 2.33 standard deviations
assert same(binned_gaussian(torch.tensor(0), torch.tensor(0.0), sharp).exp(), 0.99)
quote("sharp", sharp, rel=1e-4)
quote("winners", len(better), abs=0.1)
assert better == ["bernoulli", "dl", "cat"] and gain.mean() > 3 * gain.std() / 360**0.5
assert elbo["bce"].mean() < elbo["optimal"].mean() < elbo["third"].mean()
assert quoted["elbo_noisy"].value < min(by_density.values())

# %% [markdown]
# | $p(x\mid z)$ | Rate | −ELBO | ± | Bits per pixel |
# |---|---|---|---|---|
# | histogram of each pixel, exact | 0 | {{t_histogram:.1f}} | {{t_se_histogram:.1f}} | {{t_bits_histogram:.2f}} |
# | Bernoulli, and the rest by histogram | {{t_rate_bernoulli:.1f}} | {{t_bernoulli:.1f}} | {{t_se_bernoulli:.1f}} | {{t_bits_bernoulli:.2f}} |
# | BCE on gray levels, normalized | {{t_rate_bce:.1f}} | {{t_bce:.1f}} | {{t_se_bce:.1f}} | {{t_bits_bce:.2f}} |
# | binomial: BCE 16 times | {{t_rate_binomial:.1f}} | {{t_binomial:.1f}} | {{t_se_binomial:.1f}} | {{t_bits_binomial:.2f}} |
# | Gaussian, σ = 1 | {{t_rate_one:.1f}} | {{t_one:.1f}} | {{t_se_one:.1f}} | {{t_bits_one:.2f}} |
# | Gaussian, σ = 0.3 | {{t_rate_third:.1f}} | {{t_third:.1f}} | {{t_se_third:.1f}} | {{t_bits_third:.2f}} |
# | Gaussian, σ = 0.1 | {{t_rate_tenth:.1f}} | {{t_tenth:.1f}} | {{t_se_tenth:.1f}} | {{t_bits_tenth:.2f}} |
# | Gaussian, σ = 0.01 | {{t_rate_hundredth:.1f}} | {{t_hundredth:.0f}} | {{t_se_hundredth:.0f}} | {{t_bits_hundredth:.1f}} |
# | Gaussian, learned σ | {{t_rate_learned:.1f}} | {{t_learned:.1f}} | {{t_se_learned:.1f}} | {{t_bits_learned:.2f}} |
# | Gaussian, optimal σ | {{t_rate_optimal:.1f}} | {{t_optimal:.1f}} | {{t_se_optimal:.1f}} | {{t_bits_optimal:.2f}} |
# | discretized logistic | {{t_rate_dl:.1f}} | {{t_dl:.1f}} | {{t_se_dl:.1f}} | {{t_bits_dl:.2f}} |
# | categorical | {{t_rate_cat:.1f}} | {{t_cat:.1f}} | {{t_se_cat:.1f}} | {{t_bits_cat:.2f}} |
#
# *Table 4.1. Nats per held-out picture, one training each; smaller is better. ±: standard error over 360 pictures. Bits per
# pixel ("bits per dimension"): −ELBO divided by 64 log 2.*
#
# Of the 11 VAEs, {{winners:.0f}} beat the histogram. Most of the others have a rate above $\log 10 = 2.3$ nats, enough
# to say which digit it is, and still lose. The reason: {{black:.0%}} of the pixels are black, and three of the 64 always.
# To give a black pixel 0.99, a Gaussian centered on 0 needs σ below {{sharp:.4f}}. But with $\sigma = 0.01$ a picture
# costs {{t_hundredth:.0f}} nats, because gray pixels are never met so closely. The discretized logistic can choose another
# scale for each pixel, and send the location beyond the end. It beats the categorical by {{gain:.1f}} ± {{gain_se:.1f}}
# nats (paired over the pictures), with 2 outputs a pixel in place of 17.
#
# The optimal σ is best by its own measure, the noisy density: {{elbo_noisy:.0f}} nats, against
# {{density_tenth:.0f}} for $\sigma = 0.1$ and {{density_third:.0f}} for 0.3. By open bins, 0.3 is better than it
# ({{t_third:.1f}} to {{t_optimal:.1f}}), because open ends forgive what a wide bell spills. "Optimal" always means: for
# that likelihood.
#
# BCE on gray levels, once normalized, is among the worst. Counted 16 times, the same formula gains
# {{binomial_gain:.0f}} nats, and its rate rises from {{t_rate_bce:.1f}} to {{t_rate_binomial:.1f}}.
#
# ## Draw from the decoder, or show its mean?
#
# $p(x|z)$ is a distribution, so a picture from the model is a *draw* from it. Many papers show its *mean*, $E[x|z]$.


# %% tags=["hide-input"] alt="Five rows, one for each decoder. On the left five means, smooth. On the right five draws: those of BCE are noise, those of the Gaussian grainy, those of the discretized logistic and the categorical look like digits with some grain."
@torch.no_grad()
def means_and_draws(name, levels):
    """E[x|z] and a draw from p(x|z), [B, 64] each, for one z of each picture."""
    torch.manual_seed(0)
    model, log_px_z = trained[name]
    decoded, _ = model(levels)
    p = torch.stack([log_px_z(torch.full_like(levels, level), *decoded) for level in range(17)], -1).exp().float()
    return p @ (ALL / 16), torch.multinomial(p.flatten(0, 1), 1).view_as(levels) / 16


names = ["Bernoulli", "BCE", "Gaussian,\noptimal σ", "discretized\nlogistic", "categorical"]
figure, axes = plt.subplots(6, 11, figsize=(8, 4.8), width_ratios=[1] * 5 + [0.3] + [1] * 5, layout="constrained")
for row, name in zip(axes, ["digits", *names], strict=True):
    for axis in row:
        axis.set(xticks=[], yticks=[], frame_on=False)
    halves = means_and_draws(name, test_levels[:5]) if name in trained else [test_levels[:5] / 16]
    for first, images in zip((0, 6), halves, strict=False):
        for axis, image in zip(row[first : first + 5], images, strict=True):
            axis.imshow(image.view(8, 8), cmap="gray", vmin=0, vmax=1)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
axes[1, 2].set_title("mean")
axes[1, 8].set_title("draw")

of_mean, of_draw = (F.mse_loss(made, test_levels / 16) for made in means_and_draws(names[3], test_levels))
quote("draw_error", of_draw / of_mean, rel=0.05)
assert abs(of_draw / of_mean - 2) < 0.2

# %% [markdown]
# *Figure 4.4. Left: the mean of $p(x|z)$. Right: one draw, with the same $z$. Top: the digits that were encoded.*
#
# If the decoder knows its own error, that is $E(x - \mu)^2 = \sigma^2$, then a draw is twice as far from the picture
# as the mean is, in squared error: once for what the mean misses, once for the noise. Measured
# with the discretized logistic: {{draw_error:.2f}} times. So the mean looks better, but
# it is not what the model says a picture is. The grain of a draw is the noise that the code does not explain, and it is
# independent from pixel to pixel. To judge a likelihood, show draws. If you show the mean, say so.
#
# ## What happens if the edge is found by a threshold?
#
# Code for the discretized logistic often finds the last level by `x > 0.99`, on a scale from −1 to 1 with 256 levels.
# But level 254 lies at 0.992. It is taken for the end as well, and gets the open bin. Here is the same mistake with 17
# levels: $15/16 = 0.94$.


# %%
def wrong_edge(level, mean, log_scale):
    upper_tail = F.logsigmoid(-(level / 16 - 1 / 32 - mean) / log_scale.exp())
    return torch.where(level / 16 > 0.9, upper_tail, discretized_logistic(level, mean, log_scale))


model, _ = trained["discretized\nlogistic"]
with torch.no_grad():
    torch.manual_seed(0)
    decoded, _ = model(test_levels)
    mass = sum(wrong_edge(torch.full_like(test_levels, level), *decoded).exp() for level in range(17))
    top = discretized_logistic(torch.full_like(test_levels, 16), *decoded).exp()
assert same(mass, 1 + top)  # level 16 is counted twice
bright = mass[test_levels == 16].mean()
false_gain = nats["discretized\nlogistic"][1] - evaluate(model, wrong_edge)[1]
quote("bright_mass", bright, abs=0.06)
quote("false_gain", false_gain.mean(), rel=0.1)
assert bright > 1.3 and false_gain.mean() > 1
print(f"mass on white pixels {bright:.2f}; the loss falls by {false_gain.mean():.2f} nats")

# %% [markdown]
# On white pixels the "probabilities" add up to {{bright_mass:.2f}} on average. And the loss *improves*, by {{false_gain:.1f}} nats per
# picture, with nothing learned. The sum over levels finds this in one line. A loss never does.
#
# ## Exercises
#
# **Exercise 1.** Mean *absolute* error is a likelihood in disguise too: the Laplace density
# $p(x) = \frac{1}{2b} e^{-|x - m|/b}$. Find the best $b$ for all pixels together, and return the mean over the pixels of
# $-\log p(x)$ with it.
#
# <details><summary>Hint</summary>
#
# Set the derivative of $\log 2b + \mathrm{MAE}/b$ to 0. MAE is the mean of $|x - m|$.
#
# </details>


# %% tags=["exercise"]
def laplace_loss(x, m):
    """Nats per pixel with the best scale: a scalar."""
    # begin solution
    b = (x - m).abs().mean()
    return torch.log(2 * b) + 1
    # end solution


# %% tags=["check"]
x, m = torch.rand(2, 500, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
scales = torch.linspace(0.05, 2, 20_001, dtype=torch.float64)
losses = -torch.distributions.Laplace(m, scales[:, None]).log_prob(x).mean(-1)
assert abs(laplace_loss(x, m) - losses.min()) < 1e-6, "not what a search over 20,001 scales finds"
assert abs(laplace_loss(9 * x, 9 * m) - losses.min() - math.log(9)) < 1e-6, "9 times as wide should cost log 9 more"

# %% [markdown]
# **Exercise 2.** A decoder was trained with the continuous Bernoulli. What picture should be shown as its mean? Not $\lambda$.
# Write $E[x]$ for $\lambda \ne \frac12$.
#
# <details><summary>Hint</summary>
#
# With $a = \log\frac{\lambda}{1-\lambda}$ the density is proportional to $e^{ax}$ on $[0, 1]$. The integral of it is
# $Z = (e^a - 1)/a$, and the mean is $d \log Z / da$.
#
# </details>


# %% tags=["exercise"]
def continuous_bernoulli_mean(lam):
    """E[x], of the shape of lam."""
    # begin solution
    a = torch.logit(lam)
    return torch.sigmoid(a) / (2 * torch.sigmoid(a) - 1) - 1 / a
    # end solution


# %% tags=["check"]
for lam in torch.tensor([0.01, 0.3, 0.75, 0.98], dtype=torch.float64):
    by_hand = integral(lambda x, lam=lam: x * torch.exp(log_c(lam) + bernoulli(x, lam.logit())), 0, 1)
    assert abs(continuous_bernoulli_mean(lam) - by_hand) < 1e-6, f"at λ = {lam:.2f} the mean is {by_hand:.4f}"

# %% [markdown]
# **Exercise 3.** A paper reports a loss in nats per picture: $-\log$ density of $x = (l + u)/L$, with $u$ uniform on
# $[0, 1)$ and $L$ levels. Turn it into bits per pixel (an upper bound of what the levels cost).
#
# <details><summary>Hint</summary>
#
# First go back to the scale of levels. Then share among the pixels, and divide by $\log 2$.
#
# </details>


# %% tags=["exercise"]
def bits_per_pixel(loss, pixels, levels):
    """Bits per pixel of `levels` levels, from nats per picture on the scale from 0 to 1."""
    # begin solution
    return (loss / pixels + math.log(levels)) / math.log(2)
    # end solution


# %% tags=["check"]
for pixels, levels in ((784, 256), (64, 16)):
    flat = bits_per_pixel(0.0, pixels, levels)  # density 1 everywhere: every level is as likely
    assert abs(flat - math.log2(levels)) < 1e-9, f"{levels} equally likely levels take {math.log2(levels):.0f} bits"
    half = bits_per_pixel(-pixels * math.log(2), pixels, levels)  # density 2 on the darker half, where all pixels are
    assert abs(half - (math.log2(levels) - 1)) < 1e-9, "half the levels, equally likely, take one bit less"

# %% [markdown]
# ## Summary
#
# - A likelihood adds up to 1 over all that can be seen. Check it: a sum or an integral is one line.
# - MSE is a Gaussian with $\sigma^2 = \frac12$ (sum) or $D/2$ (mean); the latter gave a rate of {{rate_mean:.0e}} nats.
# - The best σ² is the MSE. Learn it ({{sigma_learned:.3f}}) or compute it ({{sigma_optimal:.3f}}).
# - BCE is a likelihood of 0 and 1. On gray values a constant is missing that depends on λ.
# - A log-density can be positive, and has no limit on levels. Add uniform noise, and it is a bound of a log-probability.
# - Scaling $x$ by $1/16$ moves a log-density by $D \log 16$ nats. Tell the scale, or use probabilities.
# - For levels, use a likelihood of levels: discretized logistic {{t_dl:.1f}} nats, categorical {{t_cat:.1f}}, histogram {{t_histogram:.1f}},
#   Gaussian {{t_optimal:.1f}}.
#
# Next: [chapter 5](05_the_linear_vae.py), where everything has an exact answer.
#
# ## References
#
# 1. G. Loaiza-Ganem and J. P. Cunningham (2019). *The continuous Bernoulli: fixing a pervasive error in variational
#    autoencoders.* arXiv:1907.06845. Section 3: the density, its constant, and the mean of exercise 2.
# 2. E. Alpaydin and C. Kaynak (1998). *Optical Recognition of Handwritten Digits.* UCI Machine Learning Repository. How
#    the levels were counted. scikit-learn's `load_digits` is its test part.
# 3. O. Rybkin, K. Daniilidis and S. Levine (2021). *Simple and Effective VAE Training with Calibrated Decoders.* ICML
#    2021, arXiv:2006.13202. The correspondence of σ and β, and the optimal σ in closed form (σ-VAE).
# 4. L. Theis, A. van den Oord and M. Bethge (2016). *A note on the evaluation of generative models.* ICLR 2016,
#    arXiv:1511.01844. Section 3.1: noisy densities as a bound, by Jensen's inequality.
# 5. D. P. Kingma et al. (2016). *Improving Variational Inference with Inverse Autoregressive Flow.* arXiv:1606.04934. The
#    discretized logistic, in the experiments on CIFAR-10.
# 6. T. Salimans, A. Karpathy, X. Chen and D. P. Kingma (2017). *PixelCNN++.* ICLR 2017, arXiv:1701.05517. Section 2.1,
#    equation (2): the open ends.
