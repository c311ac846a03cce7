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
# # 0. A broken VAE
#
# Below is a variational autoencoder (VAE) as many people first write it. It runs, its loss falls, and it draws the same
# dark blot again and again. It has three mistakes. You will find them with three measurements, and mend them one line at
# a time.

# %% tags=["hide-input"] alt="Three rows of ten small pictures. Handwritten digits; below them what the broken VAE makes of them, and what it draws: the same dark blot twenty times."
import itertools

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from vaelab.course import FAST, quote

torch.set_num_threads(1)
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008: safe for the color-blind
EPOCHS = 15 if FAST else 60
PIXELS, LATENTS, BATCH = 64, 8, 64

levels, labels = load_digits(return_X_y=True)
pictures = (torch.tensor(levels) > 8).float()  # [1797, 64]: each pixel is 1 (ink) or 0
train_x, test_x = pictures[torch.randperm(1797, generator=torch.Generator().manual_seed(0))].split([1437, 360])


class VAE(nn.Module):
    def __init__(self, sigmoid_in_decoder):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 2 * LATENTS))
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 128), nn.ReLU(), nn.Linear(128, PIXELS))
        self.last = nn.Sigmoid() if sigmoid_in_decoder else nn.Identity()

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=-1)

    def decode(self, z):
        return self.last(self.decoder(z))


def broken_loss(model, x):
    mean, log_variance = model.encode(x)
    z = mean + torch.exp(0.5 * log_variance) * torch.rand_like(mean)
    reconstruction = model.decode(z)
    bce = F.binary_cross_entropy_with_logits(reconstruction, x)
    kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
    return bce + kl


def train(loss, sigmoid_in_decoder):
    """Train a new VAE, and give it back with the loss of each epoch."""
    torch.manual_seed(0)
    model = VAE(sigmoid_in_decoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(EPOCHS):
        values = []
        for x in train_x[torch.randperm(len(train_x))].split(BATCH):
            optimizer.zero_grad()
            value = loss(model, x)
            value.backward()
            optimizer.step()
            values.append(value.item())
        history.append(sum(values) / len(values))
    return model, history


@torch.no_grad()
def show(rows, title):
    """Rows of ten pictures, [10, 64] each, by name. White is 1, black is 0."""
    figure, axes = plt.subplots(len(rows), 10, figsize=(8, 0.95 * len(rows) + 0.4), layout="constrained")
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.view(8, 8), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title)


broken, history = train(broken_loss, sigmoid_in_decoder=True)
with torch.no_grad():
    drawn = broken.decode(torch.randn(10, LATENTS))
    show(
        {"digits": test_x[:10], "reconstructed": broken.decode(broken.encode(test_x[:10])[0]), "drawn": drawn},
        f"after {EPOCHS} epochs",
    )

# %% [markdown]
# *Figure 0.1. Ten digits of 8 × 8 pixels, what the broken VAE makes of them, and ten pictures that it draws. All that
# it makes is the same.*
#
# ## What it should do
#
# A VAE has two networks.
#
# - The **encoder** takes a picture $x$ and gives two vectors, `mean` and `log_variance` (the logarithm of the variance).
#   They describe a bell curve (a normal distribution) over a code $z$, here of 8 numbers, the **latents**. This
#   distribution is called $q(z|x)$.
# - The **decoder** takes a code $z$ and gives for each pixel the probability that it is 1.
#
# To train, draw a $z$ from $q(z|x)$, decode it, and add up two costs. Both are measured in **nats**, the unit of
# information that goes with the natural logarithm (1 nat = 1.44 bits).
#
# - **Distortion**: how surprised the decoder is by the picture, $-\log p(x|z)$. Here $p(x|z)$ is the product of the
#   probabilities that it gives to the values of the pixels. The logarithm makes a *sum* over the pixels of it. That sum
#   is the binary cross-entropy.
# - **Rate**: how far $q(z|x)$ is from the **prior** $p(z)$, the standard normal distribution. This distance is the
#   Kullback–Leibler divergence, $\mathrm{KL}(q(z|x)\,\|\,p(z))$.
#
# Their sum, with a minus sign, is the **evidence lower bound**, or ELBO. It is never above $\log p(x)$, the
# log-probability of the picture under the model (chapter 2 proves it). To draw a new picture, take a $z$ from the prior
# and decode it.
#
# $$\mathrm{ELBO} = -(\text{distortion} + \text{rate})$$
#
# ## The loss looks fine
#
# Here is the loss again, with its helpers above. Read it before you go on. Where would you look first?
#
# ```python
# def broken_loss(model, x):
#     mean, log_variance = model.encode(x)
#     z = mean + torch.exp(0.5 * log_variance) * torch.rand_like(mean)
#     reconstruction = model.decode(z)                                 # ends in a sigmoid
#     bce = F.binary_cross_entropy_with_logits(reconstruction, x)
#     kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
#     return bce + kl
# ```

