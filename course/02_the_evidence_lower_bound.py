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
# # 2. The evidence lower bound
#
# How probable does a VAE think a picture is? That number, $\log p(x)$, is out of reach for most VAEs, so they are
# trained on a bound below it. With a code of only two numbers it is *not* out of reach. Then the bound, the gap above
# it, and what the encoder gets wrong can all be computed to many digits, and seen.

# %% tags=["hide-input"] alt="Six digits, and below each a map of its exact posterior with two ellipses of q. In the first the ellipses lie on the dark spot; in the last the spot lies outside of them."
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from vaelab.course import FAST, quote

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # sixteen digits: we shall compare numbers to many digits
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
EPOCHS = 25 if FAST else 80
levels, _ = load_digits(return_X_y=True)
pictures = (torch.tensor(levels) > 8).double()  # [1797, 64]: each pixel is 1 (ink) or 0
train_x, test_x = pictures[torch.randperm(1797, generator=torch.Generator().manual_seed(0))].split([1437, 360])


def kl_to_prior(mean, log_variance):
    """The rate, as in chapter 0: [B, 2] -> [B]."""
    return 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(-1)


torch.manual_seed(0)
encoder = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 4))
decoder = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64))
parameters = [*encoder.parameters(), *decoder.parameters()]
optimizer = torch.optim.Adam(parameters)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=EPOCHS * 23)
for _ in range(EPOCHS):  # the mended loss of chapter 0
    for batch in train_x[torch.randperm(len(train_x))].split(64):
        mean, log_variance = encoder(batch).chunk(2, dim=-1)
        logits = decoder(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean))
        distortion = F.binary_cross_entropy_with_logits(logits, batch, reduction="none").sum(-1)
        optimizer.zero_grad()
        (distortion + kl_to_prior(mean, log_variance)).mean().backward()
        optimizer.step()
        schedule.step()
for parameter in parameters:
    parameter.requires_grad_(False)

x = test_x[: 40 if FAST else 100]  # held-out pictures, the same ones to the end of the chapter
mean, log_variance = encoder(x).chunk(2, dim=-1)  # q(z|x) of each: [B, 2] and [B, 2]


def grid(half, step):
    """The points of a square grid over [-half, half]²: [G, 2]."""
    ticks = step * torch.arange(-round(half / step), round(half / step) + 1)
    return torch.cartesian_prod(ticks, ticks)


def log_normal(value, mean, log_variance):
    """Log-density of independent normal distributions, summed over the last axis."""
    return -0.5 * ((value - mean) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi)).sum(-1)


def log_pz(z):
    """The prior of the code, standard normal."""
    return log_normal(z, torch.zeros(()), torch.zeros(()))


def digits_log_px_z(z, x):
    """log p(x|z) of the trained decoder. Points z for all pictures [G, 2], or for each its own [B, G, 2] -> [B, G]."""
    logits = decoder(z)
    ink = torch.einsum("gp,bp->bg" if z.ndim == 2 else "bgp,bp->bg", logits, x)
    return ink - F.softplus(logits).sum(-1)


z = grid(6, 0.04)
log_pxz = digits_log_px_z(z, x) + log_pz(z)  # [B, G]
log_posterior = log_pxz - log_pxz.logsumexp(-1, keepdim=True) - math.log(0.04**2)
misfit = (log_normal(z, mean[:, None], log_variance[:, None]).exp() * -log_posterior).sum(-1) * 0.04**2
gap_drawn = misfit - 0.5 * log_variance.sum(-1) - math.log(2 * math.pi) - 1
shown = gap_drawn.argsort()[torch.linspace(0, len(x) - 1, 6).long()].tolist()  # from the best q to the worst

figure, axes = plt.subplots(2, 6, figsize=(8, 3.1), layout="constrained")
turn = torch.linspace(0, 2 * math.pi, 100)
for b, (above, below) in zip(shown, axes.T, strict=True):
    above.imshow(x[b].view(8, 8), cmap="gray", vmin=0, vmax=1)
    above.set(xticks=[], yticks=[], title=f"gap {gap_drawn[b]:.2f}")
    seen = log_posterior[b].view(301, 301).exp()
    below.imshow(seen.T, origin="lower", extent=[-6.02, 6.02] * 2, cmap="Greys")
    for deviations, style in ((1, "-"), (2, "--")):
        around = torch.stack([turn.cos(), turn.sin()], -1) * deviations * torch.exp(0.5 * log_variance[b]) + mean[b]
        below.plot(*around.T, style, color=ORANGE, lw=1.5)
    peak = z[log_posterior[b].argmax()]
    middle = (mean[b] + peak) / 2
    reach = (mean[b] - peak).abs().max() / 2 + 4 * torch.exp(0.5 * log_variance[b]).max()
    below.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach), xlabel="$z_1$")
    below.tick_params(labelsize=7)
    below.locator_params(nbins=3)
_ = axes[1, 0].set_ylabel("$z_2$")

# %% [markdown]
# *Figure 2.1. Six held-out digits. Gray: which codes $z$ can have made the digit, $p(z|x)$, exact (darker is likelier).
# Orange: what the encoder says, the ellipse of $q(z|x)$ at 1 (solid) and 2 (dashed) standard deviations. From left to
# right the encoder is less and less right: the gap (in nats) grows. Each map has a scale of its own.*
#
# ## The number that we want
#
# A VAE tells how a picture $x$ comes about. A code $z$ is drawn from the prior $p(z)$, the standard normal distribution.
# Then the decoder gives each pixel its probability of ink, and the pixels are drawn: $p(x|z)$. So each $z$ can make the
# picture, some more easily than others. The probability of the picture counts them all:
#
# $$p(x) = \int p(x|z)\,p(z)\,dz.$$
#
# Its logarithm is the **evidence**. Seen from the other side, once $x$ is given, some codes are likelier than others to
# have made it. This is the exact **posterior**, by Bayes' rule:
#
# $$p(z|x) = \frac{p(x|z)\,p(z)}{p(x)}.$$
#
# The integral is a sum over small squares: lay a grid of points over the plane, and add up $p(x|z)\,p(z)$ times the
# area of a square. This is called **quadrature**. A grid of 301 × 301 points means 90,601
# codes to decode. With codes of eight numbers it would be 301⁸, almost 10²⁰. This is why larger VAEs need a bound.


