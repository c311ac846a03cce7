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
# # 5. The linear VAE
#
# Take a VAE whose encoder and decoder are matrices, and nothing else. Then its best ELBO, its rate and its distortion
# can be written down before any training. They follow from 64 numbers, the variances of the digits along their
# principal directions. So a trained VAE can be held to the exact answer, to the third digit.

# %% tags=["hide-input"] alt="Left: the 61 variances of the digits on a log scale, falling from 0.7 to a millionth; ten lie left of a vertical line, the others have a dashed line for their mean. Right: the first six principal directions as pictures."
import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from vaelab.course import FAST, quote

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008: safe for the color-blind
STEPS = 600 if FAST else 2000
NEAR = 0.05 if FAST else 0.003  # nats: how near to the exact answer training is asked to come

pictures = torch.tensor(load_digits().data) / 16  # [1797, 64]: gray levels from 0 to 1
x = pictures - pictures.mean(0)  # from here on, x is a picture less the mean picture
N, D = x.shape

S = x.T @ x / N  # the covariance, [64, 64]
eigenvalues, U = torch.linalg.eigh(S)
eigenvalues, U = eigenvalues.flip(0).clamp(min=0), U.flip(1)  # the largest first

figure, axes = plt.subplot_mosaic(
    [["plot", "0", "1", "2"], ["plot", "3", "4", "5"]],
    figsize=(8, 3.2),
    width_ratios=[4, 1, 1, 1],
    layout="constrained",
)
plot = axes["plot"]
plot.semilogy(range(1, 11), eigenvalues[:10], "o", color=BLUE, label="ten that are kept")
plot.semilogy(range(11, 62), eigenvalues[10:61], "x", color=ORANGE, label="the others")
plot.axhline(eigenvalues[10:].mean(), color=ORANGE, linestyle="--", label="mean of the others")
plot.axvline(10.5, color="gray", linewidth=0.8)
plot.set(xlabel="principal direction $j$", ylabel="variance $\\lambda_j$ (gray levels squared)")
plot.legend()
for j in range(6):
    axes[str(j)].imshow(U[:, j].view(8, 8), cmap="gray", vmin=-0.4, vmax=0.4)
    axes[str(j)].set(xticks=[], yticks=[], title=f"$j = {j + 1}$")

quote("largest", eigenvalues[0].item(), rel=1e-6)
quote("total", eigenvalues.sum().item(), rel=1e-6)
quote("share_ten", (eigenvalues[:10].sum() / eigenvalues.sum()).item(), rel=1e-6)
assert (eigenvalues[61:] < 1e-9).all() and eigenvalues[60] > 1e-9

# %% [markdown]
# *Figure 5.1. The variances $\lambda_j$ of the digits along their principal directions, and the first six directions as
# pictures. Three of the 64 pixels are 0 in every picture, so the last three variances are 0 and not drawn.*
#
# The data are scikit-learn's 1,797 digits of 8 × 8 pixels, with gray levels from 0 to 1. Their covariance matrix $S$ has
# the eigenvalues $\lambda_1 \ge \lambda_2 \ge \dots \ge \lambda_D$, with $D = 64$. Each eigenvector is a **principal
# direction**, and its eigenvalue is the variance of the pictures along it. The largest is {{largest:.4f}}. All
# together are {{total:.4f}}, and the first ten hold {{share_ten:.0%}} of that.
#
# ## The model
#
# The prior is as always. The decoder is a matrix $W$ of $D$ rows and $q$ columns, one column for each latent. The
# likelihood is a normal distribution, with the same variance $\sigma^2$ for every pixel:
#
# $$p(z) = \mathcal N(0, I), \qquad p(x|z) = \mathcal N(W z, \sigma^2 I).$$
#
# (The mean picture is already taken off $x$; it is the best constant that one can add.) So $x = Wz + \text{noise}$, a sum
# of two independent normal vectors. Such a sum is normal again, and its covariance is the sum of theirs:
#
# $$p(x) = \int p(x|z)\,p(z)\,dz = \mathcal N(0, C), \qquad C = W W^\top + \sigma^2 I.$$
#
# This is the rare VAE whose $\log p(x)$ needs no bound. It is known as **probabilistic PCA**.


# %%
def log_px(x, W, variance):
    """The exact log p(x) of each picture, in nats: [N, D] -> [N]."""
    C = W @ W.T + variance * torch.eye(D)
    return torch.distributions.MultivariateNormal(torch.zeros(D), C).log_prob(x)