# %%
quote("loss_first", history[0], rel=0.05)
quote("loss_last", history[-1], rel=0.02)
assert history[-1] < history[0]
print(f"loss in the first epoch {history[0]:.3f}, in the last {history[-1]:.3f}")

# %% [markdown]
# The loss falls from {{loss_first:.2f}} to {{loss_last:.3f}}, and then stands still. Nothing crashes. This is what
# makes these mistakes common: the only number on the screen says that all is well. So look at other numbers.
#
# ## Measurement 1: the rate, by itself
#
# The rate is how many nats the code costs. On average that is at least what it tells about the picture. For two normal distributions it has a closed form. With
# mean $\mu_j$ and variance $\sigma_j^2$ of latent $j$,
#
# $$\mathrm{KL}(q(z|x)\,\|\,p(z)) = \tfrac12 \sum_j \left(\sigma_j^2 + \mu_j^2 - 1 - \log \sigma_j^2\right).$$


# %%
def kl_to_prior(mean, log_variance):
    """The rate of each picture, in nats: [B, 8] -> [B]."""
    return 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(-1)


# Is it right? PyTorch knows the divergence of two normal distributions too.
some_mean, some_log_variance = torch.randn(2, 5, LATENTS, generator=torch.Generator().manual_seed(1)).double()
ours = kl_to_prior(some_mean, some_log_variance)
theirs = torch.distributions.kl_divergence(
    torch.distributions.Normal(some_mean, torch.exp(0.5 * some_log_variance)), torch.distributions.Normal(0.0, 1.0)
).sum(-1)
assert torch.allclose(ours, theirs)

with torch.no_grad():
    rate_broken = kl_to_prior(*broken.encode(test_x)).mean().item()
quote("rate_broken", rate_broken, rel=0.9)
assert rate_broken < 1e-2
print(f"rate {rate_broken:.1e} nats")

# %% [markdown]
# The rate is {{rate_broken:.0e}} nats. To tell ten digits apart takes $\log 10 = 2.3$ nats. So the code tells nothing:
# whatever the picture, the encoder gives the prior. The decoder cannot know which picture is meant, and gives every
# time the same. The encoder and the decoder no longer talk to each other. This is called **posterior collapse**.
#
# Why does the encoder fall silent? Look at how the two costs are put together. `binary_cross_entropy_with_logits`
# takes by default the *mean* over all pixels of all pictures in the batch. `torch.sum` takes the *sum* over all latents
# of all pictures. With $B$ pictures of $D$ pixels, the loss is
#
# $$\frac{1}{BD}\,(\text{distortions}) + (\text{rates}) = \frac{1}{BD}\,\Big(\text{distortions} + \underbrace{BD}_{\beta}\,\text{rates}\Big).$$
#
# The rate counts $\beta = BD$ times. Here that is 64 · 64 = 4,096 times. On MNIST, with 784 pixels and a batch of 128,
# it is 100,352 times. So a nat of rate must save 4,096 nats of distortion to be worth its price. But a decoder that gives
# every pixel the probability ½ has a distortion of only 64 · log 2 = 44.4 nats. There is not that much to save.
#
# ## Measurement 2: the range of what the decoder says
#
# The decoder ends in a sigmoid, $\mathrm{sigmoid}(a) = 1 / (1 + e^{-a})$, which makes any number $a$, the **logit**, a
# probability. But `binary_cross_entropy_with_logits` applies a sigmoid too. What probabilities can come out?

