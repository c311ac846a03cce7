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
# # The clinic
#
# Seventeen questions that learners of VAEs ask again and again. Each has a short answer, an experiment of a few
# seconds, and a place to read more. Below, four VAEs with one mistake each, beside one that is well.

# %% tags=["hide-input"] alt="Five rows of ten small pictures, each row drawn by another VAE. The first row looks like digits; a mean over pixels gives the same blur ten times, a ReLU gives pictures that are much alike, uniform noise distorts them, and two sigmoids leave a few bright strokes."
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from vaelab.course import FAST, quote

torch.set_num_threads(1)
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008: safe for the color-blind
EPOCHS = 8 if FAST else 32
PIXELS, LATENTS, BATCH = 64, 8, 64

levels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))  # [1797, 64] from 0 to 16; [1797]
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
train_x, test_x = (levels[order] > 8).float().split([1437, 360])  # each pixel is 1 (ink) or 0
train_gray, test_gray = (levels[order] / 16).float().split([1437, 360])  # each pixel is a gray level from 0 to 1
train_labels, test_labels = labels[order].split([1437, 360])


class VAE(nn.Module):
    def __init__(self, on_mean=None, on_output=None, positive=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 2 * LATENTS))
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 128), nn.ReLU(), nn.Linear(128, PIXELS))
        self.on_mean, self.on_output = on_mean or nn.Identity(), on_output or nn.Identity()
        self.positive = positive or torch.exp

    def encode(self, x):
        mean, raw = self.encoder(x).chunk(2, dim=-1)
        return self.on_mean(mean), raw if self.positive is torch.exp else self.positive(raw).log()

    def decode(self, z):
        return self.on_output(self.decoder(z))


def kl_to_prior(mean, log_variance):
    """The rate of each picture, in nats: [B, 8] -> [B]."""
    return 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(-1)


def log_likelihood(logits, x):
    """log p(x|z) of pictures of zeros and ones, in nats, summed over the pixels: [B]."""
    return (x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)).sum(-1)


def terms(model, x, noise=torch.randn_like):
    """Distortion and rate of each picture: [B], [B]."""
    mean, log_variance = model.encode(x)
    z = mean + torch.exp(0.5 * log_variance) * noise(mean)
    return -log_likelihood(model.decode(z), x), kl_to_prior(mean, log_variance)


def negative_elbo(model, x, noise=torch.randn_like):
    """Sums over pixels and latents, and one mean, over the pictures."""
    distortion, kl = terms(model, x, noise)
    return (distortion + kl).mean()


def train(loss=negative_elbo, data=train_x, epochs=EPOCHS, **kwargs):
    torch.manual_seed(0)
    model = VAE(**kwargs)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for _ in range(epochs):
        for x in data[torch.randperm(len(data))].split(BATCH):
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
    return model


@torch.no_grad()
def evaluate(model, draws=20):
    """Rate, distortion and ELBO of held-out pictures, in nats per picture, with right sums and normal noise."""
    generator = torch.Generator().manual_seed(0)
    repeated = test_x.expand(draws, -1, -1)
    distortion, kl = terms(model, repeated, lambda mean: torch.randn(mean.shape, generator=generator))
    distortion, rate = distortion.mean().item(), kl.mean().item()
    return {"rate": rate, "distortion": distortion, "elbo": -(rate + distortion)}


def pixel_mean_loss(model, x):
    distortion, kl = terms(model, x)
    return distortion.mean() / PIXELS + kl.mean()


patients = {
    "well": train(),
    "mean over\npixels": train(pixel_mean_loss),
    "ReLU on\nthe mean": train(on_mean=nn.ReLU()),
    "uniform\nnoise": train(lambda model, x: negative_elbo(model, x, torch.rand_like)),
    "two\nsigmoids": train(on_output=nn.Sigmoid()),
}
well, pixel_mean, relu_mean, uniform_noise, two_sigmoids = patients.values()
found = {name: evaluate(model) for name, model in patients.items()}


@torch.no_grad()
def show(rows):
    """Rows of ten pictures, [10, 64] each, by name. White is 1, black is 0."""
    _, axes = plt.subplots(len(rows), 10, figsize=(8, 0.85 * len(rows)), layout="constrained")
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.view(8, 8), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")


with torch.no_grad():
    z = torch.randn(10, LATENTS, generator=torch.Generator().manual_seed(3))
    drawn = {name: model.decode(z) for name, model in patients.items()}
show({name: a if name == "two\nsigmoids" else a.sigmoid() for name, a in drawn.items()})
# %% [markdown]
# *Figure C.1. Ten pictures that each of five VAEs draws, from the same ten codes. The row names tell what is wrong:
# questions 1, 5, 7 and 8.*
#
# | Question | Short answer |
# |---|---|
# | <a href="#q1">1. Sum or mean?</a> | Sum over pixels and latents, mean over pictures. A mean over 64 pixels makes the KL count {{weight_mean:.0f}} times: it falls from {{rate_well:.1f}} to {{rate_mean:.0e}} nats. |
# | <a href="#q2">2. Does the KL need a weight when the batch or the data set grows?</a> | No: its weight stays {{weight_right:.2f}}. A factor of batch/data is a β of {{beta_batch:.3f}}. |
# | <a href="#q3">3. Divide by the batch size?</a> | With Adam a sum in place of a mean changes {{adam_change:.3%}} of the path; with SGD it is a learning rate {{sgd_change:.0f}} times as large. |
# | <a href="#q4">4. Why log-variance?</a> | Any number is allowed. Without it {{negative:.0%}} of the variances start negative. |
# | <a href="#q5">5. An activation on the mean?</a> | None. A ReLU costs {{cost_relu:.1f}} nats. |
# | <a href="#q6">6. Why reparameterize?</a> | A plain draw gives the encoder the gradient {{plain_gradient:.0f}} where 2 is right. |
# | <a href="#q7">7. rand or randn?</a> | randn. Uniform noise costs {{cost_uniform:.0f}} nats. |
# | <a href="#q8">8. Sigmoid in the decoder and in the loss?</a> | One of the two. Both cost {{cost_sigmoids:.0f}} nats. |
# | <a href="#q9">9. Why does my KL go to zero?</a> | A latent pays only above the noise: of 64 latents {{active_small:.0f}} live at σ² = 0.02, {{active_half:.0f}} at ½, {{active_mean:.0f}} at 32. |
# | <a href="#q10">10. Is a KL of zero ideal?</a> | No. The best ELBO here has {{rate_well:.1f}} nats; zero costs {{cost_zero:.1f}}, too many ({{rate_most:.0f}}) cost {{cost_most:.0f}}. |
# | <a href="#q11">11. Binary cross-entropy on gray levels?</a> | A loss, but no likelihood. A perfect copy still costs {{bce_perfect:.1f}} nats. |
# | <a href="#q12">12. Which σ does MSE mean?</a> | Sum of squares: {{sigma_sum:.2f}}. Mean over 64 pixels: {{sigma_mean:.2f}}. The best one here: {{sigma_best:.2f}}. |
# | <a href="#q13">13. Can the loss be negative?</a> | Yes, with densities: below σ = {{sigma_zero:.3f}}. Here it is {{loss_gray:.0f}} nats. |
# | <a href="#q14">14. Is one sample of z enough?</a> | To train, yes: ten gain {{gain_ten:.1f}} nats for ten times the decoding. |
# | <a href="#q15">15. Where does NaN come from?</a> | exp above {{exp_limit:.1f}}, a sigmoid above {{sigmoid_limit:.1f}}, a σ that shrinks to 0. |
# | <a href="#q16">16. Generate from N(0, I) or from N(μ, σ)?</a> | N(0, I). N(μ, σ) of a picture gives its own label {{same_label:.0%}} of the time. |
# | <a href="#q17">17. Sample the decoder or show its mean?</a> | The model is what it samples. Its means have {{variance_means:.0%}} of the variance of the data, its samples {{variance_samples:.0%}}. |
#
# The words are those of [chapter 0](00_a_broken_vae.py). The **encoder** gives for a picture $x$ a normal distribution
# $q(z|x)$ of the code $z$, with mean $\mu$ and standard deviation $\sigma$ for each of 8 **latents**. The **decoder**
# gives $p(x|z)$. **Distortion** is $-\log p(x|z)$, averaged over $q(z|x)$. **Rate** is the KL divergence of $q(z|x)$
# from the **prior** $p(z) = N(0, I)$. In closed form it is $\tfrac12 \sum_j (\sigma_j^2 + \mu_j^2 - 1 - \log
# \sigma_j^2)$. Both are in nats per picture, and $\mathrm{ELBO} = -(\text{distortion} + \text{rate})$; larger is
# better. A weight on the rate is called $\beta$. The data are scikit-learn's digits of 8 × 8 pixels. Unless said
# otherwise each pixel is 0 or 1, and the numbers are for 360 pictures that were not trained on.
#
# <a id="q1"></a>
#
# ## 1. Should I sum or average over the pixels?
#
# **Sum over pixels, sum over latents; average over pictures.** A mean over the $D = 64$ pixels divides the distortion
# by 64. Multiply the whole loss by 64, which moves no minimum: now the rate counts {{weight_mean:.0f}} times.