# %% [markdown]
# ## The exact answer
#
# What are the best $W$ and $\sigma^2$? Averaged over the pictures, the logarithm of the normal density is
#
# $$-\tfrac12\left[D \log 2\pi + \log|C| + \mathrm{tr}(C^{-1} S)\right].$$
#
# Let $C$ have the same directions as $S$, with variances $c_j$. (That this is best is proven in reference 1.) Then it is
# a sum, $-\tfrac12 \sum_j (\log 2\pi + \log c_j + \lambda_j / c_j)$. Each term is best at $c_j = \lambda_j$. But $W$ has
# only $q$ columns, so $D - q$ directions must share one $c_j = \sigma^2$. Set the derivative to zero: $\sigma^2$ is the
# mean of their $\lambda_j$. What is left of the sum is
#
# $$\sigma^2 = \frac{1}{D - q} \sum_{j > q} \lambda_j, \qquad
# \log p(x) = -\tfrac12\Big[D \log 2\pi + \sum_{j \le q} \log \lambda_j + (D - q) \log \sigma^2 + D\Big],$$
#
# and $C = WW^\top + \sigma^2 I$ is met by the columns $w_j = \sqrt{\lambda_j - \sigma^2}\, u_j$, where $u_j$ is
# direction $j$.


# %%
def best_decoder(q, variance=None):
    """W [D, q] and σ² of largest likelihood; for a given σ² the best W. A column is 0 where λ_j < σ²."""
    variance = eigenvalues[q:].mean() if variance is None else torch.as_tensor(variance)
    return U[:, :q] * (eigenvalues[:q] - variance).clamp(min=0).sqrt(), variance


def best_log_px(q):
    """The largest log p(x) that q latents can reach, in nats, averaged over the pictures."""
    variance = eigenvalues[q:].mean()
    return -0.5 * (D * math.log(2 * math.pi) + eigenvalues[:q].log().sum() + (D - q) * variance.log() + D)


for q in (2, 5, 10, 20):
    exact = quote(f"best_{q}", best_log_px(q).item(), abs=1e-4)
    density = log_px(x, *best_decoder(q)).mean().item()
    scikit_learn = PCA(q, svd_solver="full").fit(pictures.numpy()).score(pictures.numpy())
    print(f"q = {q:2}: log p(x) = {exact:.6f} by the formula, {density:.6f} by the density, {scikit_learn:.6f} by PCA")
    assert abs(exact - density) < 1e-9 and abs(exact - scikit_learn) < 1e-5

# %% [markdown]
# | Latents $q$ | 2 | 5 | 10 | 20 |
# |---|---|---|---|---|
# | $\log p(x)$, nats per picture | {{best_2:.4f}} | {{best_5:.4f}} | {{best_10:.4f}} | {{best_20:.4f}} |
#
# *Table 5.1. The best that any linear VAE can do on these digits. They may be above 0, since $p(x)$ is a density.*
#
# The class `PCA` of scikit-learn has the method `score`. What it gives is within 0.00001 nats of these numbers. The
# difference is there because it divides the covariance by $N - 1$ instead of $N$.
#
# ## The best encoder
#
# Bayes' rule turns the model around. With $M = W^\top W + \sigma^2 I$, a $q \times q$ matrix,
#
# $$p(z|x) = \mathcal N(M^{-1} W^\top x,\; \sigma^2 M^{-1}).$$
#
# So the exact posterior has a mean that is linear in $x$, and a covariance that is the same for every picture. Our
# encoder can say that: `mean` $= Vx$ with a matrix $V$ of $q$ rows, and one `log_variance` for each latent. One thing it
# cannot say: its covariance is diagonal. If the columns of $W$ are orthogonal, as above, $M$ is diagonal too, and nothing
# is missing. For any other $W$, the best diagonal variances are $\sigma^2 / M_{jj}$.


# %%
def best_encoder(W, variance):
    """V [q, D] and log_variance [q] of the diagonal q(z|x) nearest to p(z|x)."""
    M = W.T @ W + variance * torch.eye(W.shape[1])
    return torch.linalg.solve(M, W.T), torch.log(variance / M.diagonal())


# %% [markdown]
# Now the ELBO. A draw is $z = \text{mean} + s \varepsilon$, where $s_j^2$ is the posterior's variance. The squared error of
# a decoded draw, averaged over the noise $\varepsilon$, needs no draws: the noise of latent $j$ adds $s_j^2$ times the
# squared length of the column $w_j$.
#
# $$E\|x - \hat x\|^2 = \|x - W\,\text{mean}\|^2 + \sum_j s_j^2 \|w_j\|^2, \qquad
# \text{distortion} = \tfrac12\Big[D \log(2\pi\sigma^2) + \frac{E\|x - \hat x\|^2}{\sigma^2}\Big].$$
#
# Here $\hat x = Wz$ is decoded from a *draw* of $z$. The rate is the sum of the latents' KL, as in
# [chapter 0](00_a_broken_vae.py).