# %%
a = torch.linspace(-50, 50, 10_001, dtype=torch.float64)
twice = torch.sigmoid(torch.sigmoid(a))
print(f"one sigmoid: {torch.sigmoid(a).min():.3f} to {torch.sigmoid(a).max():.3f}")
print(f"two:         {twice.min():.3f} to {twice.max():.3f}")
ink = train_x.mean().item()
quote("twice_most", twice.max().item(), abs=1e-6)
quote("ink", ink, abs=1e-6)
quote("rarely", (train_x.mean(0) < 0.5).sum().item(), abs=1e-6)
quote("drawn", drawn.mean().item(), abs=0.05)
assert abs(twice.min().item() - 0.5) < 1e-6 and drawn.mean() < 0.8 * ink

# %% [markdown]
# The loss sees probabilities from 0.5 to {{twice_most:.2f}}. But only {{ink:.0%}} of the pixels of the digits are 1:
# {{rarely:.0f}} of the 64 pixels are 1 in fewer than half of the pictures. The decoder can never say that a pixel is
# likely 0. The nearest it can come is to push the inner sigmoid to 0. So a picture drawn from the inner sigmoid is black
# there, and too dark as a whole: its mean is {{drawn:.2f}}.
#
# ## Measurement 3: the noise
#
# A draw from the normal distribution $q(z|x)$ is $z = \mu + \sigma \cdot \varepsilon$, where $\varepsilon$ is noise with
# mean 0 and standard deviation 1. Is it?

# %%
noise = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
quote("noise_mean", noise.mean().item(), abs=0.002)
quote("noise_std", noise.std().item(), abs=0.002)
assert abs(noise.mean() - 1 / 2) < 0.002 and abs(noise.std() - 12**-0.5) < 0.002  # known for the uniform distribution
print(f"torch.rand: mean {noise.mean():.3f}, standard deviation {noise.std():.3f}")

# %% [markdown]
# `torch.rand` draws from the *uniform* distribution between 0 and 1: mean {{noise_mean:.2f}}, standard deviation
# {{noise_std:.2f}}. `torch.randn` is the *normal* one. With uniform noise, every $z$ lies above its mean, and the codes
# that the decoder learns are not those of the prior from which we later draw.
#
# ## Mend it, one line at a time
#
# To see what each mend does, we need a number that does not depend on the mistakes: the ELBO of **held-out** pictures,
# which were not trained on, with normal noise and sums. It takes the decoder's output for what the loss took it for,
# logits.


# %%
def log_likelihood(logits, x):
    """log p(x|z) in nats, summed over the pixels: x log p + (1 - x) log(1 - p), where p = sigmoid(logit)."""
    return (x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)).sum(-1)


all_pictures = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # a likelihood sums to 1 over all that can be
assert torch.allclose(log_likelihood(torch.tensor([-1.0, 0.3, 2.0]), all_pictures).exp().sum(), torch.tensor(1.0))


@torch.no_grad()
def evaluate(model, draws=20):
    """Rate, distortion and ELBO of the held-out pictures, in nats per picture."""
    mean, log_variance = model.encode(test_x)
    epsilon = torch.randn(draws, *mean.shape, generator=torch.Generator().manual_seed(0))
    z = mean + torch.exp(0.5 * log_variance) * epsilon
    distortion = -log_likelihood(model.decode(z), test_x).mean().item()
    rate = kl_to_prior(mean, log_variance).mean().item()
    return {"rate": rate, "distortion": distortion, "elbo": -(rate + distortion)}


def make_loss(summed, normal_noise):
    """The broken loss, with one line mended, or another, or both."""

    def loss(model, x):
        mean, log_variance = model.encode(x)
        epsilon = torch.randn_like(mean) if normal_noise else torch.rand_like(mean)
        z = mean + torch.exp(0.5 * log_variance) * epsilon
        log_px_z = log_likelihood(model.decode(z), x)  # [B]
        kl = kl_to_prior(mean, log_variance)  # [B]
        if summed:
            return (kl - log_px_z).mean()  # sums over pixels and latents; one mean, over the pictures, for both
        return -log_px_z.mean() / PIXELS + kl.sum()

    return loss


# With nothing mended it is the broken loss.
torch.manual_seed(0)
one = broken_loss(broken, test_x)
torch.manual_seed(0)
assert torch.isclose(one, make_loss(summed=False, normal_noise=False)(broken, test_x))

steps = {
    "broken": (False, True, False),
    "sum in place of mean": (True, True, False),
    "and one sigmoid": (True, False, False),
    "and normal noise": (True, False, True),
}
models, found = {}, {}
for name, (summed, two_sigmoids, normal_noise) in steps.items():
    models[name], _ = train(make_loss(summed, normal_noise), sigmoid_in_decoder=two_sigmoids)
    found[name] = evaluate(models[name])
    print(
        f"{name:22} rate {found[name]['rate']:8.2g}  distortion {found[name]['distortion']:6.1f}  ELBO {found[name]['elbo']:6.1f}"
    )