# %%
with torch.no_grad():
    torch.manual_seed(0)
    distortion, kl = terms(well, test_x)
    logits = well.decode(well.encode(test_x)[0])
    bce = F.binary_cross_entropy_with_logits(logits, test_x)  # PyTorch's default is reduction="mean"
    assert torch.isclose(bce * PIXELS, -log_likelihood(logits, test_x).mean())
weight_mean = quote("weight_mean", (-log_likelihood(logits, test_x).mean() / bce).item(), rel=1e-4)
assert abs(weight_mean - PIXELS) < 1e-2
both_means = distortion.mean() / PIXELS + kl.mean() / LATENTS
assert torch.isclose(both_means * PIXELS, (distortion + 8 * kl).mean())  # means over both: β = 64/8
rate_well = quote("rate_well", found["well"]["rate"], abs=0.2)
elbo_well = quote("elbo_well", found["well"]["elbo"], abs=0.3)
rate_mean = quote("rate_mean", found["mean over\npixels"]["rate"], rel=0.9)
elbo_mean = quote("elbo_mean", found["mean over\npixels"]["elbo"], abs=0.2)
assert rate_mean < 1e-3 < rate_well
print(f"weight {weight_mean:.1f}; rate {rate_well:.2f} with sums, {rate_mean:.0e} with a mean over pixels")

# %% [markdown]
# | The loss | Rate | ELBO |
# |---|---|---|
# | sums over pixels and latents | {{rate_well:.2f}} | {{elbo_well:.1f}} |
# | mean over pixels, sum over latents | {{rate_mean:.0e}} | {{elbo_mean:.1f}} |
#
# *Table C.1. Two VAEs that differ only in `.sum` and `.mean`.*
#
# With the mean the code says nothing any more. A mean over pixels *and* over the 8 latents is β = 64/8 = 8:
# milder, but a β all the same. With a squared error of pixels
# between 0 and 1, the mean makes every linear VAE collapse (question 9).
#
# Read more: Kingma & Welling 2013, equation 10 and appendix B (sums in both terms); Higgins et al. 2017, equation 4 (β
# on purpose) and section 4.2 (what β means when the numbers of pixels and latents change). [Chapter
# 0](00_a_broken_vae.py).
#
# <a id="q2"></a>
#
# ## 2. Does the KL need a weight when the batch or the data set grows?
#
# **No.** With one mean over the pictures, for both terms, the rate counts {{weight_right:.2f}} times for every batch
# size and every number of pictures. To see it, take the gradient that each term gives to the encoder, averaged over all
# batches. How long is the gradient of the rate, compared with that of the distortion? It is measured as a multiple of
# what the whole data set gives.