# %%
def terms(x, W, V, log_variance, variance):
    """Squared error [N], distortion [N], and KL of each latent [N, q]; the last two in nats."""
    mean = x @ V.T
    noise = (log_variance.exp() * (W**2).sum(0)).sum()
    squared_error = ((x - mean @ W.T) ** 2).sum(-1) + noise
    distortion = 0.5 * (D * torch.log(2 * math.pi * variance) + squared_error / variance)
    kl = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance)
    return squared_error, distortion, kl


def elbo(x, W, V, log_variance, variance):
    """The ELBO of each picture, in nats: [N]."""
    _, distortion, kl = terms(x, W, V, log_variance, variance)
    return -(distortion + kl.sum(-1))


W, variance = best_decoder(10)
V, log_variance = best_encoder(W, variance)
gap = log_px(x, W, variance) - elbo(x, W, V, log_variance, variance)
print(f"log p(x) - ELBO: at most {gap.abs().max():.0e} nats on any of {N} pictures")
assert gap.abs().max() < 1e-9

# %% [markdown]
# The gap between $\log p(x)$ and the ELBO is zero on every picture, but for rounding. There is no loss from the bound, so
# whatever a trained linear VAE falls short of the table is the optimizer's fault.
#
# ## Train it
#
# All parameters start at random: $W$, $V$, `log_variance` and $\log \sigma^2$. The loss is minus the ELBO.
#
# One trick makes it quick. Look at `terms`: averaged over pictures, everything depends on $x$ through the average of
# $x x^\top$ alone, and that is $S$. So 64 rows that have the covariance $S$ train exactly as 1,797 pictures do.

# %%
rows = math.sqrt(D) * (U * eigenvalues.sqrt()) @ U.T  # [64, 64], with rows.T @ rows / 64 = S
assert torch.allclose(elbo(x, W, V, log_variance, variance).mean(), elbo(rows, W, V, log_variance, variance).mean())


def train(q, variance=None, loss=None, seed=0):
    """A linear VAE trained on all pictures: its parameters, and minus the loss at every step.

    With `variance` given, σ² stays fixed. `loss` takes squared_error, distortion, kl; else it is minus the ELBO.
    """
    generator = torch.Generator().manual_seed(seed)
    W = 0.1 * torch.randn(D, q, generator=generator)
    V = 0.1 * torch.randn(q, D, generator=generator)
    log_noise = torch.tensor(0.0 if variance is None else math.log(variance))  # log σ²
    learned = [W, V, torch.zeros(q)] + ([log_noise] if variance is None else [])
    for parameter in learned:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(learned, lr=0.05 if FAST else 0.02, betas=(0.95, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    history = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        squared_error, distortion, kl = terms(rows, *learned[:3], log_noise.exp())
        value = (distortion + kl.sum(-1)).mean() if loss is None else loss(squared_error, distortion, kl)
        value.backward()
        optimizer.step()
        schedule.step()
        history.append(-value.item())
    return *(parameter.detach() for parameter in learned[:3]), log_noise.exp().detach(), history


trained, histories = {}, {}
for q in (2, 5, 10, 20):
    *trained[q], histories[q] = train(q)
    reached = quote(f"reached_{q}", elbo(x, *trained[q]).mean().item(), abs=NEAR / 3)
    print(f"q = {q:2}: trained ELBO {reached:.4f}, exact {best_log_px(q):.4f} nats")
    assert -1e-9 < best_log_px(q) - reached < NEAR
variance_trained = quote("variance_trained", trained[10][3].item(), rel=1e-3)
variance_exact = quote("variance_exact", best_decoder(10)[1].item(), rel=1e-6)
assert abs(variance_trained / variance_exact - 1) < 1e-3

# %% tags=["hide-input"] alt="Four curves of the ELBO over the training steps. Each rises and ends on its own dashed horizontal line, the exact answer."
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for q, color, style in zip(histories, (BLUE, ORANGE, GREEN, PINK), ("-", "--", "-.", ":"), strict=True):
    axis.plot(range(1, STEPS + 1), histories[q], color=color, linestyle=style, label=f"{q} latents")
    axis.axhline(best_log_px(q), color="black", linestyle=(0, (1, 3)), linewidth=1)
    axis.text(STEPS * 1.02, best_log_px(q), f"{best_log_px(q):.4f}", va="bottom", fontsize="small")
axis.set(xscale="log", xlim=(1, STEPS * 1.9), ylim=(-65, 35), xlabel="step", ylabel="ELBO (nats per picture)")
axis.legend(loc="lower right")

# %% [markdown]
# *Figure 5.2. The ELBO while training, and the exact answers as dotted lines.*
#
# | Latents $q$ | 2 | 5 | 10 | 20 |
# |---|---|---|---|---|
# | ELBO, trained | {{reached_2:.3f}} | {{reached_5:.3f}} | {{reached_10:.3f}} | {{reached_20:.3f}} |
# | $\log p(x)$, exact | {{best_2:.3f}} | {{best_5:.3f}} | {{best_10:.3f}} | {{best_20:.3f}} |
#
# The learned $\sigma^2$ for ten latents is {{variance_trained:.5f}}, and the formula says {{variance_exact:.5f}}. Gradient descent on the
# ELBO has found probabilistic PCA, without computing an eigenvector.
#
# ## What happens if W is rotated?
#
# Take the best $W$ and turn it: $W R$, where $R$ is a rotation of the latents. Then $WR(WR)^\top = WW^\top$, so $C$ and
# $\log p(x)$ are what they were. Every rotation is a model of the same pictures. Does the ELBO change?
#
# The exact posterior is now a tilted ellipse, and a diagonal $q(z|x)$ cannot tilt. The gap is the KL between the best
# diagonal one and the exact one. It is the same for every picture:
#
# $$\log p(x) - \mathrm{ELBO} = \tfrac12 \Big(\sum_j \log M_{jj} - \log |M|\Big).$$


# %%
def rotation_gap(W, variance):
    """log p(x) - ELBO with the best diagonal posterior, in nats."""
    M = W.T @ W + variance * torch.eye(W.shape[1])
    return 0.5 * (M.diagonal().log().sum() - torch.logdet(M))


W, variance = best_decoder(10)
R, _ = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)))
turned = W @ R
gaps = log_px(x, turned, variance) - elbo(x, turned, *best_encoder(turned, variance), variance)
assert torch.allclose(log_px(x, turned, variance), log_px(x, W, variance))
assert torch.allclose(gaps, rotation_gap(turned, variance))
assert rotation_gap(W, variance).abs() < 1e-9
quote("gap_turned", gaps.mean().item(), rel=1e-6)
print(f"turned: log p(x) the same, ELBO {gaps.mean():.4f} nats lower")