# %%
def log_evidence(log_px_z, x, half=6.0, step=0.04):
    """log p(x) of each picture by a sum over a grid, in nats: [B]."""
    z = grid(half, step)
    log_pxz = log_px_z(z, x) + log_pz(z)  # log p(x, z): [B, G]
    return log_pxz.logsumexp(-1) + math.log(step**2)


# %% [markdown]
# Is the sum right? We need a model whose $\log p(x)$ is known without any grid. Take a decoder that is a matrix:
# $x = Wz + \text{noise}$, where the noise in each of three pixels is normal with variance $v = 1/4$. Then $x$ is normal,
# and so is the posterior. With $I$ the identity matrix,
#
# $$p(x) = N(x;\, 0,\, WW^\top + vI), \qquad
# p(z|x) = N\big(z;\, \Lambda^{-1} W^\top x / v,\, \Lambda^{-1}\big), \qquad \Lambda = I + W^\top W / v.$$
#
# $\Lambda$ is the posterior's **precision**, the inverse of its covariance. We call this model the *toy*.

# %%
v = 0.25
W = torch.tensor([[2.0, -2.0], [2.0, 1.0], [1.0, 2.0]]) / 3 @ torch.tensor([1.5, 0.5]).diag()  # columns at right angles


def toy_log_px_z(z, x, W=W):
    """The same shapes as for the digits; three pixels."""
    return log_normal(x[:, None], z @ W.T, torch.full((3,), v).log())


toy_noise = torch.Generator().manual_seed(0)  # twenty pictures, drawn from the toy itself
toy_x = torch.randn(20, 2, generator=toy_noise) @ W.T + v**0.5 * torch.randn(20, 3, generator=toy_noise)
toy_log_px = torch.distributions.MultivariateNormal(torch.zeros(3), W @ W.T + v * torch.eye(3)).log_prob(toy_x)
assert torch.allclose(log_evidence(toy_log_px_z, toy_x), toy_log_px, rtol=0, atol=1e-9)
precision = torch.eye(2) + W.T @ W / v  # diagonal, so that each latent of the posterior has a variance of its own
assert torch.allclose(precision, torch.diag(torch.tensor([10.0, 2.0])))
exact_mean, exact_log_variance = toy_x @ W / v @ precision.inverse(), -precision.diagonal().log().expand(20, 2)

some = torch.distributions.Bernoulli(logits=decoder(z[:9]))  # the likelihood of the digits, as PyTorch has it
assert torch.allclose(digits_log_px_z(z[:9], x), some.log_prob(x[:, None]).sum(-1))
log_px = log_evidence(digits_log_px_z, x)
finer = (log_evidence(digits_log_px_z, x, step=0.03) - log_px).abs().max().item()
assert finer < 1e-6
quote("log_px", log_px.mean().item(), abs=0.1)
quote("finer", finer, abs=1e-7)
print(f"log p(x) {log_px.mean():.4f} nats, mean of {len(x)} pictures; a finer grid changes at most {finer:.0e}")

# %% [markdown]
# On the toy, sum and formula agree to nine decimals. On the digits there is no formula. But a finer grid changes no
# picture by more than {{finer:.0e}} nats, so we may call it exact. The mean of $\log p(x)$ is {{log_px:.2f}} nats per
# held-out picture.
#
# ## First derivation: Jensen's inequality
#
# Now suppose we had no grid. Take any distribution $q(z|x)$ over codes, and write the integral as an average over it:
#
# $$p(x) = \int q(z|x)\,\frac{p(x|z)\,p(z)}{q(z|x)}\,dz = \mathbb E_{q}[w], \qquad w = \frac{p(x|z)\,p(z)}{q(z|x)}.$$
#
# $\mathbb E_q$ is the mean over draws of $z$ from $q(z|x)$. The number $w$ is called an **importance weight**. The
# logarithm is a curve that bends downward, so the logarithm of a mean is never below the mean of the logarithms.
# This is **Jensen's inequality**. It gives the **evidence lower bound**, or ELBO:
#
# $$\log p(x) = \log \mathbb E_q[w] \;\ge\; \mathbb E_q[\log w] = \mathrm{ELBO}.$$
#
# A mean over $q$ is a sum over a grid too. The grid follows $q$: $z = \text{mean} + \sigma\varepsilon$, with points
# $\varepsilon$ that weigh as much as the standard normal distribution says.


# %%
def nodes(mean, log_variance, half=7.0, step=1 / 3):
    """Points that stand for q(z|x), and how much each counts: [B, G, 2] and [G]."""
    epsilon = grid(half, step)
    share = log_pz(epsilon).exp() * step**2  # they add up to 1
    return mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * epsilon, share


def log_weight(log_px_z, z, x, mean, log_variance):
    """log w at points of each picture: z [B, G, 2] -> [B, G]."""
    log_qz_x = log_normal(z, mean[:, None], log_variance[:, None])
    return log_px_z(z, x) + log_pz(z) - log_qz_x


def lower_bound(log_px_z, x, mean, log_variance, **how):
    """The ELBO of each picture, E_q[log w], in nats: [B]."""
    z, share = nodes(mean, log_variance, **how)
    return (share * log_weight(log_px_z, z, x, mean, log_variance)).sum(-1)


