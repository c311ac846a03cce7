"""VAEs that are well, in the styles of tutorials, for 8 × 8 digits: each the text of a file."""

# The example that most others were copied from.
CLASSIC = """
import torch
import torch.nn as nn
import torch.nn.functional as F


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 40)
        self.fc21 = nn.Linear(40, 8)
        self.fc22 = nn.Linear(40, 8)
        self.fc3 = nn.Linear(8, 40)
        self.fc4 = nn.Linear(40, 64)

    def encode(self, x):
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def decode(self, z):
        h3 = F.relu(self.fc3(z))
        return torch.sigmoid(self.fc4(h3))

    def forward(self, x):
        mu, logvar = self.encode(x.view(-1, 64))
        z = self.reparameterize(mu, logvar)
        return self.decode(z), mu, logvar


def loss(recon_x, x, mu, logvar):
    BCE = F.binary_cross_entropy(recon_x, x.view(-1, 64), reduction="sum")
    KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return BCE + KLD
"""

# Logits, a dictionary, z as a fourth output, batch normalization and dropout; a mean over the batch.
SEQUENTIAL = """
import torch
from torch import nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, d=64, latent=6):
        super().__init__()
        self.enc = nn.Sequential(
            nn.Flatten(), nn.Linear(d, 50), nn.BatchNorm1d(50), nn.LeakyReLU(), nn.Dropout(0.2),
            nn.Linear(50, 2 * latent),
        )
        self.dec = nn.Sequential(
            nn.Linear(latent, 50), nn.ReLU(), nn.Linear(50, d),
        )

    def forward(self, x):
        m, lv = self.enc(x).chunk(2, dim=1)
        z = m + (lv / 2).exp() * torch.randn(m.shape[0], m.shape[1])
        return {"z": z, "log_var": lv, "logits": self.dec(z).view(x.shape), "mean": m}


def criterion(logits, x, m, lv):
    rec = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
    kl = 0.5 * (lv.exp() + m**2 - 1 - lv).sum(1)
    return (rec + kl).mean()
"""

# Convolutions, a named tuple that begins with the mean, a Gaussian with a fitted scale, torch.distributions.
CONVOLUTIONS = """
from typing import NamedTuple

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence


class Out(NamedTuple):
    mu: torch.Tensor
    logvar: torch.Tensor
    recon: torch.Tensor


class ConvVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.to_mu, self.to_logvar = nn.Linear(64, 5), nn.Linear(64, 5)
        self.up = nn.Linear(5, 64)
        self.out = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1),
        )

    def forward(self, images):
        h = self.down(images).flatten(1)
        mu, logvar = self.to_mu(h), self.to_logvar(h)
        q = Normal(mu, logvar.mul(0.5).exp())
        z = q.rsample()
        recon = self.out(torch.relu(self.up(z)).view(-1, 16, 2, 2))
        return Out(mu, logvar, recon)


def elbo_loss(recon, x, mu, logvar):
    rec = ((recon - x) ** 2).sum() / (2 * 0.15**2)
    kl = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum()
    return {"loss": (rec + kl) / len(x), "rec": rec, "kl": kl}
"""

# Another order, the example among the outputs, a class as loss, as many latents as pixels.
LISTED = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.linear = nn.Linear(a, b)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mu, self.log_var = Block(64, 40), nn.Linear(40, 64), nn.Linear(40, 64)
        self.decoder = nn.Sequential(Block(64, 40), nn.Linear(40, 64), nn.Sigmoid())

    def forward(self, input):
        h = self.body(input)
        mu, log_var = self.mu(h), self.log_var(h)
        eps = torch.empty_like(mu).normal_()
        return [log_var, input, self.decoder(eps * log_var.mul(0.5).exp() + mu), mu]


class Loss(nn.Module):
    def forward(self, recons, input, mu, log_var):
        recons_loss = F.binary_cross_entropy(recons, input, reduction="sum") / input.shape[0]
        kld_loss = torch.mean(-0.5 * torch.sum(1 + log_var - mu ** 2 - log_var.exp(), dim=1), dim=0)
        return recons_loss + kld_loss, recons_loss, kld_loss
"""


# A standard deviation by softplus in place of a log-variance; torch.distributions in model and loss; Bernoulli.
SIGMA = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus())
        self.loc, self.raw = nn.Linear(32, 4), nn.Linear(32, 4)
        self.dec = nn.Sequential(nn.Linear(4, 32), nn.Softplus(), nn.Linear(32, 64))

    def forward(self, x):
        h = self.enc(x)
        loc, sigma = self.loc(h), F.softplus(self.raw(h)) + 1e-6
        z = Normal(loc, sigma).rsample()
        return self.dec(z), loc, sigma


def loss(logits, x, loc, sigma):
    log_px = Bernoulli(logits=logits).log_prob(x.flatten(1)).sum()
    kl = kl_divergence(Normal(loc, sigma), Normal(0, 1)).sum()
    return kl - log_px
"""