columns = trained[10][0] / trained[10][0].norm(dim=0)
overlap = (columns.T @ columns - torch.eye(10)).abs().max().item()
gap_trained = rotation_gap(trained[10][0], trained[10][3]).item()
quote("overlap", overlap, abs=0.02)
quote("gap_trained", gap_trained, abs=1e-3)
aligned = (U[:, :10].T @ columns).abs().amax(0)  # each column's cosine with the principal direction nearest to it
quote("aligned", aligned.min().item(), abs=0.15 if FAST else 0.01)
assert 0 <= gap_trained < NEAR and overlap < (0.5 if FAST else 0.05)
print(f"trained: largest cosine between two columns {overlap:.4f}, gap {gap_trained:.6f} nats")

# %% [markdown]
# This rotation costs {{gap_turned:.3f}} nats, by the formula and by measurement. So the likelihood leaves the axes open, and
# the diagonal posterior decides: training goes to a $W$ with orthogonal columns, which are principal directions. In the
# trained VAE the cosine between two columns of $W$ is at most {{overlap:.3f}}, that between a column and its principal
# direction at least {{aligned:.3f}}, and what is left of the gap is {{gap_trained:.5f}} nats. A VAE's latents have preferred axes, and this is where they come from.
#
# ## What happens if the ELBO is taken at the mean?
#
# Many programs decode the posterior's *mean* instead of a draw when they evaluate. Then the sum
# $\sum_j s_j^2 \|w_j\|^2 / (2\sigma^2)$ is missing in the distortion. At the best parameters $s_j^2 = \sigma^2 / \lambda_j$ and
# $\|w_j\|^2 = \lambda_j - \sigma^2$, so what is missing is $\tfrac12 \sum_j (1 - \sigma^2/\lambda_j)$. The other way is honest
# but noisy: one draw of $z$ for each picture.

# %%
W, variance = best_decoder(10)
V, log_variance = best_encoder(W, variance)
mean = x @ V.T
_, _, kl = terms(x, W, V, log_variance, variance)


def elbo_at(z):
    """The ELBO with the distortion at this z, averaged over the pictures."""
    log_px_z = torch.distributions.Normal(z @ W.T, variance.sqrt()).log_prob(x).sum(-1)
    return (log_px_z - kl.sum(-1)).mean().item()