# %% alt="Weight of the rate against the batch size from 16 to 1024, both on logarithmic axes. One line is flat at 1, one rises from about 1,000 to 65,000, one rises from 0.016 to 1."
def gradient(value):
    parameters = list(well.encoder.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


N = 1024
epsilon = torch.randn(N, LATENTS, generator=torch.Generator().manual_seed(0))  # the same noise for every batch size


def balance(convention, B):
    """Length of the rate's gradient divided by the distortion's, both averaged over the batches of B pictures."""
    sums = [0, 0]
    for x, noise in zip(train_x[:N].split(B), epsilon.split(B), strict=True):
        distortion, kl = terms(well, x, lambda mean, noise=noise: noise)
        sums = [total + gradient(part) for total, part in zip(sums, convention(distortion, kl, B), strict=True)]
    return (sums[1].norm() / sums[0].norm()).item()


conventions = {
    "mean over pictures for both": lambda distortion, kl, B: (distortion.mean(), kl.mean()),
    "mean over pixels and pictures; KL summed": lambda distortion, kl, B: (distortion.mean() / PIXELS, kl.sum()),
    "KL times batch/data": lambda distortion, kl, B: (distortion.mean(), kl.mean() * B / N),
}
sizes = [16, 64, 256, 1024]
truth = balance(conventions["mean over pictures for both"], N)
weights = {name: [balance(convention, B) / truth for B in sizes] for name, convention in conventions.items()}
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for (name, values), style, color in zip(weights.items(), ("o-", "s--", "^:"), (GREEN, ORANGE, BLUE), strict=True):
    axis.loglog(sizes, values, style, color=color, label=name)
axis.set(xlabel="batch size (pictures)", ylabel="how often the rate counts", ylim=(5e-3, 1e7), xticks=sizes)
axis.set_xticks(sizes, [f"{B:,}" for B in sizes])
axis.minorticks_off()
axis.legend(ncols=1, fontsize=8, loc="upper left")
# %% tags=["hide-input"]
right, summed, shrunk = (torch.tensor(values) for values in weights.values())
assert torch.allclose(right, torch.ones(4), rtol=1e-3)  # whatever the batch
assert torch.allclose(summed, PIXELS * torch.tensor(sizes).float(), rtol=1e-3)  # B · D
assert torch.allclose(shrunk, torch.tensor(sizes) / N, rtol=1e-3)  # B / N
quote("weight_right", right[0].item(), rel=1e-3)
quote("weight_16", summed[0].item(), rel=2e-3)
quote("weight_1024", summed[-1].item(), rel=2e-3)
beta_batch = quote("beta_batch", BATCH / len(train_x), abs=1e-6)


def batch_over_data_loss(model, x):
    distortion, kl = terms(model, x)
    return (distortion + BATCH / len(train_x) * kl).mean()


low_beta = evaluate(train(batch_over_data_loss))
rate_low_beta = quote("rate_low_beta", low_beta["rate"], rel=0.04)
elbo_low_beta = quote("elbo_low_beta", low_beta["elbo"], abs=0.6)
assert rate_low_beta > 2 * rate_well and elbo_low_beta < elbo_well - 1
print(f"β = {beta_batch:.3f}: {low_beta}")

# %% [markdown]
# *Figure C.2. How often the rate counts, in three conventions. A flat line at 1 is right.*
#
# The mean over pixels with a summed KL counts it {{weight_16:,.0f}} times at a batch of 16, and {{weight_1024:,.0f}}
# times at 1,024. With a factor of batch/data the weight depends on the size of the data set: here, with 64 of 1,437
# pictures, it is β = {{beta_batch:.3f}}, and for 64 of 60,000 it would be 0.001. Trained with it, the VAE spends
# {{rate_low_beta:.1f}} nats of rate in place of {{rate_well:.1f}}, and its ELBO falls from {{elbo_well:.1f}} to
# {{elbo_low_beta:.1f}}.
#
# Where does the factor come from? The ELBO of $N$ pictures together is estimated from $B$ of them as $\frac{N}{B}
# \sum_{i=1}^{B} \mathrm{ELBO}_i$. There the factor $N/B$ stands before *both* terms. In a Bayesian neural network the
# KL belongs to the weights, and there is one for the whole data set, so that each batch takes its share. In a VAE each
# picture has its own code and its own KL.
#
# Read more: Kingma & Welling 2013, equation 8 ($N/M$ before the whole bound, $M$ their batch size); Blundell et al.
# 2015, section 3.4 (the share of a batch, for weights). Asked in [PyTorch-VAE
# #40](https://github.com/AntixK/PyTorch-VAE/issues/40). [Chapter 2](02_the_evidence_lower_bound.py).
#
# <a id="q3"></a>
#
# ## 3. Should I divide the loss by the batch size?
#
# **If both terms are treated alike, it is only a matter of the learning rate.** Under plain gradient descent (SGD), a
# sum over $B$ pictures is a mean with a learning rate $B$ times as large. Adam divides its step by the size of the
# gradient, so there it changes {{adam_change:.3%}} of the path.


# %%
def walk(optimizer, lr, factor):
    """The weights after 30 steps of `factor` times the loss, less the weights before."""
    torch.manual_seed(0)
    model = VAE().double()  # so that what differs is the optimizer, and not the rounding
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = optimizer(model.parameters(), lr=lr)
    for x in train_x[: 10 * BATCH].double().repeat(3, 1).split(BATCH):
        optimizer.zero_grad()
        (factor * negative_elbo(model, x)).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach() - start


mean_sgd, sum_sgd = walk(torch.optim.SGD, 1e-4, 1), walk(torch.optim.SGD, 1e-4 / BATCH, BATCH)
assert torch.allclose(mean_sgd, sum_sgd, atol=1e-9)  # sum with lr / B is mean with lr
sgd_change = (walk(torch.optim.SGD, 1e-6, BATCH).norm() / walk(torch.optim.SGD, 1e-6, 1).norm()).item()
mean_adam, sum_adam = walk(torch.optim.Adam, 1e-3, 1), walk(torch.optim.Adam, 1e-3, BATCH)
adam_change = ((sum_adam - mean_adam).norm() / mean_adam.norm()).item()
quote("sgd_change", sgd_change, rel=0.02)
quote("adam_change", adam_change, rel=0.2)
assert abs(sgd_change / BATCH - 1) < 0.05 and adam_change < 1e-3
print(f"sum in place of mean: SGD goes {sgd_change:.1f} times as far, Adam's path changes by {adam_change:.3%}")

# %% [markdown]
# With small steps SGD goes {{sgd_change:.1f}} times as far with the sum over 64 pictures. With the learning rate
# divided by 64 it takes the very same path. So divide: then the learning rate keeps its meaning when the batch changes,
# and the printed loss is in nats per picture. What is wrong is to divide one of the two terms alone; that is question
# 2.
#
# Read more: Kingma & Ba 2015, section 2.1 (Adam's steps do not change when the gradient is rescaled, but for ε). Asked
# in [pytorch/examples #652](https://github.com/pytorch/examples/issues/652). [Chapter 0](00_a_broken_vae.py).
#
# <a id="q4"></a>
#
# ## 4. Why does the encoder give the log of the variance?
#
# **Because a network's output can be any number, and a variance cannot be negative.** If the output of this encoder,
# untrained, were the variance, {{negative:.0%}} of the variances would be below zero.

# %%
torch.manual_seed(0)
raw = VAE().encoder(train_x)[:, LATENTS:]
negative = (raw < 0).float().mean().item()
assert raw.sqrt().isnan().any()  # σ = √(negative): NaN before the first step

sigma = torch.tensor(0.01, dtype=torch.float64)
slopes = {}
for name, inverse, forward in (
    ("variance", sigma**2, lambda a: a),
    ("sigma", sigma, lambda a: a**2),
    ("log_variance", (sigma**2).log(), torch.exp),
):
    a = inverse.clone().requires_grad_()
    variance = forward(a)
    slopes[name] = torch.autograd.grad(0.5 * (variance - 1 - variance.log()), a)[0].item()
assert abs(slopes["log_variance"] - 0.5 * (sigma**2 - 1)) < 1e-9  # ½(σ² − 1): never below −½
assert abs(slopes["sigma"] - (sigma - 1 / sigma)) < 1e-9
assert abs(slopes["variance"] - 0.5 * (1 - 1 / sigma**2)) < 1e-6
softplus = evaluate(train(positive=F.softplus))

log_variance = 2 * torch.full((100_000,), 0.1).log()  # σ = 0.1
noise = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
std_right, std_wrong = ((c * log_variance).exp().mul(noise).std().item() for c in (0.5, 1.0))
assert abs(std_right - 0.1) < 1e-3 and abs(std_wrong - 0.1**2) < 1e-4
quote("negative", negative, abs=0.02)
for name, slope in slopes.items():
    quote(f"slope_{name}", slope, rel=1e-6)
quote("elbo_softplus", softplus["elbo"], abs=0.4)
quote("std_right", std_right, abs=1e-3)
quote("std_wrong", std_wrong, abs=1e-4)
assert abs(softplus["elbo"] - elbo_well) < 1.5
print(slopes, softplus)

# %% [markdown]
# The second reason is the slope of the KL. At σ = 0.01 its derivative is {{slope_variance:,.0f}} by the variance and
# {{slope_sigma:.0f}} by σ, but {{slope_log_variance:.2f}} by the log-variance. There it is $\tfrac12(\sigma^2 - 1)$,
# and never below −½. Other maps to positive numbers do as well: with `softplus` for the variance the ELBO is
# {{elbo_softplus:.1f}} nats, with `exp` {{elbo_well:.1f}}.
#
# The mistake to look for: $\sigma = \exp(\tfrac12 \log \sigma^2)$. Without the ½ the draws have a standard deviation of
# {{std_wrong:.2f}} where the KL is charged for {{std_right:.1f}}.
#
# Read more: Kingma & Welling 2013, equation 12 (log σ² as output). Asked at [Cross Validated
# 455560](https://stats.stackexchange.com/questions/455560). [Chapter 3](03_gradients_through_noise.py).
#
# <a id="q5"></a>
#
# ## 5. Should there be an activation on the mean?
#
# **No. The last layer of the encoder is linear.** The prior lies half below zero, so about half of the means do too:
# {{below:.0%}} in the VAE that is well. A ReLU cannot say them. It costs {{cost_relu:.1f}} nats here, and tanh, which
# keeps means between −1 and 1, {{cost_tanh:.1f}}.
#
# A case with an exact answer: one latent, $x = w z + \text{noise}$ of variance $s^2$. Then the true posterior is
# normal, with variance $v = s^2 / (w^2 + s^2)$ and mean $m = w x / (w^2 + s^2)$. With $\max(0, m)$ for its mean, the
# ELBO loses $m^2 / 2v$ for half of the data, and on average $w^2 / 4s^2$.

# %%
with torch.no_grad():
    below = (well.encode(test_x)[0] < 0).float().mean().item()
cost_relu = elbo_well - found["ReLU on\nthe mean"]["elbo"]
cost_tanh = elbo_well - evaluate(train(on_mean=nn.Tanh()))["elbo"]


def elbo_of_line(x, w, s2, mean, v):
    """The ELBO of x = w z + noise of variance s2, for q(z|x) = N(mean, v), without sampling."""
    log_px_z = -0.5 * (math.log(2 * math.pi * s2) + ((x - w * mean) ** 2 + w**2 * v) / s2)
    return log_px_z - 0.5 * (v + mean**2 - 1 - math.log(v))


w, s2 = 1.0, 0.1
total = w**2 + s2  # the variance of x
x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
px = torch.distributions.Normal(0, total**0.5).log_prob(x).exp()
v, m = s2 / total, w * x / total
assert torch.allclose(elbo_of_line(x, w, s2, m, v), px.log())  # the true posterior leaves no gap
lost = torch.trapezoid(px * (elbo_of_line(x, w, s2, m, v) - elbo_of_line(x, w, s2, m.relu(), v)), x).item()
assert abs(lost - w**2 / (4 * s2)) < 1e-6
quote("below", below, abs=0.03)
quote("cost_relu", cost_relu, abs=0.5)
quote("cost_tanh", cost_tanh, abs=0.4)
quote("lost_line", lost, abs=1e-6)
assert cost_relu > 0.5 and cost_tanh > 0.3
print(f"below zero {below:.0%}; ReLU costs {cost_relu:.2f}, tanh {cost_tanh:.2f}; on the line {lost:.4f} nats")

# %% [markdown]
# With $w = 1$ and $s^2 = 0.1$ that is {{lost_line:.1f}} nats per latent. There nothing but the encoder's mean was
# changed. A VAE that is trained with the ReLU learns to live with it, and its 8 latents together lose
# {{cost_relu:.1f}}.
#
# Read more: Kingma & Welling 2013, appendix C.2 (the mean is a linear layer). Asked at [Cross Validated
# 444386](https://stats.stackexchange.com/questions/444386). [Chapter 1](01_from_autoencoder_to_vae.py).
#
# <a id="q6"></a>
#
# ## 6. Why reparameterize?
#
# **Because a draw from `Normal(mean, std).sample()` has no gradient with respect to `mean` and `std`.** The encoder
# then learns from the KL alone, and the rate falls to {{rate_cut:.0e}} nats.
#
# Take $f(z) = z^2$ with $z \sim N(\mu, 1)$. Its expectation is $\mu^2 + 1$, so its gradient is $2\mu$. At $\mu = 1$,
# three ways to estimate it:

# %%
mean = torch.ones(1_000_000, dtype=torch.float64, requires_grad=True)
torch.manual_seed(0)
plain = torch.distributions.Normal(mean, 1.0).sample()  # cuts the graph
z = mean + 1.0 * torch.randn_like(mean)  # reparameterized; .rsample() is the same
pathwise = torch.autograd.grad((z**2).sum(), mean)[0]
score = (plain**2) * (plain - mean).detach()  # f(z) · d log q(z) / d mean
nothing = torch.autograd.grad((plain**2).mean() + 0 * mean.sum(), mean)[0]  # without 0 * mean autograd would refuse
quote("plain_gradient", nothing.sum().item(), abs=1e-9)
assert abs(pathwise.mean() - 2) < 0.02 and abs(pathwise.var() - 4) < 0.1  # exact: 2 and 4
assert abs(score.mean() - 2) < 0.05 and abs(score.var() - 30) < 2  # exact: 2 and 30
quote("variance_pathwise", pathwise.var().item(), rel=0.01)
quote("variance_score", score.var().item(), rel=0.03)


def cut_loss(model, x):
    mean, log_variance = model.encode(x)
    z = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance)).sample()
    return (kl_to_prior(mean, log_variance) - log_likelihood(model.decode(z), x)).mean()


cut = evaluate(train(cut_loss))
rate_cut = quote("rate_cut", cut["rate"], rel=0.9)
elbo_cut = quote("elbo_cut", cut["elbo"], abs=0.3)
assert rate_cut < 1e-3
print(f"variance: pathwise {pathwise.var():.2f}, score {score.var():.1f}; trained with a plain draw: {cut}")