# Both sides on the toy, with a q that is a bit off: log E_q[w] is log p(x), E_q[log w] is below.
off_mean, off_log_variance = exact_mean + 0.2, torch.full((20, 2), 0.4).log()
off_z, share = nodes(off_mean, off_log_variance)
log_mean = (log_weight(toy_log_px_z, off_z, toy_x, off_mean, off_log_variance) + share.log()).logsumexp(-1)
assert torch.allclose(log_mean, toy_log_px, rtol=0, atol=1e-6)
assert (lower_bound(toy_log_px_z, toy_x, off_mean, off_log_variance) < toy_log_px).all()

elbo = lower_bound(digits_log_px_z, x, mean, log_variance)
assert (elbo < log_px).all()
quote("elbo", elbo.mean().item(), abs=0.1)
quote("gap", (log_px - elbo).mean().item(), rel=0.05)
quote("gap_least", (log_px - elbo).min().item(), rel=0.2)
quote("gap_most", (log_px - elbo).max().item(), rel=0.1)
print(f"log p(x) {log_px.mean():.3f}, ELBO {elbo.mean():.3f} nats")

# %% [markdown]
# The ELBO of the digits is {{elbo:.2f}} nats, {{gap:.2f}} below $\log p(x)$. For no picture is it above. The gap differs
# from picture to picture, from {{gap_least:.3f}} to {{gap_most:.1f}} nats. Jensen's inequality does not say why.
#
# ## Second derivation: what the gap is
#
# How far is $q$ from the exact posterior? Measure it by the Kullback–Leibler divergence, and put Bayes' rule in:
#
# $$\mathrm{KL}(q(z|x)\,\|\,p(z|x)) = \mathbb E_q\!\left[\log \frac{q(z|x)}{p(z|x)}\right]
# = \mathbb E_q\!\left[\log \frac{q(z|x)\,p(x)}{p(x|z)\,p(z)}\right] = \log p(x) - \mathrm{ELBO}.$$
#
# This is an identity, not an inequality: **the gap is the divergence of $q$ from the exact posterior.** A divergence is
# never negative, so the ELBO is a bound. And the bound is tight when $q$ is right. To test it, compute the divergence on
# its own: its grid is the fixed one of the posterior, not the one that follows $q$.


# %%
def kl_to_posterior(log_px_z, x, mean, log_variance, half=6.0, step=0.04):
    """KL(q(z|x) || p(z|x)) of each picture by a sum over the fixed grid, in nats: [B]."""
    z = grid(half, step)
    log_pz_x = log_px_z(z, x) + log_pz(z) - log_evidence(log_px_z, x, half, step)[:, None]
    log_qz_x = log_normal(z, mean[:, None], log_variance[:, None])
    return (log_qz_x.exp() * (log_qz_x - log_pz_x)).sum(-1) * step**2


kl = kl_to_posterior(digits_log_px_z, x, mean, log_variance)
assert torch.allclose(kl, gap_drawn)  # the gaps written in figure 2.1
difference = (log_px - elbo - kl).abs().max().item()
assert difference < 1e-7
quote("kl", kl.mean().item(), rel=0.05)
quote("difference", difference, abs=1e-9)

# The toy, with q set to the exact posterior.
exact_elbo = lower_bound(toy_log_px_z, toy_x, exact_mean, exact_log_variance)
tight = (exact_elbo - toy_log_px).abs().max().item()
assert tight < 1e-9
quote("tight", tight, abs=1e-10)
print(f"digits: gap {(log_px - elbo).mean():.6f}, KL {kl.mean():.6f}, differ by at most {difference:.0e}")
print(f"toy with the exact posterior: ELBO and log p(x) differ by at most {tight:.0e}")

# %% [markdown]
# The mean divergence is {{kl:.2f}} nats, as large as the gap. Picture by picture, the two differ by at most
# {{difference:.0e}} nats. On the toy, with $q$ set to the exact posterior, ELBO and $\log p(x)$ differ by
# {{tight:.0e}} nats: the bound is tight.
#
# ## Third derivation: one weighted sample
#
# Draw a single $z$ from $q(z|x)$. Its weight $w$ is a guess of $p(x)$, and a fair one: $\mathbb E_q[w] = p(x)$, as we
# saw. Bayes' rule splits its logarithm into the answer and an error:
#
# $$\log w = \log p(x) - \log \frac{q(z|x)}{p(z|x)}.$$
#
# So $\log w$ is what one draw says about $\log p(x)$, and the ELBO is the mean of what single draws say. The better
# $q$ fits, the less they scatter. If $q$ is exact, every draw has the same weight, and one draw tells $\log p(x)$.

# %% alt="Histogram of log w for one picture. Most draws lie near log p(x), on both sides; a tail to the left pulls their mean, the ELBO, below it."
DRAWS = 20_000 if FAST else 200_000
noise = torch.Generator().manual_seed(1)


def draw_log_w(log_px_z, x, mean, log_variance, draws):
    """Log-weights of random draws from q(z|x): [B, draws]."""
    epsilon = torch.randn(len(x), draws, 2, generator=noise)
    z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * epsilon
    return log_weight(log_px_z, z, x, mean, log_variance)


single = {}
for name, b in {"third": shown[2], "sixth": shown[5]}.items():
    single[name] = draw_log_w(digits_log_px_z, x[b : b + 1], mean[b : b + 1], log_variance[b : b + 1], DRAWS)[0]
    ratio = (single[name] - log_px[b]).exp()  # w / p(x): its mean should be 1
    quote(f"ratio_{name}", ratio.mean().item(), abs=0.01 if name == "third" else 0.1)
    quote(f"error_{name}", (ratio.std() / DRAWS**0.5).item(), rel=0.5)