# Noise from a Normal(0, 1) that is kept; z among the outputs; the KL by hand, of a standard deviation.
KEPT_NORMAL = """
import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def __init__(self, latent_dims):
        super().__init__()
        self.linear1 = nn.Linear(64, 64)
        self.linear2, self.linear3 = nn.Linear(64, latent_dims), nn.Linear(64, latent_dims)
        self.N = torch.distributions.Normal(0, 1)

    def forward(self, x):
        x = F.relu(self.linear1(torch.flatten(x, start_dim=1)))
        mu = self.linear2(x)
        sigma = torch.exp(self.linear3(x))
        z = mu + sigma * self.N.sample(mu.shape)
        return z, mu, sigma


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder(2)
        self.decoder = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, x):
        z, mu, sigma = self.encoder(x)
        return self.decoder(z).reshape((-1, 1, 8, 8)), z, mu, sigma


def loss(x_hat, x, mu, sigma):
    kl = (sigma**2 / 2 + mu**2 / 2 - torch.log(sigma) - 1 / 2).sum()
    return F.binary_cross_entropy(x_hat, x, reduction="sum") + kl
"""

# Encoder and decoder are given to the model; noise in training only; a log-density; a sum of entries, the total last.
GIVEN_PARTS = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Output:
    z: torch.Tensor
    x_hat: torch.Tensor
    x: torch.Tensor
    mean: torch.Tensor
    log_var: torch.Tensor


class LitVAE(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, x):
        return torch.split(self.encoder(x.reshape(len(x), -1)), 6, dim=1)

    def reparameterize(self, mean, var):
        if not self.training:
            return mean
        return mean + var * torch.randn(var.size())

    def forward(self, x):
        mean, log_var = self.encode(x)
        log_var = log_var.clamp(-10, 10)
        z = self.reparameterize(mean, torch.exp(0.5 * log_var))
        return Output(z=z, x_hat=self.decoder(z), x=x, mean=mean, log_var=log_var)


def make():
    encoder = nn.Sequential(nn.Linear(64, 50), nn.BatchNorm1d(50), nn.ELU(), nn.Dropout(0.1), nn.Linear(50, 12))
    decoder = nn.Sequential(nn.Linear(6, 50), nn.LayerNorm(50), nn.GELU(), nn.Dropout(0.3), nn.Linear(50, 64))
    return LitVAE(encoder, nn.Sequential(decoder, nn.Unflatten(1, (1, 8, 8))))


def nelbo(x_hat, x, mean, log_var, kld_weight=1.0):
    recon = -torch.distributions.Normal(x_hat, 0.2).log_prob(x).sum(dim=(1, 2, 3)).mean()
    kl = kld_weight * 0.5 * torch.sum(log_var.exp() + mean.square() - 1.0 - log_var, dim=1).mean()
    return recon, kl, recon + kl
"""

# Slices of one output, a named tuple, a class as loss with its own logarithms.
BY_HAND = """
from collections import namedtuple

import torch
from torch import nn

Result = namedtuple("Result", "loc, log_scale2, pixels, code")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 14)
        )
        self.deconv = nn.Sequential(
            nn.Linear(7, 96), nn.ReLU(), nn.Unflatten(1, (6, 4, 4)), nn.Upsample(scale_factor=2),
            nn.Conv2d(6, 1, 3, padding=1), nn.Sigmoid(),
        )

    def forward(self, x):
        h = self.conv(x)
        m, v = h[:, :7], h[:, 7:]
        z = m + torch.exp(v).sqrt() * torch.normal(0, 1, size=m.shape)
        return Result(m, v, self.deconv(z), z)


class ELBO(nn.Module):
    def __init__(self, beta=1.0):
        super().__init__()
        self.beta = beta

    def forward(self, p, x, m, v):
        e = 1e-7
        ll = (x * torch.log(p + e) + (1 - x) * torch.log(1 - p + e)).view(len(x), -1).sum(1)
        kl = -0.5 * (1 + v - m * m - v.exp()).sum(1)
        return -(ll - self.beta * kl).mean()
"""

WELL = {
    "classic": (CLASSIC, "VAE", "loss"),
    "sequential": (SEQUENTIAL, "Net", "criterion"),
    "convolutions": (CONVOLUTIONS, "ConvVAE", "elbo_loss"),
    "listed": (LISTED, "Wide", "Loss"),
    "sigma": (SIGMA, "VAE", "loss"),
    "kept-normal": (KEPT_NORMAL, "VAE", "loss"),
    "given-parts": (GIVEN_PARTS, "make", "nelbo"),
    "by-hand": (BY_HAND, "Net", "ELBO"),
}
"""By style: the text of a file, and the names of model and loss in it."""