# %% [markdown]
# | Estimator | Expectation | Variance, exact | measured |
# |---|---|---|---|
# | plain draw | {{plain_gradient:.0f}} | 0 | – |
# | reparameterized, $z = \mu + \sigma \varepsilon$ | 2 | 4 | {{variance_pathwise:.2f}} |
# | score function, $f(z)\, \partial \log q(z) / \partial \mu$ | 2 | 30 | {{variance_score:.1f}} |
#
# *Table C.2. Estimates of a gradient that is 2.*
#
# So it is not true that there is no other way; but the other way is noisier. The VAE that was trained with a plain draw
# has an ELBO of {{elbo_cut:.1f}} nats, in place of {{elbo_well:.1f}}.
#
# Read more: Kingma & Welling 2013, sections 2.2 and 2.4; Rezende et al. 2014, section 3; Mohamed et al. 2020, sections
# 4 and 5. [Chapter 3](03_gradients_through_noise.py).
#
# <a id="q7"></a>
#
# ## 7. Is it rand or randn?
#
# **`randn`, with n as in normal.** `rand` draws between 0 and 1. Then each $z$ lies on average {{uniform_mean:.2f}} σ
# above its mean, with a spread of {{uniform_std:.2f}} σ. The VAE that was trained so loses {{cost_uniform:.0f}} nats
# when it meets normal noise.
#
# Could one center and stretch the uniform noise to mean 0 and variance 1? It is a distribution like others, but the
# formula of the KL is for normal ones. It then charges too little, by the difference of the entropies, which is
# $\tfrac12 \log(\pi e / 6)$ per latent.

# %%
noise = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
assert abs(noise.mean() - 1 / 2) < 2e-3 and abs(noise.std() - 12**-0.5) < 2e-3  # exact for the uniform distribution
mean, sigma = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
z = torch.linspace(mean - 3**0.5 * sigma, mean + 3**0.5 * sigma, 10_001, dtype=torch.float64)
log_q = -torch.log(2 * 3**0.5 * sigma)  # the height of a uniform distribution of variance σ²
log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
kl_of_uniform = torch.trapezoid(log_q.exp() * (log_q - log_p), z)
uncharged = (kl_of_uniform - kl_to_prior(mean[None], 2 * sigma.log()[None])).item()
assert abs(uncharged - 0.5 * math.log(math.pi * math.e / 6)) < 1e-6
quote("uniform_mean", noise.mean().item(), abs=0.002)
quote("uniform_std", noise.std().item(), abs=0.002)
quote("uncharged", uncharged, abs=1e-5)
quote("uncharged_all", LATENTS * uncharged, abs=1e-4)
cost_uniform = quote("cost_uniform", elbo_well - found["uniform\nnoise"]["elbo"], rel=0.3)
assert cost_uniform > 3
print(f"uncharged {uncharged:.4f} nats per latent; trained with rand: {found['uniform' + chr(10) + 'noise']}")

# %% [markdown]
# That is {{uncharged:.3f}} nats per latent, and {{uncharged_all:.1f}} for 8 latents: an ELBO that is too good.
#
# Read more: Kingma & Welling 2013, section 2.4 and equation 10 (ε is standard normal). [Chapter 0](00_a_broken_vae.py).
#
# <a id="q8"></a>
#
# ## 8. A sigmoid in the decoder, and one in the loss?
#
# **One of the two, and best in the loss.** `binary_cross_entropy_with_logits` takes what comes before the sigmoid. If
# it gets what comes after, the probabilities end at 0.5 and {{twice_most:.3f}}. A black pixel then costs at least $\log
# 2 = 0.69$ nats, a white one $-\log {{twice_most:.3f}} = {{white_least:.2f}}$. No decoder gets below the sum.

# %%
twice_most = torch.sigmoid(torch.tensor(1.0)).item()
white_least, black_least = -math.log(twice_most), math.log(2)
floor = (test_x * white_least + (1 - test_x) * black_least).sum(-1).mean().item()
best = torch.where(test_x == 1, 1.0, 0.0)  # what a perfect decoder would say, as the outcome of its own sigmoid
assert abs(-log_likelihood(best, test_x).mean().item() - floor) < 1e-3
distortion_sigmoids = found["two\nsigmoids"]["distortion"]
assert distortion_sigmoids > floor > found["well"]["distortion"]
quote("twice_most", twice_most, abs=1e-6)
quote("white_least", white_least, abs=1e-6)
quote("floor", floor, abs=1e-3)
quote("distortion_well", found["well"]["distortion"], abs=0.4)
quote("distortion_sigmoids", distortion_sigmoids, abs=0.5)
cost_sigmoids = quote("cost_sigmoids", elbo_well - found["two\nsigmoids"]["elbo"], abs=0.7)
print(f"floor {floor:.2f}, reached {distortion_sigmoids:.2f}; well {found['well']['distortion']:.2f} nats")

# %% [markdown]
# The floor is {{floor:.1f}} nats; the VAE with two sigmoids reaches {{distortion_sigmoids:.1f}}, and the one that is
# well {{distortion_well:.1f}}. All in all the second sigmoid costs {{cost_sigmoids:.0f}} nats of ELBO. To find it,
# print the smallest and the largest probability that the loss sees.
#
# Read more: Kingma & Welling 2013, equation 11 (one sigmoid). [Chapter 0](00_a_broken_vae.py), exercise 3.
#
# <a id="q9"></a>
#
# ## 9. Why does my KL go to zero?
#
# **Because the code costs more than it saves, or because the encoder is not told what it saves.** In a linear VAE the
# border is known exactly. Let λ be the variance of the data along one direction, and σ² the variance of the decoder's
# noise. A latent lives if λ > σ², and then has a rate of $\tfrac12 \log(\lambda / \sigma^2)$. With a weight β, put βσ²
# for σ². Train one such latent for each of the 64 principal directions of the gray digits, and compare.