b, log_w = shown[2], single["third"]
assert abs((log_w - log_px[b]).exp().mean() - 1) < 0.02
assert abs(log_w.mean() - elbo[b]) < 5 * log_w.std() / DRAWS**0.5
exact_log_w = draw_log_w(toy_log_px_z, toy_x, exact_mean, exact_log_variance, 1000)
assert torch.allclose(exact_log_w, toy_log_px[:, None], atol=1e-12)  # the exact posterior: no scatter

figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
low = (log_px[b] - 6).item()
axis.hist(log_w.clamp(min=low), bins=120, density=True, color=BLUE, alpha=0.5)
axis.axvline(log_px[b], color=GREEN, label="log p(x) = log of the mean weight")
axis.axvline(elbo[b], color=ORANGE, linestyle="--", label="ELBO = mean of the log-weights")
axis.set(xlabel="log w (nats)", ylabel="density (per nat)", xlim=(low, (log_px[b] + 2.5).item()))
_ = axis.legend()

# %% [markdown]
# *Figure 2.2. What single draws say about $\log p(x)$, for the third digit of figure 2.1.*
#
# The draws far to the left are codes that $q$ proposes and the decoder finds unlikely. They count little in the mean
# weight, and much in the mean logarithm. That is the gap again. The mean of $w / p(x)$ should be 1. For this digit,
# 200,000 draws give {{ratio_third:.3f}} ± {{error_third:.3f}} (standard error). For the sixth digit, where $q$ lies beside
# the posterior, they give {{ratio_sixth:.2f}} ± {{error_sixth:.2f}}. The guess is fair, but it lives on rare, huge weights,
# and neither the mean nor its error bar knows of those that were not drawn.
#
# ## More samples, a better bound
#
# The third derivation suggests a better bound. Average $K$ weights *before* the logarithm is taken:
#
# $$L_K = \mathbb E\left[\log \frac1K \sum_{k=1}^K w_k\right], \qquad w_k = \frac{p(x|z_k)\,p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x).$$
#
# $L_1$ is the ELBO. The mean of more weights scatters less, so there is less to lose:
# $L_1 \le L_2 \le \dots \le \log p(x)$. Estimate it with $N$ draws per picture, cut into $N/K$ groups of $K$. All $K$
# use the same draws (**common random numbers**), so that what differs between two $K$ is hardly chance.


# %%
def importance_bound(log_w, K):
    """L_K of each picture from its log-weights, [B, N] -> [B]: the mean over N/K groups."""
    groups = log_w.unflatten(-1, (-1, K))  # [B, N/K, K]
    return (groups.logsumexp(-1) - math.log(K)).mean(-1)


# On the toy, L_2 is a double sum over pairs of nodes: an exact answer for the estimate.
z, share = nodes(off_mean, off_log_variance, half=5, step=0.5)
node_log_w = log_weight(toy_log_px_z, z, toy_x, off_mean, off_log_variance)  # [20, G]
pair = torch.logaddexp(node_log_w[:, :, None], node_log_w[:, None, :]) - math.log(2)
exact_pairs = torch.einsum("bij,i,j->b", pair, share, share)
toy_log_w = draw_log_w(toy_log_px_z, toy_x, off_mean, off_log_variance, 20_000)
pairs_error = (importance_bound(toy_log_w, 2) - exact_pairs).mean().item()
assert abs(pairs_error) < 0.005, "20 × 10,000 groups: a standard error below 0.002"

N = 4096
log_w = draw_log_w(digits_log_px_z, x, mean, log_variance, N)
Ks = [2**i for i in range(0, 11, 2)]  # 1, 4, ..., 1024
bounds = torch.stack([importance_bound(log_w, K) for K in Ks])  # [6, B]
assert (bounds.mean(1).diff() > 0).all()
assert (bounds[:4].mean(1) < log_px.mean()).all()  # at K = 1024 few groups are left, and chance may lift it
for i, K in {0: 1, 2: 16, 5: 1024}.items():
    quote(f"left_{K}", (log_px - bounds[i]).mean().item(), rel=0.1, abs=0.005)