generator = torch.Generator().manual_seed(0)
draws = torch.tensor(
    [elbo_at(mean + torch.exp(0.5 * log_variance) * torch.randn(N, 10, generator=generator)) for _ in range(50)]
)
too_much = elbo_at(mean) - best_log_px(10).item()
quote("at_mean", elbo_at(mean), rel=1e-6)
quote("too_much", too_much, rel=1e-6)
quote("draws_mean", draws.mean().item(), abs=0.01)
quote("draws_std", draws.std().item(), abs=0.01)
assert abs(too_much - 0.5 * (1 - variance / eigenvalues[:10]).sum().item()) < 1e-9
assert abs(draws.mean() - best_log_px(10)) < 4 * draws.std() / math.sqrt(len(draws))

# %% [markdown]
# At the mean, the "ELBO" is {{at_mean:.3f}} nats. That is {{too_much:.3f}} above $\log p(x)$, which no bound can be. With
# one draw a picture it is {{draws_mean:.3f}} on average over 50 repetitions, which is right, with a standard deviation of
# {{draws_std:.3f}} nats. The third digit needs many draws, or the average in closed form as in `terms`.
#
# ## Rate and distortion: water-filling
#
# Now fix $\sigma^2$, and give the VAE as many latents as it likes. How much will the code tell? Put the best parameters
# into the KL of latent $j$. Its mean varies over the pictures with variance $1 - \sigma^2/\lambda_j$, and
# $s_j^2 = \sigma^2 / \lambda_j$. The two add up to 1, and only the logarithm remains:
#
# $$\text{rate}_j = \tfrac12\left(s_j^2 + E[\text{mean}_j^2] - 1 - \log s_j^2\right) = \tfrac12 \log \frac{\lambda_j}{\sigma^2}.$$
#
# Along direction $j$ the squared error is then $\sigma^2$, whatever $\lambda_j$. A direction with $\lambda_j \le \sigma^2$
# gets no latent: its column of $W$ is 0, its rate 0, and its squared error all of $\lambda_j$. Altogether
#
# $$\text{rate} = \tfrac12 \sum_j \max\Big(0, \log \frac{\lambda_j}{\sigma^2}\Big), \qquad
# E\|x - \hat x\|^2 = \sum_j \min(\lambda_j, \sigma^2).$$
#
# Claude Shannon's theory of coding has the same formula. It is called **water-filling** (in books on coding: reverse water-filling).
# $\sigma^2$ is a water level, what lies under water is error, and what stands out is told by the code. A latent is
# **active** where $\lambda_j > \sigma^2$.


# %%
def water_filling(variance, eigenvalues=eigenvalues):
    """Rate in nats, squared error, and number of active latents of the best linear VAE at a fixed σ²."""
    rate = 0.5 * torch.log(eigenvalues.clamp(min=variance) / variance).sum().item()
    squared_error = eigenvalues.clamp(max=variance).sum().item()
    return rate, squared_error, int((eigenvalues > variance).sum())


def measured(W, V, log_variance, variance):
    """Rate and squared error over the pictures, and the number of latents that tell over a thousandth of a nat."""
    squared_error, _, kl = terms(x, W, V, log_variance, variance)
    return kl.sum(-1).mean().item(), squared_error.mean().item(), int((kl.mean(0) > 1e-3).sum())


rate, squared_error, active = water_filling(0.02)
quote("rate_fixed", rate, abs=1e-4)
quote("error_fixed", squared_error, abs=1e-5)
quote("active_fixed", active, abs=0.1)
W, variance = best_decoder(D, 0.02)
rate_best, error_best, _ = measured(W, *best_encoder(W, variance), variance)
assert abs(rate - rate_best) < 1e-9 and abs(error_best - squared_error) < 1e-9
print(f"σ² = 0.02: rate {rate:.3f} nats, squared error {squared_error:.5f}, {active} active latents")

points = {}
for level in (0.02, 0.08, 0.3):
    *parameters, _ = train(40, variance=level)
    points[level] = measured(*parameters)
    rate, squared_error, _ = water_filling(level)
    print(
        f"σ² = {level}: trained {points[level][0]:.4f} nats, {points[level][1]:.5f}; exact {rate:.4f}, {squared_error:.5f}"
    )
    assert abs(points[level][0] - rate) < (0.5 if FAST else 0.02), "the rate is not that of water-filling"
    assert abs(points[level][1] / squared_error - 1) < (0.03 if FAST else 0.001), "the squared error is not"
quote("rate_trained", points[0.02][0], abs=0.01 if not FAST else 0.1)
quote("error_trained", points[0.02][1], rel=0.001 if not FAST else 0.01)
quote("active_trained", points[0.02][2], abs=10 if FAST else 0.1)
assert FAST or points[0.02][2] == active