# %% tags=["hide-input"]
for key, name in zip(["broken", "summed", "sigmoid", "mended"], steps, strict=True):
    quote(f"elbo_{key}", found[name]["elbo"], abs=0.6)
    quote(f"distortion_{key}", found[name]["distortion"], abs=0.8)
    if key != "broken":
        quote(f"rate_{key}", found[name]["rate"], abs=0.5)
assert abs(found["sum in place of mean"]["elbo"] - found["broken"]["elbo"]) < 1
assert found["and normal noise"]["elbo"] - found["broken"]["elbo"] > 10
rate_rise, distortion_fall = (
    abs(found["and normal noise"][part] - found["and one sigmoid"][part]) for part in ("rate", "distortion")
)
quote("saved", distortion_fall / rate_rise, rel=0.2)

# %% [markdown]
# | The VAE | Rate | Distortion | ELBO |
# |---|---|---|---|
# | broken | {{rate_broken:.0e}} | {{distortion_broken:.1f}} | {{elbo_broken:.1f}} |
# | sum in place of mean | {{rate_summed:.1f}} | {{distortion_summed:.1f}} | {{elbo_summed:.1f}} |
# | and one sigmoid | {{rate_sigmoid:.1f}} | {{distortion_sigmoid:.1f}} | {{elbo_sigmoid:.1f}} |
# | and normal noise | {{rate_mended:.1f}} | {{distortion_mended:.1f}} | {{elbo_mended:.1f}} |
#
# *Table 0.1. Nats per held-out picture. Larger ELBO is better.*
#
# Follow the rate. With sums, the code may speak again, and it does: {{rate_summed:.1f}} nats. But the ELBO stays where it
# was, because the decoder still has no words for what it hears: its probabilities end at 0.5 and {{twice_most:.2f}}. With
# one sigmoid the distortion falls from {{distortion_summed:.1f}} to {{distortion_sigmoid:.1f}} nats. With normal noise
# the codes lie where they are looked for. The rate rises to {{rate_mended:.1f}} nats, and each further nat saves
# {{saved:.1f}} nats of distortion.
#
# Here is the mended loss, to be compared line by line with the broken one.


# %%
def mended_loss(model, x):
    mean, log_variance = model.encode(x)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)  # was: rand_like
    logits = model.decode(z)  # was: a sigmoid at the end of the decoder
    bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")  # was: the mean
    kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
    return (bce + kl) / len(x)  # one mean, over the pictures, for both


mended = models["and normal noise"]
torch.manual_seed(0)
one = mended_loss(mended, test_x)
torch.manual_seed(0)
assert torch.isclose(one, make_loss(summed=True, normal_noise=True)(mended, test_x))

# %% tags=["hide-input"] alt="Five rows of ten pictures: digits, then what the VAE draws when broken and after each of the three mends. The broken one draws the same dark blot; the others draw different shapes."
with torch.no_grad():
    z = torch.randn(10, LATENTS, generator=torch.Generator().manual_seed(3))
    rows = {"digits": test_x[:10]}
    for name, (_, two_sigmoids, _) in steps.items():
        output = models[name].decode(z)
        rows[name] = output if two_sigmoids else torch.sigmoid(output)  # as its author would draw it
    show(rows, "drawn from the prior")

# %% [markdown]
# *Figure 0.2. Pictures drawn from the prior, with the same ten codes, after each mend.*
#
# The eye misleads. The row after the first mend looks as sharp as any, and its ELBO is no better than that of the blots.
# Do not judge a mend by its pictures. Measure.
#
# ## What happens if there is only one mistake?
#
# Perhaps one of the three is harmless. Guess which one costs most, then look. All eight combinations are trained.

# %% tags=["hide-input"] alt="Bar chart of the ELBO of eight VAEs, from no mistake to all three."
names = ("mean", "two sigmoids", "uniform noise")
costs = {}
for mistakes in itertools.product([False, True], repeat=3):
    mean_for_sum, two_sigmoids, uniform = mistakes
    model, _ = train(make_loss(not mean_for_sum, not uniform), two_sigmoids)
    costs[mistakes] = evaluate(model)["elbo"]