# %% alt="Rate of each of 64 latents, sorted by the variance of their direction. Trained values, as points, lie on the curve of the formula. It falls to zero where λ meets σ², about halfway, and is zero from there on."
def train_linear(variances, sigma_squared):
    """For each direction: x = w z + noise, and q(z|x) = N(a x, v). The expected ELBO is exact, without sampling."""
    w, a, log_v = (torch.full_like(variances, start).requires_grad_() for start in (0.3, 0.3, 0.0))
    optimizer = torch.optim.Adam([w, a, log_v], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        error = variances * (1 - w * a) ** 2 + w**2 * log_v.exp()
        distortion = 0.5 * (math.log(2 * math.pi * sigma_squared) + error / sigma_squared)
        rate = 0.5 * (log_v.exp() + a**2 * variances - 1 - log_v)
        (distortion + rate).sum().backward()
        optimizer.step()
        schedule.step()
    return rate.detach(), (log_v.exp() + a**2 * variances).detach()


variances = torch.linalg.eigvalsh(torch.cov((levels / 16).T, correction=0)).flip(0).clamp(min=0)
rate, code_variance = train_linear(variances, 0.02)
exact = 0.5 * (variances / 0.02).log().clamp(min=0)
assert torch.allclose(rate, exact, atol=5e-3)
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
axis.plot(range(1, 65), exact, "-", color=BLUE, label="½ log(λ/σ²), or 0")
axis.plot(range(1, 65), rate, "o", color=ORANGE, markersize=3.5, label="trained")
axis.axvline((exact > 0).sum() + 0.5, color="0.5", linestyle=":", label="λ = σ²")
axis.set(xlabel="latent, sorted by the variance λ of its direction", ylabel="rate (nats)")
axis.legend()
# %% tags=["hide-input"]
quote("rate_linear", rate.sum().item(), abs=0.02)
quote("rate_exact", exact.sum().item(), abs=1e-4)
assert abs(exact.sum() - 21.676) < 1e-3
quote("largest", variances[0].item(), abs=1e-5)
for name, sigma_squared in (("small", 0.02), ("half", 0.5), ("mean", PIXELS / 2)):
    quote(f"active_{name}", (variances > sigma_squared).sum().item(), abs=1e-9)
assert (rate > 1e-3).sum() == (variances > 0.02).sum()  # what is trained dies where the formula says
assert variances[0] < PIXELS / 4  # so it is for any pixels between 0 and 1
print(f"rate {rate.sum():.3f}, exact {exact.sum():.3f} nats")

# %% [markdown]
# *Figure C.3. The rate of each latent of a linear VAE with σ² = 0.02: trained, and by the formula.*
#
# All together the trained rates are {{rate_linear:.2f}} nats, the exact ones {{rate_exact:.2f}}. Of the 64 latents
# {{active_small:.0f}} live. At σ² = ½, which is what a sum of squared errors means (question 12), {{active_half:.0f}}
# live. With a mean over pixels σ² = 32, and the largest λ is {{largest:.2f}}: none lives.
#
# | What you see | Why | Question |
# |---|---|---|
# | the KL goes below 0.001 within a few epochs | mean over pixels, or another hidden β | 1, 2 |
# | the same, with a squared error | σ too large | 12 |
# | the same, though β = 1 | the draw cuts the gradient | 6 |
# | some latents are at 0, others not | what they would save costs more than it brings; often right | 10 |
# | it falls at first and rises later | the decoder cannot use the code yet | [chapter 6](06_collapse.py) |
# | a recurrent or autoregressive decoder | it can do without the code | [chapter 6](06_collapse.py) |
#
# Read more: Lucas et al. 2019 (the linear VAE; σ² decides whether the stationary point without a code is stable);
# Tipping & Bishop 1999, equations 7 and 8; Bowman et al. 2016, section 3 (strong decoders). [Chapter
# 5](05_the_linear_vae.py), [chapter 6](06_collapse.py).
#
# <a id="q10"></a>
#
# ## 10. Is a KL of zero ideal?
#
# **No. A rate of 0 is a code that says nothing.** Nor is more always better. What is to be small is the sum of
# distortion and rate. Five weights β show both ends.

# %% alt="Distortion against rate of five VAEs with beta from 0.05 to 20, on a falling curve. The one with beta 1 touches the lowest of the diagonal lines of equal ELBO."
betas, curve = (0.05, 0.25, 1, 2, 20), {}
for beta in betas:

    def weighted_loss(model, x, beta=beta):
        distortion, kl = terms(model, x)
        return (distortion + beta * kl).mean()

    model = well if beta == 1 else train(weighted_loss)
    curve[beta] = evaluate(model)
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.plot([c["rate"] for c in curve.values()], [c["distortion"] for c in curve.values()], "o-", color=BLUE)
for beta, c in curve.items():
    axis.annotate(f"β = {beta}", (c["rate"], c["distortion"]), xytext=(7, 3), textcoords="offset points")
edge = max(c["rate"] for c in curve.values()) * 1.2
for elbo, style in ((curve[1]["elbo"], "-"), (curve[20]["elbo"], "--")):
    axis.plot([0, edge], [-elbo, -elbo - edge], style, color="0.5", label=f"ELBO −{-elbo:.1f} nats")
axis.set(xlabel="rate (nats per picture)", ylabel="distortion (nats per picture)", xlim=(-0.3, edge), ylim=(0, 29))
axis.legend()
# %% tags=["hide-input"]
often = train_x.mean(0).clamp(1e-4, 1 - 1e-4)
independent = log_likelihood(often.logit(), test_x).mean().item()  # what is left without a code: pixel by pixel
assert curve[20]["rate"] < 0.02 and abs(curve[20]["elbo"] - independent) < 0.5
assert max(curve, key=lambda beta: curve[beta]["elbo"]) == 1
quote("independent", independent, abs=0.01)
quote("elbo_zero", curve[20]["elbo"], abs=0.2)
quote("rate_zero", curve[20]["rate"], abs=1e-3)
quote("cost_zero", elbo_well - curve[20]["elbo"], abs=0.4)
quote("rate_most", curve[0.05]["rate"], rel=0.04)
quote("distortion_most", curve[0.05]["distortion"], abs=0.5)
quote("elbo_most", curve[0.05]["elbo"], abs=0.6)
quote("cost_most", elbo_well - curve[0.05]["elbo"], abs=0.7)

# What the rate is made of: log q(z|x) - log p(z) = [log q(z|x) - log q(z)] + [log q(z) - log p(z)].
with torch.no_grad():
    mean, log_variance = well.encode(train_x)
    generator = torch.Generator().manual_seed(0)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
    each = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))  # q(z|x) of every picture
    log_q = torch.stack([each.log_prob(one).sum(-1) for one in z])  # [z of picture n, q of picture m]
    log_qz_x, log_qz = log_q.diagonal(), log_q.logsumexp(1) - math.log(len(train_x))
    every = torch.distributions.Categorical(logits=torch.zeros(len(train_x)))
    mixture = torch.distributions.MixtureSameFamily(every, torch.distributions.Independent(each, 1))
    assert torch.allclose(log_qz[:20], mixture.log_prob(z[:20]), atol=1e-3)  # q(z): a mixture of all q(z|x)
    log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    information, mismatch = (log_qz_x - log_qz).mean().item(), (log_qz - log_pz).mean().item()
    rate_train = kl_to_prior(mean, log_variance).mean().item()
assert abs(information + mismatch - rate_train) < 0.2  # the draws' noise
assert 0 < information < math.log(len(train_x)) and mismatch > 0
quote("information", information, abs=0.2)
quote("mismatch", mismatch, abs=0.2)
quote("rate_train", rate_train, abs=0.2)
quote("log_n", math.log(len(train_x)), abs=1e-6)
for beta, c in curve.items():
    print(beta, c)

# %% [markdown]
# *Figure C.4. Rate and distortion of five VAEs. Along a gray line the ELBO is the same; lower is better.*
#
# - **β = 20:** a rate of {{rate_zero:.4f}} nats. The ELBO, {{elbo_zero:.1f}}, is that of pixels which are drawn one
#   by one, each with its own frequency: {{independent:.1f}}. That is {{cost_zero:.1f}} nats worse than at β = 1.
# - **β = 0.05:** {{rate_most:.1f}} nats of rate bring the distortion down to {{distortion_most:.1f}}, the least of all.
#   But the ELBO is {{elbo_most:.1f}}: the code knows each picture, and the prior does not know the code.
# - **β = 1:** the best ELBO of the five, {{elbo_well:.1f}}.
#
# What should be zero is another KL: that between the prior and the codes of *all* pictures together, $q(z)$. The mean
# rate splits into two parts. The first is the information that the code holds about the picture: {{information:.1f}}
# nats on the training set, and never more than $\log 1437 = {{log_n:.1f}}$. The second is the mismatch of $q(z)$ and
# the prior: {{mismatch:.1f}} nats. Their sum is the rate, {{rate_train:.1f}}. At β = 0.05, where the rate is
# {{rate_most:.1f}} nats, the mismatch must be larger than the information.
#
# Read more: Alemi et al. 2018, section 2 and figure 1 (rate–distortion plane); Hoffman & Johnson 2016 (the two parts);
# Burda et al. 2016, section 5 (active latents). [Chapter 6](06_collapse.py).
#
# <a id="q11"></a>
#
# ## 11. May I use binary cross-entropy on gray levels?
#
# **As a loss, yes; as a log-likelihood, no.** For a gray level $x$ between 0 and 1 and an output λ, the cross-entropy
# is $-x \log \lambda - (1 - x) \log(1 - \lambda)$. Its best λ is $x$, so it trains. But $\lambda^x (1 - \lambda)^{1 -
# x}$ is no density: over $x$ from 0 to 1 it does not integrate to 1, but to $(2\lambda - 1) / \log\frac{\lambda}{1 -
# \lambda}$.

# %%
gray = torch.linspace(0, 1, 100_001, dtype=torch.float64)


def mass(p):
    """The integral of p^x (1 - p)^(1 - x) over x from 0 to 1."""
    return torch.trapezoid(p**gray * (1 - p) ** (1 - gray), gray).item()


for p in (0.01, 0.3, 0.9):
    assert abs(mass(p) - (2 * p - 1) / math.log(p / (1 - p))) < 1e-6
mass_half, mass_dark = mass(0.5), mass(0.01)
perfect = F.binary_cross_entropy(test_gray, test_gray, reduction="none")  # the output is the picture
bce_perfect = perfect.sum(-1).mean().item()
entropy = -(torch.xlogy(test_gray, test_gray) + torch.xlogy(1 - test_gray, 1 - test_gray)).sum(-1).mean()
assert abs(bce_perfect - entropy) < 1e-3
in_between = ((test_gray > 0) & (test_gray < 1)).float().mean().item()
quote("mass_half", mass_half, abs=1e-6)
quote("mass_dark", mass_dark, abs=1e-6)
quote("missing_half", -math.log(mass_half), abs=1e-6)
quote("missing_dark", -math.log(mass_dark), abs=1e-6)
quote("bce_perfect", bce_perfect, abs=1e-3)
quote("in_between", in_between, abs=1e-6)
print(f"mass {mass_half:.3f} at 0.5, {mass_dark:.3f} at 0.01; a perfect copy costs {bce_perfect:.2f} nats")