# %% tags=["hide-input"] alt="Left: bars of the first 40 variances on a log scale with a water level at 0.02; 30 bars stand out of the water. Right: the curve of rate against squared error; three trained VAEs lie on it."
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
shown = eigenvalues[:40]
left.bar(range(1, 41), shown, color=BLUE, label="told by the code")
left.bar(range(1, 41), shown.clamp(max=0.02), color=ORANGE, hatch="///", edgecolor="white", label="squared error")
left.axhline(0.02, color="black", linestyle="--", linewidth=1)
left.text(40.5, 0.022, "$\\sigma^2 = 0.02$", ha="right")
left.set(yscale="log", ylim=(0.004, 1), xlabel="principal direction $j$", ylabel="variance $\\lambda_j$")
left.legend()
levels = torch.logspace(-2.5, 0, 200).tolist()
curve = [water_filling(level) for level in levels]
right.plot([error for _, error, _ in curve], [rate for rate, _, _ in curve], color=BLUE, label="water-filling")
for level, (rate, squared_error, _) in points.items():
    right.plot(squared_error, rate, "o", color=ORANGE, label="trained" if level == 0.02 else None)
    right.annotate(f" $\\sigma^2 = {level}$", (squared_error, rate), xytext=(4, 4), textcoords="offset points")
right.set(xlabel="squared error $E\\|x - \\hat x\\|^2$", ylabel="rate (nats per picture)", xlim=(0, 5), ylim=(-1, 40))
right.legend()
# %% [markdown]
# *Figure 5.3. Left: the water level. Right: rate against squared error for all levels; every trained VAE lies on the
# curve.*
#
# | At $\sigma^2 = 0.02$ | Rate | Squared error | Active latents |
# |---|---|---|---|
# | water-filling | {{rate_fixed:.3f}} nats | {{error_fixed:.5f}} | {{active_fixed:.0f}} of 64 |
# | trained | {{rate_trained:.3f}} nats | {{error_trained:.5f}} | {{active_trained:.0f}} of 40 |
#
# The VAE had 40 latents and used {{active_trained:.0f}}, as the formula says. The others fell silent: each tells less
# than 0.001 nats. That is no failure of training: the
# optimum is silent there. [Chapter 6](06_collapse.py) begins with these latents.
#
# ## β is σ²
#
# A β-VAE counts the rate β times. Write out what the loss then holds, leaving out what does not depend on $W$, $V$ or
# `log_variance`:
#
# $$\frac{E\|x - \hat x\|^2}{2\sigma^2} + \beta\,\text{rate}
# = \beta \left(\frac{E\|x - \hat x\|^2}{2\,(\beta\sigma^2)} + \text{rate}\right).$$
#
# The bracket is the loss at $\beta = 1$ and variance $\beta\sigma^2$. So, while $\sigma^2$ is fixed, β does nothing that
# $\sigma^2$ could not do. Water-filling holds with the level $\beta\sigma^2$. Predict: β = 4 at $\sigma^2 = 0.02$ gives the
# rate of $\sigma^2 = 0.08$.

# %%
BETA = 4
*parameters, _ = train(
    40, variance=0.02, loss=lambda squared_error, distortion, kl: (distortion + BETA * kl.sum(-1)).mean()
)
rate_beta, error_beta, _ = measured(*parameters)
rate, squared_error, _ = water_filling(BETA * 0.02)
quote("rate_beta", rate_beta, abs=0.1 if FAST else 0.01)
quote("rate_level", rate, abs=1e-4)
quote("rate_level_trained", points[0.08][0], abs=0.1 if FAST else 0.01)
print(f"β = 4 at σ² = 0.02: {rate_beta:.4f} nats; β = 1 at σ² = 0.08: {points[0.08][0]:.4f}; exact {rate:.4f}")
assert abs(rate_beta - rate) < (0.5 if FAST else 0.02)
assert abs(error_beta / squared_error - 1) < (0.03 if FAST else 0.001)

# %% [markdown]
# With β = 4 the rate is {{rate_beta:.3f}} nats, with $\sigma^2 = 0.08$ it is {{rate_level_trained:.3f}}, and water-filling says
# {{rate_level:.3f}}. One thing does differ: what the model *claims*. The β-VAE claims pixels with a variance of 0.02, and
# its $\log p(x)$ is judged by that.
#
# ## What happens if the squared error is a mean?
#
# The usual slip: `F.mse_loss` averages over the $D$ pixels, while the KL is summed. The loss is
# $E\|x - \hat x\|^2 / D + \text{rate}$. Compare with $E\|x - \hat x\|^2 / (2\sigma^2) + \text{rate}$: the slip means
#
# $$\sigma^2 = D / 2 = 32.$$
#
# That is far above the water. How far? A pixel with values in [0, 1] has a variance of at most ¼. So all eigenvalues
# together are at most $D/4$, whatever the pictures. No eigenvalue can reach $D/2$. With this loss *every* linear VAE, on
# every data set in [0, 1], collapses completely.