order = sorted(costs, key=sum)
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
titles = [" + ".join(n for n, m in zip(names, mistakes, strict=True) if m) or "none" for mistakes in order]
values = [costs[mistakes] for mistakes in order]
axis.barh(titles, values, color=[[GREEN, BLUE, ORANGE, PINK][sum(mistakes)] for mistakes in order])
for row, value in enumerate(values):
    axis.text(value, row, f"{value:.1f} ", ha="right", va="center")
axis.set(xlabel="ELBO of held-out pictures (nats per picture)", ylabel="mistakes", xlim=(min(values) - 8, 0))
axis.invert_yaxis()
alone = {name: costs[tuple(other == name for other in names)] for name in names}
none = quote("none", costs[False, False, False], abs=0.6)
quote("cost_mean", none - alone["mean"], abs=0.6)
quote("cost_sigmoids", none - alone["two sigmoids"], abs=0.8)
quote("cost_noise", none - alone["uniform noise"], abs=0.8)
assert all(value < none - 1 for value in alone.values())
with_two = [value for mistakes, value in costs.items() if mistakes[1]]
quote("with_two_best", max(with_two), abs=0.6)
quote("with_two_worst", min(with_two), abs=0.6)
assert max(with_two) - min(with_two) < 2

# What remains when the code is silent: each pixel by itself, as likely as it was in training.
often = train_x.mean(0).clamp(1e-4, 1 - 1e-4)
independent = log_likelihood(often.logit(), test_x).mean().item()
quote("independent", independent, abs=0.01)
assert abs(alone["mean"] - independent) < 0.5

# %% [markdown]
# *Figure 0.3. The ELBO with no mistake, one, two and three.*
#
# None is harmless. Without mistakes the ELBO is {{none:.1f}} nats. The mean alone costs
# {{cost_mean:.0f}} nats, two sigmoids alone {{cost_sigmoids:.0f}}, and uniform noise alone {{cost_noise:.0f}}. And one
# hides the others. As long as there are two sigmoids, the ELBO is between {{with_two_worst:.1f}} and
# {{with_two_best:.1f}}, whatever else is mended. A mend that changes nothing may still be right.
#
# The VAE with the mean alone is collapsed, and yet it is far better than the broken one. Its decoder has one sigmoid, so
# it can say how often each pixel is 1. Pixels that are drawn independently, each with its own frequency, have
# $\log p(x) = {{independent:.1f}}$ nats on average. That is what a collapsed VAE comes to. Only above that has a VAE
# learned how pixels go together.
#
# ## Three checks to keep
#
# 1. **Print rate and distortion apart,** in nats per picture. A rate below 0.1 nats is a code that says next to nothing.
# 2. **Know what your loss expects**: logits or probabilities. Print the smallest and the largest probability.
# 3. **Print mean and standard deviation of the noise.** They are 0 and 1.
#
# ## Exercises
#
# **Exercise 1.** Write a draw from $q(z|x)$ that is right. The noise comes from the generator that is given.
#
# <details><summary>Hint</summary>
#
# The standard deviation is not the log-variance, and not its exponential either. $\sigma = \sqrt{\sigma^2}$ and
# $\sigma^2 = \exp(\text{log\_variance})$.
#
# </details>


# %% tags=["exercise"]
def draw(mean, log_variance, generator):
    """One draw of z for each picture: [B, L]. mean, log_variance: [B, L]."""
    # begin solution
    epsilon = torch.randn(mean.shape, generator=generator)
    return mean + torch.exp(0.5 * log_variance) * epsilon
    # end solution


# %% tags=["check"]
settings = torch.tensor([3.0, -1.0]).expand(200_000, 2), torch.tensor([2.0, 0.0]).expand(200_000, 2)
z = draw(*settings, torch.Generator().manual_seed(0))
assert torch.equal(z, draw(*settings, torch.Generator().manual_seed(0))), (
    "the same generator should give the same draws"
)
assert (z.mean(0) - torch.tensor([3.0, -1.0])).abs().max() < 0.03, "the mean of the draws should be `mean`"
assert abs(z.var(0) / torch.tensor([2.0, 0.0]).exp() - 1).max() < 0.02, "their variance should be exp(log_variance)"
standard = (z - z.mean(0)) / z.std(0)
assert ((standard**4).mean(0) - 3).abs().max() < 0.1, (
    "a normal distribution has a fourth moment of 3; is the noise normal?"
)
assert abs(standard.prod(-1).mean()) < 0.02, "each latent should have noise of its own"