# %% [markdown]
# At λ = 0.5 the mass is {{mass_half:.2f}}, at λ = 0.01 it is {{mass_dark:.2f}}. So each pixel lacks between
# {{missing_half:.2f}} and {{missing_dark:.2f}} nats, and more near 0 and 1. Because this constant depends on λ, it does
# not cancel when two models are compared. Of the gray digits {{in_between:.0%}} of the pixels are neither 0 nor 1, and
# a perfect copy costs {{bce_perfect:.1f}} nats per picture: the loss does not go to zero.
#
# To have a likelihood, draw each pixel as 0 or 1, or take a density for gray levels.
#
# Read more: Loaiza-Ganem & Cunningham 2019, section 3 (the missing constant, and the density that has it). Asked in
# [pytorch/examples #460](https://github.com/pytorch/examples/issues/460). [Chapter 4](04_what_is_the_likelihood.py).
#
# <a id="q12"></a>
#
# ## 12. I use the mean squared error. Which σ is that?
#
# **A normal decoder with a σ that you did not choose.** Its distortion is $\|x - \hat x\|^2 / 2\sigma^2 + \tfrac{D}{2}
# \log 2\pi\sigma^2$, with $\hat x$ the decoder's picture. So `c * error` next to the KL is $\sigma^2 = 1/2c$: the sum
# of squares ($c = 1$) is σ = {{sigma_sum:.2f}}, the mean over 64 pixels ($c = 1/64$) σ = {{sigma_mean:.2f}}. Pixels
# between 0 and 1 never have a standard deviation above 0.5.
#
# The best σ² for a given decoder is the mean squared error itself. It can be put in at every step, and costs no new
# parameter.


# %%
def squared_error(model, x, draws=1):
    """Summed over pixels, and the rate: [draws, B], [draws, B]."""
    mean, log_variance = model.encode(x.expand(draws, -1, -1))
    z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    return ((x - model.decode(z)) ** 2).sum(-1), kl_to_prior(mean, log_variance)


def gaussian_distortion(error, sigma_squared):
    return error / (2 * sigma_squared) + PIXELS / 2 * math.log(2 * math.pi * sigma_squared)


def fixed_sigma(sigma_squared):
    def loss(model, x):
        error, kl = squared_error(model, x)
        return (gaussian_distortion(error, sigma_squared) + kl).mean()

    return loss


def best_sigma(model, x):
    error, kl = squared_error(model, x)
    return PIXELS / 2 * (error.mean() / PIXELS).log() + kl.mean()  # σ² = mean squared error, put in; less constants


some_x, some_copy = test_gray[:5].double(), torch.full((5, PIXELS), 0.4, dtype=torch.float64)
error = ((some_x - some_copy) ** 2).sum(-1)
normal = torch.distributions.Normal(some_copy, 0.5**0.5).log_prob(some_x).sum(-1)
assert torch.allclose(gaussian_distortion(error, 0.5), -normal)
assert torch.allclose(gaussian_distortion(error, 0.5) - gaussian_distortion(0, 0.5), error)  # c = 1 is σ² = ½

# Put the best σ² in: it is the mean squared error, for any pictures and copies. No other σ² costs less.
torch.manual_seed(0)
error, kl = squared_error(well, test_gray)
mse = error.mean().item() / PIXELS
torch.manual_seed(0)
at_best = best_sigma(well, test_gray) + PIXELS / 2 * (1 + math.log(2 * math.pi))
assert torch.isclose(at_best, (gaussian_distortion(error, mse) + kl).mean())
assert all(gaussian_distortion(error, c * mse).mean() + kl.mean() > at_best for c in (0.98, 1.02))

# %%
gray_models, table = {}, {}
for name, loss in (
    ("mean", fixed_sigma(PIXELS / 2)),
    ("one", fixed_sigma(1.0)),
    ("sum", fixed_sigma(0.5)),
    ("best", best_sigma),
):
    gray_models[name] = train(loss, data=train_gray)
    with torch.no_grad():
        torch.manual_seed(0)
        sigma_squared = squared_error(gray_models[name], train_gray, draws=5)[0].mean().item() / PIXELS
        sigma_squared = {"mean": PIXELS / 2, "one": 1.0, "sum": 0.5}.get(name, sigma_squared)
        error, kl = squared_error(gray_models[name], test_gray, draws=20)
    elbo = -(gaussian_distortion(error, sigma_squared) + kl).mean().item()
    table[name] = {"sigma": sigma_squared**0.5, "rate": kl.mean().item(), "elbo": elbo}
    quote(f"sigma_{name}", table[name]["sigma"], rel=0.02)
    quote(f"gray_rate_{name}", table[name]["rate"], abs=0.1 + 0.03 * table[name]["rate"])
    quote(f"gray_elbo_{name}", table[name]["elbo"], abs=0.8)
    print(name, table[name])
quote("linear_half", 0.5 * (variances / 0.5).log().clamp(min=0).sum().item(), abs=1e-5)
assert table["mean"]["rate"] < 0.01 and table["best"]["rate"] > 3 * table["sum"]["rate"] > 3 * table["one"]["rate"]

# %% [markdown]
# | Next to the KL | σ | Rate | ELBO |
# |---|---|---|---|
# | squared error, mean over pixels | {{sigma_mean:.2f}} | {{gray_rate_mean:.2f}} | {{gray_elbo_mean:.1f}} |
# | half the squared error, sum | {{sigma_one:.2f}} | {{gray_rate_one:.2f}} | {{gray_elbo_one:.1f}} |
# | squared error, sum | {{sigma_sum:.2f}} | {{gray_rate_sum:.2f}} | {{gray_elbo_sum:.1f}} |
# | best σ | {{sigma_best:.2f}} | {{gray_rate_best:.2f}} | {{gray_elbo_best:.1f}} |
#
# *Table C.3. Four VAEs on the gray digits; log-densities of pixels between 0 and 1.*
#
# The choice of σ decides how much the code may say. It is the same choice as β: a fixed σ with weight β on the rate has
# the same minima as the variance βσ² with weight 1. For σ² = ½ the formula of question 9 gives a linear VAE
# {{linear_half:.2f}} nats of rate; the one in the table has come to {{gray_rate_sum:.2f}}.
#
# Read more: Rybkin et al. 2021 (the section on σ-VAE: best σ² is the mean squared error; β and σ); Lucas et al. 2019
# (σ² and collapse in deep VAEs). Asked in [pytorch-tutorial
# #104](https://github.com/yunjey/pytorch-tutorial/issues/104). [Chapter 4](04_what_is_the_likelihood.py).
#
# <a id="q13"></a>
#
# ## 13. How can my loss be negative?
#
# **If the decoder gives a density, $p(x|z)$ can be above 1, and $-\log p(x|z)$ below 0.** A normal distribution costs
# $\tfrac12 \log(2 \pi e \sigma^2)$ nats per pixel on average. That is negative as soon as σ is below
# $1/\sqrt{2 \pi e}$ = {{sigma_zero:.3f}}. With the best σ of question 12 the loss is {{loss_gray:.1f}} nats.

# %%
sigma_zero = (2 * math.pi * math.e) ** -0.5
assert abs(torch.distributions.Normal(0.0, sigma_zero).entropy()) < 1e-6
loss_gray = -table["best"]["elbo"]
with torch.no_grad():
    torch.manual_seed(0)
    error, kl = squared_error(gray_models["best"], test_gray)
    in_units_of_one = gaussian_distortion(error, table["best"]["sigma"] ** 2).mean()
    in_units_of_16 = gaussian_distortion(error * 16**2, (16 * table["best"]["sigma"]) ** 2).mean()
shift = (in_units_of_16 - in_units_of_one).item()
assert abs(shift - PIXELS * math.log(16)) < 1e-3
torch.manual_seed(0)
mean, log_variance = (value.detach() for value in well.encode(test_x))
q = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
z = q.sample((1000,))
one_draw = (q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)).sum(-1)  # 1000 estimates of each KL
assert abs(one_draw.mean() - kl_to_prior(mean, log_variance).mean()) < 0.05
assert one_draw.min() < 0 < kl_to_prior(mean, log_variance).min()
quote("negative_draws", (one_draw < 0).float().mean(), rel=0.25)
quote("sigma_zero", sigma_zero, abs=1e-6)
quote("loss_gray", loss_gray, abs=0.8)
quote("shift", shift, abs=1e-2)
quote("loss_16", loss_gray + shift, abs=0.8)
quote("least_kl", kl_to_prior(mean, log_variance).min().item(), abs=0.4)
assert loss_gray < 0 < loss_gray + shift
print(f"loss {loss_gray:.1f}, with levels from 0 to 16 {loss_gray + shift:.1f} nats")

# %% [markdown]
# Nothing is wrong, and 0 is no special number. With the gray levels counted from 0 to 16 instead of 0 to 1, each of the
# 64 pixels costs $\log 16$ more, {{shift:.1f}} nats together, and the same model has a loss of {{loss_16:.1f}}. So say
# in which units $x$ is, and compare only within them.
#
# What must not be negative: the loss for pixels that are 0 or 1 (a probability is at most 1), and the KL in closed
# form. Its least value over the held-out pictures is {{least_kl:.1f}} nats. If yours is below 0, a sign is wrong. (An
# estimate from one draw, $\log q(z|x) - \log p(z)$, may be negative: here {{negative_draws:.1%}} of them are.) A loss that falls and falls
# without end is a σ that shrinks to 0; see question 15.
#
# Read more: Theis et al. 2016, section 3.1 (densities on discrete data). Asked at [Cross Validated
# 630079](https://stats.stackexchange.com/questions/630079). [Chapter 4](04_what_is_the_likelihood.py).
#
# <a id="q14"></a>
#
# ## 14. Is one sample of z enough?
#
# **To train, yes.** One draw gives a gradient with the right mean. Ten draws make it less noisy, at ten times the
# decoding. But the gradient is noisy anyway, because a batch is 64 pictures out of many. Take two gradients for each of
# many batches, with new noise for $z$. How far apart are the two, and how far apart are the batches?