# %%
*parameters, _ = train(
    40, variance=1.0, loss=lambda squared_error, distortion, kl: (squared_error / D + kl.sum(-1)).mean()
)
rate_slip, error_slip, _ = measured(*parameters)
quote("rate_slip", abs(rate_slip), abs=1e-3)
quote("error_slip", error_slip, rel=1e-3)
assert pictures.var(0, correction=0).max() <= 1 / 4 and eigenvalues.sum() <= D / 4 < D / 2
assert water_filling(D / 2)[0] == 0 and rate_slip < (1e-2 if FAST else 1e-4)
print(
    f"mean over pixels, KL summed: rate {rate_slip:.1e} nats, squared error {error_slip:.4f}, all there is {S.trace():.4f}"
)

# %% [markdown]
# After training the rate is {{rate_slip:.4f}} nats, and the squared error is {{error_slip:.4f}}: all the variance there is. The
# decoder gives the mean picture. On MNIST, with $D = 784$, the slip means $\sigma = \sqrt{392} \approx 20$ gray ranges. Nobody would
# write that down as an assumption about pixels.
#
# ## Exercises
#
# **Exercise 1.** Write the exact posterior $p(z|x)$ of a linear VAE whose columns need not be orthogonal.
#
# <details><summary>Hint</summary>
#
# The two formulas with $M = W^\top W + \sigma^2 I$ stand under "The best encoder".
#
# </details>


# %% tags=["exercise"]
def posterior(x, W, variance):
    """Mean [N, q] and covariance [q, q] of p(z|x)."""
    # begin solution
    M = W.T @ W + variance * torch.eye(W.shape[1])
    return x @ torch.linalg.solve(M, W.T).T, variance * torch.linalg.inv(M)
    # end solution


# %% tags=["check"]
W = torch.randn(D, 3, generator=torch.Generator().manual_seed(1))
found_mean, found_covariance = posterior(x[:5], W, 0.3)
# x and z together are normal, with these blocks of the covariance; conditioning is known for any normal vector.
xx, xz, zz = W @ W.T + 0.3 * torch.eye(D), W, torch.eye(3)
assert torch.allclose(found_mean, x[:5] @ torch.linalg.solve(xx, xz)), "the mean is not that of z given x"
assert torch.allclose(found_covariance, zz - xz.T @ torch.linalg.solve(xx, xz)), "the covariance is not"

# %% [markdown]
# **Exercise 2.** A program minimizes `a * squared_error + b * kl`, both summed within a picture and averaged over
# pictures. Which $\sigma^2$ does it mean?
#
# <details><summary>Hint</summary>
#
# Divide the loss by $b$, which moves no minimum, and compare with $E\|x - \hat x\|^2 / (2\sigma^2) + \text{rate}$.
#
# </details>


# %% tags=["exercise"]
def hidden_variance(a, b):
    """The σ² at which this loss is minus an ELBO, but for constants and a factor."""
    # begin solution
    return b / (2 * a)
    # end solution


# %% tags=["check"]
for a, b in ((1.0, 1.0), (25.0, 1.0), (0.5, 0.1)):
    W, variance = best_decoder(10, hidden_variance(a, b))
    assert W.any(), f"a = {a}, b = {b}: at this σ² every latent would be silent"
    parameters = [W, *best_encoder(W, variance)]
    for parameter in parameters:
        parameter.requires_grad_()
    error, _, kl = terms(x, *parameters, variance)
    (a * error + b * kl.sum(-1)).mean().backward()  # at its minimum, a loss has no slope
    slope = max(parameter.grad.abs().max().item() for parameter in parameters)
    assert slope < 1e-9, f"a = {a}, b = {b}: the best linear VAE at this σ² is not the best for the loss"

# %% [markdown]
# **Exercise 3.** Two latents with eigenvalues $\lambda_1, \lambda_2$ are rotated by an angle. How large is the gap between
# $\log p(x)$ and the ELBO with the best diagonal posterior? At which angle is it largest?
#
# <details><summary>Hint</summary>
#
# With $W R$ in place of $W$, $M$ becomes $R^\top M R$, and $M = \mathrm{diag}(\lambda_1, \lambda_2)$ before the rotation.
# $|M|$ does not change. $M_{11} = \lambda_1 \cos^2 + \lambda_2 \sin^2$.
#
# </details>


# %% tags=["exercise"]
def gap_at(angle, first, second):
    """Nats; the angle in radians, and the two eigenvalues."""
    # begin solution
    c, s = math.cos(angle) ** 2, math.sin(angle) ** 2
    return 0.5 * math.log((first * c + second * s) * (first * s + second * c) / (first * second))
    # end solution