quote("apart", (bounds[1].std() / len(x) ** 0.5).item(), rel=0.1)
half = importance_bound(log_w[:, : N // 2], 4) - importance_bound(log_w[:, N // 2 :], 4)  # other draws, same pictures
quote("chance", (half.std() / 2 / len(x) ** 0.5).item(), rel=0.5)

# %% tags=["hide-input"] alt="L_K against K from 1 to 1024, on a logarithmic axis. It rises towards the line of the exact log p(x), fast at first, and is still a little below it at the end."
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.axhline(log_px.mean(), color=GREEN, label="log p(x), exact")
axis.plot(Ks, bounds.mean(1), "o-", color=BLUE, label="$L_K$, estimated")
axis.axhline(elbo.mean(), color=ORANGE, linestyle="--", label="ELBO, exact")
axis.set(xscale="log", xticks=Ks, xticklabels=Ks, xlabel="K, draws per bound", ylabel="nats per picture")
axis.minorticks_off()
_ = axis.legend()

# %% [markdown]
# *Figure 2.3. The importance-weighted bound, mean over the held-out pictures.*
#
# At $K = 1$, {{left_1:.2f}} nats are missing to the exact answer, at 16 {{left_16:.2f}}, and at 1,024 {{left_1024:.2f}}.
# Which error bar belongs here? The pictures differ, so the mean of $L_4$ over them has a standard error of
# {{apart:.2f}} nats. That one tells how far *other pictures* might lie. To compare two $K$ on the same pictures, only the
# draws are chance, and they add {{chance:.3f}} nats. Quote the first to compare models on new data, the second to
# compare bounds.
#
# ## Where the gap comes from
#
# The gap has two causes. The posterior may not be a bell curve along the axes, and then no $q$ of our kind fits it. Or
# one would fit, and the encoder does not give it: it must serve all pictures with one network, which is called
# **amortization**. Let $q^*$ be the best $q$ of our kind for this one picture. Then
#
# $$\underbrace{\log p(x) - \mathrm{ELBO}(q)}_{\text{gap}} =
# \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation gap}} +
# \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortization gap}}.$$
#
# To find $q^*$, leave the encoder away: climb the ELBO of each picture in its own four numbers. The climb starts
# at the encoder's $q$ and may end on a lower hill than the highest. Then a part of the amortization gap is counted as
# approximation gap.


# %%
def best_q(log_px_z, x, mean, log_variance):
    """Mean and log-variance of the q with the greatest ELBO for each picture, by a climb from those given."""
    free = torch.stack([mean, log_variance]).clone().requires_grad_()
    climber = torch.optim.LBFGS([free], max_iter=40, history_size=20, line_search_fn="strong_wolfe")

    def loss():
        climber.zero_grad()
        value = -lower_bound(log_px_z, x, *free, half=4.2, step=0.6).sum()
        value.backward()
        return value

    climber.step(loss)
    return free.detach()


# On the toy the answer is known. Turn the two latents by 45 degrees: the same pictures, but a tilted posterior.
turned = W @ torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5
tilted = torch.eye(2) + turned.T @ turned / v  # its precision, [[6, -4], [-4, 6]]
tilted_log_px_z = lambda z, x: toy_log_px_z(z, x, turned)  # noqa: E731
found = best_q(tilted_log_px_z, toy_x, torch.zeros(20, 2), torch.zeros(20, 2))
toy_gap = 0.5 * (tilted.diagonal().log().sum() - tilted.logdet())
assert torch.allclose(found[1].exp(), 1 / tilted.diagonal(), rtol=1e-3)
assert torch.allclose(toy_log_px - lower_bound(tilted_log_px_z, toy_x, *found), toy_gap, atol=1e-5)
quote("toy_gap", toy_gap.item(), abs=1e-9)

best_mean, best_log_variance = best_q(digits_log_px_z, x, mean, log_variance)
elbo_best = lower_bound(digits_log_px_z, x, best_mean, best_log_variance)
approximation, amortization = log_px - elbo_best, elbo_best - elbo
assert (approximation > 0).all()
assert (amortization > -1e-6).all()
quote("approximation", approximation.mean().item(), rel=0.1)
quote("amortization", amortization.mean().item(), rel=0.1)
ranks = (log_px - elbo).argsort()
worst = ranks[-len(x) // 10 :]
quote("worst_share", (amortization[worst].sum() / amortization.sum()).item(), abs=0.05)

# %% tags=["hide-input"] alt="One bar for each picture, sorted by its gap. The lower part, the approximation gap, is similar for most; the upper part, the amortization gap, is small for most and large for a few at the right."
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.bar(range(len(x)), approximation[ranks], width=1, color=BLUE, label="approximation gap")
axis.bar(
    range(len(x)), amortization[ranks], 1, approximation[ranks], color=ORANGE, hatch="//", label="amortization gap"
)
axis.set(xlabel="picture, by size of its gap", ylabel="gap (nats)", xlim=(-0.5, len(x) - 0.5))
_ = axis.legend()

# %% [markdown]
# *Figure 2.4. The gap of each picture, and its two parts.*
#
# Of the gap of {{gap:.2f}} nats, {{approximation:.2f}} are the approximation gap and {{amortization:.2f}} the
# amortization gap. The second part is uneven: a tenth of the pictures has {{worst_share:.0%}} of it. For them, a
# longer look at the one picture would help. A better encoder would too.
#
# The tilted toy shows the first part alone. Its posterior is normal, but a $q$ without correlation cannot lean. The best
# one has the variances $1/\Lambda_{jj}$ and leaves
# $\frac12\left(\sum_j \log \Lambda_{jj} - \log|\Lambda|\right) = \frac12 \log\frac{36}{20}$ = {{toy_gap:.4f}} nats
# ($|\Lambda|$ is the determinant). The variance of each latent under the exact posterior is 0.3, that of the best $q$
# 1/6: it would rather miss a part of the posterior than cover what is not there.
#
# ## Rate and distortion: a message in two parts
#
# Split $\log w$ another way. With $\log w = \log p(x|z) - \log\frac{q(z|x)}{p(z)}$, the ELBO is what chapter 0 trained:
#
# $$\mathrm{ELBO} = -\Big(\underbrace{\mathbb E_q[-\log p(x|z)]}_{\text{distortion}} +
# \underbrace{\mathrm{KL}(q(z|x)\,\|\,p(z))}_{\text{rate}}\Big), \qquad
# \text{rate} = \tfrac12 \sum_j \left(\sigma_j^2 + \mu_j^2 - 1 - \log \sigma_j^2\right).$$
#
# It is the length of a message that tells the picture: first a code $z$, drawn from $q(z|x)$ and told with the prior,
# which costs $-\log p(z)$; then the pixels, told with the decoder, for $-\log p(x|z)$. And $-\log q(z|x)$ comes **back**:
# which $z$ is drawn can itself carry other data, and the receiver, who can work out $q(z|x)$ once the picture is known,
# reads that data off.


# %%
z, share = nodes(mean, log_variance)
cell = math.log(0.01**2)  # z is told to two decimals: a density times the cell's area is a probability
name_z = -(share * log_pz(z)).sum(-1) - cell
back = -(share * log_normal(z, mean[:, None], log_variance[:, None])).sum(-1) - cell
distortion = -(share * digits_log_px_z(z, x)).sum(-1)
rate = kl_to_prior(mean, log_variance)
assert torch.allclose(name_z - back, rate)
assert torch.allclose(-(distortion + rate), elbo)
for name, value in {"name_z": name_z, "back": back, "distortion": distortion, "rate": rate, "message": -elbo}.items():
    quote(name, value.mean().item(), abs=0.1)
bits = quote("bits", -elbo.mean().item() / math.log(2), abs=0.15)
assert bits < 64

# %% [markdown]
# | Part of the message | Nats per picture |
# |---|---|
# | to name $z$ | {{name_z:.2f}} |
# | what comes back | {{back:.2f}} |
# | **rate**: the first less the second | {{rate:.2f}} |
# | **distortion**: the pixels, given $z$ | {{distortion:.2f}} |
# | **message**: rate + distortion, $-\mathrm{ELBO}$ | {{message:.2f}} = {{bits:.1f}} bits |
#
# *Table 2.1. Here $z$ is told to two decimals. More decimals cost more and bring back as much more.*
#
# One bit is $\ln 2$ nats. Written pixel by pixel, a picture takes 64 bits; this message takes {{bits:.1f}}. With the
# exact posterior for $q$ it would be shorter by the gap.
#
# ## What happens if q is wider?
#
# Keep the best mean, and multiply each standard deviation of $q^*$ by a factor $s$. For a normal posterior the cost is
# known: $\tfrac12(s^2 - 1 - \log s^2)$ nats per latent, twice that for two. Guess before you look: is it worse to be twice
# too wide, or twice too narrow?

# %% alt="Nats lost against the factor s from a quarter to almost three. Both curves touch zero at 1. To the right they rise steeply; to the left slowly."
factors = 2.0 ** torch.linspace(-2, 1.5, 15)
formula = factors**2 - 1 - 2 * factors.log()  # two latents
for s, cost in zip(factors, formula, strict=True):
    bound = lower_bound(toy_log_px_z, toy_x, exact_mean, exact_log_variance + 2 * s.log())
    assert torch.allclose(toy_log_px - bound, cost, atol=1e-9)  # exact on the toy


def lost(s):
    """Mean loss of ELBO on the digits when each standard deviation of q* is s times as large."""
    wider = lower_bound(digits_log_px_z, x, best_mean, best_log_variance + 2 * math.log(s), half=5, step=0.5)
    return (elbo_best - wider).mean().item()


quote("wide", lost(2), rel=0.05)
quote("narrow", lost(0.5), rel=0.05)
assert lost(2) > 1.5 * lost(0.5)
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
axis.plot(factors, formula, color=GREEN, label="toy, and the formula")
axis.plot(factors, [lost(s.item()) for s in factors], "o--", color=BLUE, label="digits")
axis.set(xscale="log", xlabel="s: standard deviation of q, in units of the best", ylabel="ELBO lost (nats)")
axis.set(xticks=[0.25, 0.5, 1, 2], xticklabels=["¼", "½", "1", "2"], ylim=(-0.2, 5.5))
axis.minorticks_off()
_ = axis.legend()

# %% [markdown]
# *Figure 2.5. What a wrong width costs.*
#
# On the digits, twice too wide costs {{wide:.2f}} nats and twice too narrow {{narrow:.2f}} (on the toy 1.61 and
# 0.64). A wide $q$ proposes codes that the decoder finds impossible, and each is paid for in full. A narrow $q$ is only
# told too exactly.
#
# ## What happens if the mean takes the place of the sample?
#
# A draw makes the ELBO noisy. It is tempting to decode the mean of $q$ instead, and to report
# $\log p(x|\text{mean}) - \text{rate}$ as "the ELBO". Is it still a bound?

# %%
score = digits_log_px_z(mean[:, None], x)[:, 0] - rate
quote("score", score.mean().item(), abs=0.1)
quote("above_elbo", (score > elbo).double().mean().item(), abs=0.03)
quote("above_log_px", (score > log_px).double().mean().item(), abs=0.05)
quote("above_most", (score - log_px).max().item(), rel=0.1)
assert score.mean() > elbo.mean()
assert (score > log_px).any()

toy_score = toy_log_px_z(exact_mean[:, None], toy_x)[:, 0] - kl_to_prior(exact_mean, exact_log_variance)
excess = 0.5 * ((precision.diagonal() - 1) / precision.diagonal()).sum()  # half of trace(W' W Λ⁻¹) / v
assert torch.allclose(toy_score - toy_log_px, excess, atol=1e-12)
quote("excess", excess.item(), abs=1e-9)

# %% [markdown]
# It is not. On the toy, with the exact posterior, the score is above $\log p(x)$ itself for *every* picture, by
# $\frac12 \sum_j (\Lambda_{jj} - 1)/\Lambda_{jj}$ = {{excess:.2f}} nats. On the digits its mean is {{score:.2f}}, where the
# ELBO is {{elbo:.2f}}. For {{above_elbo:.0%}} of the pictures it is above the ELBO, and for {{above_log_px:.0%}} above the
# exact $\log p(x)$, by up to {{above_most:.1f}} nats. The rate was paid for a blurred code, and the distortion was
# measured with a sharp one. A table that mixes such scores with ELBOs compares nothing.
#
# ## What happens if two codes make the same picture?
#
# Here is a decoder for one latent and one pixel: $x = z^2 + \text{noise}$, noise of variance 0.04. The codes $z$ and $-z$
# make the same pixel. With one latent, the best $q$ can be found by trying them all.

# %% alt="Left: a posterior with two hills, a q on one of them, and a wide q over both. Right: the gap of the two against x. On one hill it levels off at ln 2; over both it grows."
line = torch.arange(-4, 4, 0.002)


def two_hills(z, x):
    """log p(x, z): one latent, one pixel."""
    return log_normal(torch.as_tensor(x - z**2)[..., None], 0.0, torch.tensor([0.04]).log()) + log_pz(z[..., None])


epsilon = torch.arange(-5, 5.01, 0.5)
share = 0.5 * log_pz(epsilon[:, None]).exp()
deviations = torch.logspace(-1.5, 0.3, 120)
means = torch.linspace(0, 2, 401)


def elbo_line(x, means):
    """The ELBO of all means and deviations: [M, 120]."""
    z = means[:, None, None] + deviations[:, None] * epsilon  # [M, 120, 21]
    log_qz_x = -0.5 * epsilon**2 - deviations.log()[:, None] - 0.5 * math.log(2 * math.pi)
    return ((two_hills(z, x) - log_qz_x) * share).sum(-1)


xs = torch.linspace(0, 2.5, 11 if FAST else 26)
log_pxs = torch.stack([two_hills(line, value).logsumexp(0) + math.log(0.002) for value in xs])
best_gap = log_pxs - torch.stack([elbo_line(value, means).max() for value in xs])
both = log_pxs - torch.stack([elbo_line(value, torch.zeros(1)).max() for value in xs])
assert abs(best_gap[-1] - math.log(2)) < 0.01
quote("best_gap", best_gap[-1].item(), abs=1e-3)
quote("both_hills", both[-1].item(), abs=1e-2)

value = 2.0
row, column = divmod(elbo_line(value, means).argmax().item(), 120)
z = means[row] + deviations[column] * torch.randn(1000, 1000, generator=noise)
hill_log_w = two_hills(z, value) - log_normal(z[..., None], means[row], 2 * deviations[column : column + 1].log())
exact = two_hills(line, value).logsumexp(0) + math.log(0.002)
stuck = quote("stuck", (exact - importance_bound(hill_log_w, 1000).mean()).item(), abs=0.02)
assert abs(stuck - math.log(2)) < 0.05
assert (z > 0).all()  # a million draws, and none on the other hill

figure, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left_axis.fill_between(line, (two_hills(line, value) - exact).exp(), color="0.8", label="p(z|x), x = 2")
wide = deviations[elbo_line(value, torch.zeros(1)).argmax()]
for center, deviation, style, color, name in (
    (means[row], deviations[column], "-", ORANGE, "best q"),
    (torch.zeros(()), wide, "--", BLUE, "q over both"),
):
    left_axis.plot(line, log_normal(line[:, None], center, 2 * deviation.log()[None]).exp(), style, color=color)
    right_axis.plot(xs, best_gap if style == "-" else both, style, color=color, label=name)
right_axis.axhline(math.log(2), color="0.5", linestyle=":", label="ln 2")
left_axis.set(xlim=(-2.5, 2.5), xlabel="z", ylabel="density")
right_axis.set(xlabel="x", ylabel="gap (nats)", ylim=(0, 4))
left_axis.legend()
_ = right_axis.legend()

# %% [markdown]
# *Figure 2.6. Left: a posterior with two hills, and two $q$: the best one (solid), and one over both hills (dashed).
# Right: the gap of the two for each $x$.*
#
# When the hills are apart, the best $q$ sits on one of them. It misses half of the posterior, which costs
# $\ln 2 = 0.693$ nats (at $x = 2.5$ the gap is {{best_gap:.3f}}), where a $q$ over both costs {{both_hills:.1f}}. At
# small $x$ the hills merge, and the best $q$ covers both.
#
# And more samples? $L_K$ must rise to $\log p(x)$. But at $x = 2$ and $K = 1000$ it is still {{stuck:.3f}} nats below: of a
# million draws, none has landed on the other hill. That $L_K$ no longer rises does not show that it has arrived.
#
# ## What happens if the grid is too coarse?
#
# All that is called exact here hangs on the grid. Sum a normal distribution with standard deviation $\sigma$ at steps of
# $h$. The sum should be 1. The worst error is known: it is very nearly $2\exp(-2\pi^2\sigma^2/h^2)$.

# %%
for steps in (1.0, 2.0):  # h / σ
    points = steps * (torch.arange(-40, 41) + torch.linspace(0, 1, 201)[:, None])
    worst_error = (steps * log_pz(points[..., None]).exp().sum(-1) - 1).abs().max().item()
    assert abs(worst_error / (2 * math.exp(-2 * math.pi**2 / steps**2)) - 1) < 1e-3
    quote(f"error_{steps:.0f}", worst_error, rel=1e-3)

error = log_evidence(digits_log_px_z, x, step=0.5) - log_px
assert error.min() < -1e-3
assert error.max() > 1e-3
quote("coarse", error.abs().max().item(), rel=0.1)
quote("too_high", (error > 0).double().mean().item(), abs=0.05)

# %% [markdown]
# At $h = \sigma$ the worst error is {{error_1:.0e}}, at $h = 2\sigma$ {{error_2:.2f}}. On the digits, at a step of 0.5, the
# narrow posteriors fall between the points. $\log p(x)$ is off by up to {{coarse:.2f}} nats, and for {{too_high:.0%}} of the
# pictures it is too *high*. Quadrature is not a bound. Always make the step smaller once, and look whether the answer
# moves.
#
# ## Exercises
#
# **Exercise 1.** Write $\log \frac1K \sum_k w_k$ from log-weights. Real log-weights are near −100 and below: their
# exponentials may be zero to the computer.
#
# <details><summary>Hint</summary>
#
# `torch.logsumexp` subtracts the largest before it takes exponentials. The mean is the sum divided by $K$. Which axis
# is $K$?
#
# </details>


# %% tags=["exercise"]
def log_mean_weight(log_w):
    """Log-weights of K draws for B pictures, [K, B] -> [B]."""
    # begin solution
    return log_w.logsumexp(0) - math.log(log_w.shape[0])
    # end solution


# %% tags=["check"]
three = torch.tensor([[1.0, 8.0], [2.0, 8.0], [6.0, 8.0]])  # the means are 3 and 8
answer = log_mean_weight(three.log())
assert answer.shape == (2,), "one number for each picture"
assert torch.allclose(answer, torch.tensor([3.0, 8.0]).log()), "the mean of 1, 2 and 6 is 3"
assert torch.allclose(log_mean_weight(three.log() - 2000), torch.tensor([3.0, 8.0]).log() - 2000), "weights of e⁻²⁰⁰⁰"

# %% [markdown]
# **Exercise 2.** The exact posterior of two latents is normal, with correlation $\rho$ between them. What is the
# approximation gap of a $q$ without correlation?
#
# <details><summary>Hint</summary>
#
# With variances of 1, the covariance is $\begin{pmatrix}1&\rho\\\rho&1\end{pmatrix}$. Invert it to get $\Lambda$, and use
# the formula of the tilted toy.
#
# </details>


# %% tags=["exercise"]
def tilt_cost(rho):
    """The least gap in nats."""
    # begin solution
    return -0.5 * math.log(1 - rho**2)
    # end solution


# %% tags=["check"]
for rho in (0.0, 0.5, -0.9):
    posterior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    scales = torch.linspace(0.2, 1.2, 2001)[:, None, None] * torch.eye(2)  # try many q
    least = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(torch.zeros(2), scale_tril=scales), posterior
    ).min()
    assert abs(tilt_cost(rho) - least) < 1e-4, f"correlation {rho}: the best q is off by {least:.4f} nats"

# %% [markdown]
# **Exercise 3.** The exact posterior has several hills, far apart, each of them a bell curve. The hill $j$ holds a part
# $\pi_j$ of the probability. What is the gap of the best $q$ that sits on one hill?
#
# <details><summary>Hint</summary>
#
# On the hill, $p(z|x) = \pi_j\,q(z|x)$. What is $\log\frac{q}{p}$ there?
#
# </details>


# %% tags=["exercise"]
def hill_cost(parts):
    """The least gap in nats, from a list of the hills' parts."""
    # begin solution
    return -math.log(max(parts))
    # end solution


# %% tags=["check"]
z = torch.arange(-20, 60, 0.01)
for parts in ([0.5, 0.5], [0.2, 0.7, 0.1]):
    hills = torch.stack([log_normal(z[:, None], 20.0 * j, torch.zeros(())) for j in range(len(parts))])  # [J, G]
    posterior = (hills + torch.tensor(parts).log()[:, None]).logsumexp(0)
    least = ((hills.exp() * (hills - posterior)).sum(-1) * 0.01).min()
    assert abs(hill_cost(parts) - least) < 1e-6, f"parts {parts}: the best q is off by {least:.4f} nats"

# %% [markdown]
# ## Summary
#
# - $\log p(x) = \mathrm{ELBO} + \mathrm{KL}(q(z|x)\,\|\,p(z|x))$. It was checked to {{difference:.0e}} nats on digits.
# - Three ways to the bound: Jensen's inequality; the divergence from the exact posterior; the mean of what single
#   weighted draws say.
# - Gap = approximation gap ({{approximation:.2f}} nats here: the posterior is no bell curve along the axes) +
#   amortization gap ({{amortization:.2f}}: one encoder for all pictures).
# - $L_K$ averages $K$ weights before the logarithm. It rises to $\log p(x)$; where $q$ misses a hill, that takes
#   more draws than anyone has.
# - $-\mathrm{ELBO}$ = distortion + rate is the length of a message.
# - Decode a *sample*. With the mean, the score exceeds $\log p(x)$ for {{above_log_px:.0%}} of the pictures.
#
# Next: [chapter 3](03_gradients_through_noise.py) asks how to climb the ELBO when it is a mean over draws.
#
# ## References
#
# 1. D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. The identity of the second
#    derivation: equation (1); the bound: (2); rate and distortion: (3); the closed form of the rate: appendix B.
# 2. M. I. Jordan, Z. Ghahramani, T. S. Jaakkola and L. K. Saul (1999). *An Introduction to Variational Methods for
#    Graphical Models.* Machine Learning 37, 183–233. The bound by Jensen's inequality: section 6.
# 3. R. M. Neal and G. E. Hinton (1998). *A View of the EM Algorithm that Justifies Incremental, Sparse, and Other
#    Variants.* In Learning in Graphical Models, 355–368. The bound as a free energy that $q$ and model both climb.
# 4. Y. Burda, R. Grosse and R. Salakhutdinov (2016). *Importance Weighted Autoencoders.* arXiv:1509.00519. $L_K$:
#    equation (8); that it rises with $K$: theorem 1.
# 5. C. Cremer, X. Li and D. Duvenaud (2018). *Inference Suboptimality in Variational Autoencoders.* arXiv:1801.03558.
#    The two parts of the gap: table 1.
# 6. G. E. Hinton and D. van Camp (1993). *Keeping the Neural Networks Simple by Minimizing the Description Length of the
#    Weights.* COLT 1993, 5–13. The bits that come back.
# 7. M. D. Hoffman and M. J. Johnson (2016). *ELBO surgery.* NIPS 2016 workshop on advances in approximate Bayesian
#    inference. More ways to split the ELBO; the rate's own parts.
# 8. L. N. Trefethen and J. A. C. Weideman (2014). *The Exponentially Convergent Trapezoidal Rule.* SIAM Review 56,
#    385–458. Why the sum over a grid is so good: section 5.