# %%
def gradient_variance(batches, draws):
    """Variance of the loss's gradient, summed over all weights: what comes from z alone, and all of it."""
    torch.manual_seed(0)
    pairs = []
    for _ in range(batches):
        x = train_x[torch.randint(len(train_x), (BATCH,))].expand(draws, -1, -1)
        values = [negative_elbo(well, x), negative_elbo(well, x)]
        pairs.append(
            torch.stack(
                [torch.cat([g.flatten() for g in torch.autograd.grad(v, [*well.parameters()])]) for v in values]
            )
        )
    pairs = torch.stack(pairs)  # [batches, 2, weights]
    from_z = 0.5 * ((pairs[:, 0] - pairs[:, 1]) ** 2).sum(-1).mean()
    return from_z.item(), pairs[:, 0].var(0).sum().item()


batches = 50 if FAST else 200
(noise_1, all_1), (noise_10, all_10) = gradient_variance(batches, 1), gradient_variance(batches, 10)
assert abs(noise_1 / noise_10 - 10) < 2  # ten independent draws: a tenth of the variance
assert abs((all_1 - all_10) / (0.9 * noise_1) - 1) < 0.15  # nine tenths of the part from z go, the rest stays
quote("noise_ratio", noise_1 / noise_10, rel=0.1)
quote("share_noise", noise_1 / all_1, abs=0.06)
quote("left_ten", all_10 / all_1, abs=0.06)
ten = evaluate(train(lambda model, x: negative_elbo(model, x.expand(10, -1, -1))))
longer = evaluate(train(epochs=EPOCHS * 3 // 2))
gain_ten = quote("gain_ten", ten["elbo"] - elbo_well, abs=0.3)
gain_longer = quote("gain_longer", longer["elbo"] - elbo_well, abs=0.3)
assert abs(gain_ten) < 2
print(f"noise {noise_1 / all_1:.0%} of the variance; ten draws leave {all_10 / all_1:.0%}")
print(f"gain with ten draws {gain_ten:.2f} nats, with half as many epochs again {gain_longer:.2f}")

# %% [markdown]
# Of the variance of the gradient {{share_noise:.0%}} come from $z$, the rest from the choice of pictures. Ten draws cut
# the part from $z$ {{noise_ratio:.1f}}-fold (10 in expectation), and leave {{left_ten:.0%}} of the whole. Ten times the
# pictures would leave 10%. In training, ten draws gain {{gain_ten:.2f}} nats of ELBO. Half as many epochs again, with
# one draw, gain {{gain_longer:.2f}}.
#
# To *report* an ELBO, average over many draws; here it is 20. And a log of an average over draws is another bound,
# higher than the ELBO: the importance-weighted one.
#
# Read more: Kingma & Welling 2013, section 2.3 (one draw, if the batch is about 100); Burda et al. 2016, equation 8
# (the other bound). [Chapter 2](02_the_evidence_lower_bound.py), [chapter 3](03_gradients_through_noise.py).
#
# <a id="q15"></a>
#
# ## 15. Where does NaN come from?
#
# **From four places, most of the time.** Each can be made on purpose, and each has its mend.

# %%
# (a) exp of a large log-variance: float32 ends at 3.4e38.
exp_limit = math.log(torch.finfo(torch.float32).max)
assert torch.tensor(exp_limit - 0.01).exp().isfinite() and torch.tensor(exp_limit + 0.01).exp().isinf()
half_limit = math.log(torch.finfo(torch.float16).max)
assert torch.tensor(half_limit + 0.01).exp().half().isinf()
torch.manual_seed(0)
untrained = VAE()
with torch.no_grad():
    usual, large = (untrained.encode(test_gray * scale)[1].abs().max().item() for scale in (1, 255))

# (b) log(0): a sigmoid in float32 is 1 long before its input is infinite.
a = torch.linspace(10, 20, 10_001)
sigmoid_limit = a[torch.sigmoid(a) == 1][0].item()
assert 24 * math.log(2) - 0.01 < sigmoid_limit < 25 * math.log(2) + 0.01  # one unit in the last place, or half of it
a, x = torch.tensor([20.0, -20.0, 20.0], requires_grad=True), torch.tensor([0.0, 0.0, 1.0])
p = torch.sigmoid(a)
by_hand = -(x * p.log() + (1 - x) * (1 - p).log())  # inf, 0, and 0 · (-inf) = NaN
assert by_hand[0].isinf() and by_hand[2].isnan()
clamped = F.binary_cross_entropy(p, x, reduction="none")  # PyTorch ends the logarithm at -100
logits = F.binary_cross_entropy_with_logits(a, x, reduction="none")
slope_clamped, slope_logits = (torch.autograd.grad(value[0], a)[0][0].item() for value in (clamped, logits))
assert abs(logits[0].item() - 20) < 1e-6 and abs(slope_logits - 1) < 1e-6  # exact: 20, with slope 1

# %% tags=["hide-input"]
quote("exp_limit", exp_limit, abs=1e-3)
quote("half_limit", half_limit, abs=1e-3)
quote("log_variance_usual", usual, rel=0.01)
quote("log_variance_large", large, rel=0.01)
quote("sigmoid_limit", sigmoid_limit, abs=0.8)
quote("clamped", clamped[0].item(), abs=1e-3)
quote("slope_clamped", slope_clamped, abs=1e-6)
quote("slope_logits", slope_logits, abs=1e-6)
print(f"exp up to {exp_limit:.2f}; log-variances up to {usual:.2f}, or {large:.0f} for pixels from 0 to 255")


# %%
# (c) a learned σ where the decoder is exactly right: log σ falls by the learning rate, step by step, for ever.
log_sigma, sigma_steps = torch.zeros(1, requires_grad=True), 0
error = torch.zeros(1)  # of a pixel that never changes
while log_sigma.isfinite():
    value = error / (2 * torch.exp(2 * log_sigma)) + log_sigma
    log_sigma.data -= 0.1 * torch.autograd.grad(value, log_sigma)[0]
    sigma_steps += 1
assert abs(sigma_steps - 150 * math.log(2) / 2 / 0.1) < 3  # σ² below 2⁻¹⁵⁰ is 0 in float32, and 0/0 is NaN


# (d) a learning rate that is too large.
def steps_until_broken(lr, factor, clip=math.inf, limit=100):
    torch.manual_seed(0)
    model = VAE()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(1, limit + 1):
        optimizer.zero_grad()
        value = factor * negative_elbo(model, train_x[torch.randint(len(train_x), (BATCH,))])
        if not value.isfinite():
            return step
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return math.inf


assert steps_until_broken(0.03, 1) == math.inf  # the mean over 64 pictures
broken_at = steps_until_broken(0.03, BATCH)  # their sum, with the same learning rate
assert broken_at < 100 and steps_until_broken(0.03, BATCH, clip=1.0) == math.inf
quote("constant", (train_gray.var(0) == 0).sum().item(), abs=1e-9)
quote("sigma_steps", sigma_steps, abs=3)
quote("broken_at", broken_at, abs=3)
print(f"log σ is NaN after {sigma_steps} steps; the loss with a sum is not finite at step {broken_at}")

# %% [markdown]
# | Where | What happens | Mend |
# |---|---|---|
# | exp of a large log-variance | above {{exp_limit:.1f}} it is infinite in float32, above {{half_limit:.1f}} in float16. This encoder, untrained, gives up to {{log_variance_usual:.1f}} for pixels from 0 to 1, but up to {{log_variance_large:.0f}} for 0 to 255 | bring the data to a spread of about 1; densities and KL in float32 |
# | log(0) in a cross-entropy of probabilities | from {{sigmoid_limit:.1f}} on a sigmoid is exactly 1. By hand you get inf and NaN. PyTorch stops at {{clamped:.0f}}, with slope {{slope_clamped:.0f}}: the worst pixel learns nothing | `binary_cross_entropy_with_logits`: slope {{slope_logits:.0f}} |
# | a learned σ goes to 0 | {{constant:.0f}} of the 64 gray pixels never change. Where the error is 0, log σ falls without end: 0/0 after {{sigma_steps:.0f}} steps of 0.1 | one σ for all pixels, or a least σ |
# | learning rate too large | SGD at 0.03 is fine with a mean over 64 pictures; with their sum the loss is not finite at step {{broken_at:.0f}} | divide by the batch (question 3), clip the gradient's norm |
#
# *Table C.4. Four ways to NaN.*
#
# To find yours, check `torch.isfinite` of distortion and rate *apart*, at each step, and stop at the first that fails.
# `torch.autograd.set_detect_anomaly(True)` names the operation.
#
# Read more: Mattei & Frellsen 2018, section 2 (the likelihood is unbounded when σ may go to 0); Goldberg 1991 (floating
# point). [Chapter 3](03_gradients_through_noise.py).
#
# <a id="q16"></a>
#
# ## 16. To generate, do I draw z from N(0, I) or from N(μ, σ)?
#
# **From N(0, I), the prior.** $N(\mu, \sigma)$ belongs to a picture that you put in. What comes out is that picture
# again: its nearest training picture has the same label {{same_label:.0%}} of the time. Draws from the prior give all
# {{labels_seen:.0f}} labels.


# %%
@torch.no_grad()
def nearest_label(pictures):
    """The label of the training picture that is nearest."""
    return train_labels[torch.cdist(pictures, train_x).argmin(1)]


generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    mean, log_variance = well.encode(test_x)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
    again = nearest_label(torch.sigmoid(well.decode(z)))
    new = nearest_label(torch.sigmoid(well.decode(torch.randn(2000, LATENTS, generator=generator))))
    mean, log_variance = well.encode(train_x)
    spread = mean.var(0) + log_variance.exp().mean(0)  # the variance of q(z), latent by latent
same_label = quote("same_label", (again == test_labels).float().mean().item(), abs=0.04)
by_chance = quote("by_chance", (new[:360] == test_labels).float().mean().item(), abs=0.05)
quote("labels_seen", len(new.unique()), abs=1e-9)
commonest = quote("commonest", new.bincount().max().item() / 2000, abs=0.04)
quote("spread_least", spread.min().item(), abs=0.08)
quote("spread_most", spread.max().item(), abs=0.12)
assert torch.allclose(code_variance[variances > 0.025], torch.tensor(1.0, dtype=torch.float64), atol=1e-3)
assert same_label > 0.5 > 0.3 > commonest
print(f"same label {same_label:.0%}, by chance {by_chance:.0%}; commonest {commonest:.0%}; variance of q(z) {spread}")

# %% [markdown]
# The commonest label has {{commonest:.0%}} of the draws from the prior, and an arbitrary picture's label is met
# {{by_chance:.0%}} of the time.
#
# Why is the prior right? Because, if training went well, the codes of all pictures together look like it. In the linear
# VAE of question 9 each living latent has a variance over all pictures, $\mathrm{Var}(\mu) + \overline{\sigma^2}$, of
# exactly 1 (checked to 0.001). In this VAE it is between {{spread_least:.2f}} and {{spread_most:.2f}}. With a small β
# the codes leave the prior (question 10), and draws from it look bad. To vary a given picture, $N(\mu, \sigma)$ is what
# you want.
#
# Read more: Kingma & Welling 2013, section 2.1 (z is drawn from the prior, then x from $p(x|z)$); Hoffman & Johnson
# 2016 (when the codes leave the prior). Asked at [Cross Validated
# 369660](https://stats.stackexchange.com/questions/369660). [Chapter 1](01_from_autoencoder_to_vae.py).
#
# <a id="q17"></a>
#
# ## 17. Do I sample the decoder, or show its mean?
#
# **The model is what it samples; its mean is easier on the eye.** The mean lacks the variance of $p(x|z)$. By the law
# of total variance, $\mathrm{Var}(x) = \mathrm{Var}(\text{mean}) + \overline{\mathrm{Var}(x|z)}$, pixel by pixel.

# %% alt="Three rows of ten small pictures: digits of zeros and ones; smooth gray means of the decoder; samples of the decoder, in zeros and ones, with some stray pixels."
generator = torch.Generator().manual_seed(3)
with torch.no_grad():
    p = torch.sigmoid(well.decode(torch.randn(20_000, LATENTS, generator=generator))).double()
samples = torch.bernoulli(p, generator=generator)
of_means, within = p.var(0, correction=0).sum(), (p * (1 - p)).mean(0).sum()
of_data = train_x.double().var(0, correction=0).sum()
assert torch.isclose(of_means + within, (p.mean(0) * (1 - p.mean(0))).sum())  # exact for pixels of 0 and 1
assert abs(samples.var(0, correction=0).sum() / (of_means + within) - 1) < 0.01
show({"data": test_x[:10], "mean": p[:10], "sample": samples[:10]})
variance_means = quote("variance_means", (of_means / of_data).item(), abs=0.04)
variance_samples = quote("variance_samples", (samples.var(0, correction=0).sum() / of_data).item(), abs=0.03)
quote("variance_within", (within / of_data).item(), abs=0.04)
assert variance_means < variance_samples - 0.1 and abs(variance_samples - 1) < 0.12
print(f"variance of the means {variance_means:.0%}, of the samples {variance_samples:.0%} of the data's")

# %% [markdown]
# *Figure C.5. Digits, means of the decoder for ten draws from the prior, and one sample for each mean.*
#
# The means have {{variance_means:.0%}} of the variance of the data, the samples {{variance_samples:.0%}}. The rest,
# {{variance_within:.0%}}, is what the decoder leaves to chance, each pixel by itself. That is why samples look speckled
# and means blurred: a pixel of probability ½ is gray in the one and a coin toss in the other. Show either, say which,
# and measure the samples. With a normal decoder a sample is the mean plus noise of the σ of question 12.
#
# Read more: Kingma & Welling 2013, figure 4 (what is plotted are the parameters of $p(x|z)$, not samples); Theis et al.
# 2016, section 3.2 (looks and likelihood). [Chapter 4](04_what_is_the_likelihood.py).
#
# ## Summary
#
# - **Sums** over pixels and latents, **one mean** over pictures, β = 1. Then batch and data set do not matter (1–3).
# - Encoder: linear outputs μ and log σ², σ = exp(½ log σ²), noise from `randn`, no `.sample()` (4–7).
# - Decoder: logits into the loss, or a density with a σ that you know (8, 11–13).
# - Print rate and distortion apart. Neither is to be zero; the ELBO is to be large (9, 10).
# - One draw to train, many to evaluate; generate from the prior (14, 16, 17).
#
# ## References
#
# 1. A. A. Alemi et al. (2018). *Fixing a Broken ELBO.* arXiv:1711.00464. Section 2, figure 1: question 10.
# 2. C. Blundell et al. (2015). *Weight Uncertainty in Neural Networks.* arXiv:1505.05424. Section 3.4: question 2.
# 3. S. R. Bowman et al. (2016). *Generating Sentences from a Continuous Space.* arXiv:1511.06349. Section 3:
#    question 9.
# 4. Y. Burda, R. Grosse and R. Salakhutdinov (2016). *Importance Weighted Autoencoders.* arXiv:1509.00519. Equation 8:
#    question 14; section 5: question 10.
# 5. D. Goldberg (1991). *What Every Computer Scientist Should Know About Floating-Point Arithmetic.* ACM Computing
#    Surveys 23(1). Question 15.
# 6. I. Higgins et al. (2017). *beta-VAE.* ICLR 2017. Equation 4, section 4.2: question 1.
# 7. M. D. Hoffman and M. J. Johnson (2016). *ELBO surgery.* NIPS 2016 workshop on approximate Bayesian inference.
#    The KL as information and mismatch: questions 10 and 16.
# 8. D. P. Kingma and J. Ba (2015). *Adam.* arXiv:1412.6980. Section 2.1: question 3.
# 9. D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. Equations 8, 10, 11 and 12,
#    sections 2.1–2.4, appendices B and C, figure 4: questions 1, 2, 4–8, 14, 16 and 17.
# 10. G. Loaiza-Ganem and J. P. Cunningham (2019). *The continuous Bernoulli.* arXiv:1907.06845. Section 3: question 11.
# 11. J. Lucas et al. (2019). *Don't Blame the ELBO!* arXiv:1911.02469. The analysis of linear VAEs: question 9;
#     its extension to deep Gaussian VAEs: question 12.
# 12. P.-A. Mattei and J. Frellsen (2018). *Leveraging the Exact Likelihood of Deep Latent Variable Models.*
#     arXiv:1802.04826. Section 2: question 15.
# 13. S. Mohamed et al. (2020). *Monte Carlo Gradient Estimation in Machine Learning.* arXiv:1906.10652. Sections 4
#     and 5: question 6.
# 14. D. J. Rezende, S. Mohamed and D. Wierstra (2014). *Stochastic Backpropagation and Approximate Inference in Deep
#     Generative Models.* arXiv:1401.4082. Section 3: question 6.
# 15. O. Rybkin, K. Daniilidis and S. Levine (2021). *Simple and Effective VAE Training with Calibrated Decoders.*
#     arXiv:2006.13202. The optimal σ-VAE: question 12.
# 16. L. Theis, A. van den Oord and M. Bethge (2016). *A note on the evaluation of generative models.* arXiv:1511.01844.
#     Sections 3.1 and 3.2: questions 13 and 17.
# 17. M. E. Tipping and C. M. Bishop (1999). *Probabilistic Principal Component Analysis.* Journal of the Royal
#     Statistical Society B 61(3). Equations 7 and 8: question 9.