# %% tags=["check"]
for angle in (0.0, 0.4, math.pi / 4, 1.2):
    c, s = math.cos(angle), math.sin(angle)
    R = torch.tensor([[c, -s], [s, c]])
    exact_posterior = torch.distributions.MultivariateNormal(
        torch.zeros(2), precision_matrix=R.T @ torch.diag(torch.tensor([0.7, 0.1])) @ R / 0.02
    )
    diagonal = torch.distributions.MultivariateNormal(
        torch.zeros(2), torch.diag(1 / exact_posterior.precision_matrix.diagonal())
    )
    divergence = torch.distributions.kl_divergence(diagonal, exact_posterior).item()
    assert abs(gap_at(angle, 0.7, 0.1) - divergence) < 1e-9, f"at {angle:.2f} radians the gap is {divergence:.4f}"
worst = max(range(91), key=lambda degrees: gap_at(math.radians(degrees), 0.7, 0.1))
assert worst == 45, "at 45 degrees both diagonal elements of M are equal, and the gap is largest"

# %% [markdown]
# **Exercise 4.** How high must the water stand for a given rate? Find $\sigma^2$ so that the code tells `rate` nats.
#
# <details><summary>Hint</summary>
#
# The rate falls as $\sigma^2$ rises. Halve an interval of $\log \sigma^2$ some sixty times, and use `water_filling`.
#
# </details>


# %% tags=["exercise"]
def level_for(rate, eigenvalues):
    """The σ² at which water-filling has this rate in nats; eigenvalues [D]."""
    # begin solution
    low, high = math.log(eigenvalues.max()) - 2 * rate - 1, math.log(eigenvalues.max())
    for _ in range(80):
        middle = (low + high) / 2
        if water_filling(math.exp(middle), eigenvalues)[0] > rate:
            low = middle
        else:
            high = middle
    return math.exp(middle)
    # end solution


# %% tags=["check"]
two = torch.tensor([0.7, 0.1])
assert abs(level_for(3.0, two) / (math.sqrt(0.7 * 0.1) * math.exp(-3.0)) - 1) < 1e-6, "3 nats, both latents active"
assert abs(level_for(0.5, two) / (0.7 * math.exp(-1.0)) - 1) < 1e-6, "half a nat: only the first latent is active"

# %% [markdown]
# ## Summary
#
# - A linear VAE is probabilistic PCA. $\log p(x)$ is exact, and so is the best encoder; the gap is 0.
# - On the digits with 10 latents: {{best_10:.3f}} nats exactly, {{reached_10:.3f}} trained.
# - The diagonal posterior chooses the axes. Rotated latents have the same $\log p(x)$ and a lower ELBO.
# - The ELBO is an average over draws. At the posterior's mean it came out {{too_much:.2f}} nats above $\log p(x)$.
# - **Water-filling**: latent $j$ carries $\tfrac12 \log(\lambda_j / \sigma^2)$ nats if $\lambda_j > \sigma^2$, and nothing else.
#   At $\sigma^2 = 0.02$: {{rate_fixed:.3f}} nats, squared error {{error_fixed:.5f}}, {{active_fixed:.0f}} active.
# - At a fixed $\sigma^2$, β only multiplies $\sigma^2$.
# - A mean squared error with a summed KL means $\sigma^2 = D/2$. Nothing in [0, 1] stands out of that water.
#
# Next: [chapter 6](06_collapse.py) asks when latents fall silent in deeper models, and when that is a fault.
#
# ## References
#
# 1. M. E. Tipping and C. M. Bishop (1999). *Probabilistic principal component analysis.* J. R. Statist. Soc. B 61,
#    611–622. The likelihood: equation (4); the posterior: (6); the best $W$: (7); the best $\sigma^2$: (8).
# 2. J. Lucas, G. Tucker, R. Grosse and M. Norouzi (2019). *Don't Blame the ELBO! A Linear VAE Perspective on Posterior
#    Collapse.* arXiv:1911.02469. The linear VAE, and that its ELBO chooses the principal directions: section 4.
# 3. M. Rolínek, D. Zietlow and G. Martius (2019). *Variational Autoencoders Pursue PCA Directions (by Accident).*
#    arXiv:1812.06775. The same for deep VAEs: section 3.
# 4. T. M. Cover and J. A. Thomas (2006). *Elements of Information Theory,* 2nd edition. Water-filling: theorem 10.3.3.
# 5. A. A. Alemi et al. (2018). *Fixing a Broken ELBO.* arXiv:1711.00464. Curves of rate and distortion of VAEs.
# 6. I. Higgins et al. (2017). *beta-VAE.* ICLR 2017. The weight β: equation (4).