# %% [markdown]
# **Exercise 2.** A loss adds the mean squared error over all pixels of a batch, `F.mse_loss(reconstruction, x)`, to the
# rate summed over latents and averaged over pictures. How many times does the rate count, compared with the error
# summed over the pixels of a picture? Write it as a function of the number of pictures and pixels.
#
# <details><summary>Hint</summary>
#
# Multiply the whole loss by the number that turns the mean over pixels into a sum. That changes no minimum.
#
# </details>


# %% tags=["exercise"]
def hidden_weight(pictures, pixels):
    """How many times the rate counts."""
    # begin solution
    return pixels  # the mean over the pictures is taken in both; only the pixels differ
    # end solution


# %% tags=["check"]
for B, D in ((4, 10), (128, 784)):
    reconstruction = torch.zeros(B, D, requires_grad=True)
    rate = torch.zeros(B, requires_grad=True)
    (F.mse_loss(reconstruction, torch.ones(B, D)) + rate.mean()).backward()
    right = torch.zeros(B, D, requires_grad=True)
    ((right - 1) ** 2).sum(-1).mean().backward()
    per_error = (reconstruction.grad / right.grad).mean()  # what the loss gives to one unit of a picture's error
    per_rate = rate.grad.mean() * B  # and to one nat of its rate
    assert abs(hidden_weight(B, D) / (per_rate / per_error) - 1) < 1e-4, f"not so for {B} pictures of {D} pixels"

# %% [markdown]
# **Exercise 3.** Two sigmoids limit a pixel's probability to [0.5, 0.73]. What is the least distortion that any decoder
# can reach with them, if it knows the picture? Write it for a picture of `pixels` pixels, of which `ink` are 1.
#
# <details><summary>Hint</summary>
#
# A pixel that is 1 costs $-\log p$, and one that is 0 costs $-\log(1 - p)$. Choose the best $p$ in the range for each.
#
# </details>


# %% tags=["exercise"]
def least_distortion(pixels, ink):
    """Nats per picture, however good the decoder."""
    # begin solution
    best = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    return (-ink * best.log() - (pixels - ink) * torch.log(torch.tensor(0.5))).item()
    # end solution


# %% tags=["check"]
for pixels, ones in ((64, 20), (10, 10), (7, 0)):
    x = (torch.arange(pixels) < ones).double()
    free = torch.zeros(pixels, dtype=torch.float64, requires_grad=True)  # a decoder that may say anything
    optimizer = torch.optim.Adam([free], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(torch.sigmoid(free), x, reduction="sum").backward()
        optimizer.step()
    reached = F.binary_cross_entropy_with_logits(torch.sigmoid(free), x, reduction="sum").item()
    assert abs(least_distortion(pixels, ones) - reached) < 1e-3, f"{pixels} pixels, {ones} of them 1: not {reached:.3f}"

# %% [markdown]
# ## Summary
#
# - A VAE's loss is **distortion + rate**. Both are *sums*, over pixels and over latents. The mean is over the pictures,
#   once, for both.
# - A mean over pixels makes the rate count too often, here 4,096 times. Then the code falls silent: **posterior
#   collapse**, with a rate of {{rate_broken:.0e}} nats.
# - `binary_cross_entropy_with_logits` holds a sigmoid. A second one limits probabilities to 0.5–{{twice_most:.2f}}.
# - The noise is `torch.randn`, never `torch.rand`.
# - The broken VAE has an ELBO of {{elbo_broken:.1f}} nats, the mended one {{elbo_mended:.1f}}.
#
# Next: [chapter 1](01_from_autoencoder_to_vae.py) asks why there must be noise at all.
#
# ## References
#
# 1. D. P. Kingma and M. Welling (2013). *Auto-Encoding Variational Bayes.* arXiv:1312.6114. The bound: equation (3); the
#    draw $\mu + \sigma \varepsilon$: section 2.4; the closed form of the rate: appendix B.
# 2. I. Higgins et al. (2017). *beta-VAE.* ICLR 2017. A weight β on the rate, on purpose: equation (4).
# 3. M. Okabe and K. Ito (2008). *Color Universal Design.* The colors of the figures.
