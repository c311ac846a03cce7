"""A convolutional VAE for gray pictures, whole, in one file (read vae.py first): python reference/conv_vae.py.

What is new: encoder and decoder know which pixels are neighbors, and a pixel has 17 levels of gray. So its p(x|z) is a
discretized logistic: a bell curve with a center (loc) and a width (scale) from the decoder, cut into 17 bins. A level's
probability is the area of its bin. The outer bins are open, so the areas sum to 1. A squared error hides the width.
Equations: [1] Kingma & Welling, arXiv:1312.6114; [2] Burda et al., arXiv:1509.00519; [3] PixelCNN++, arXiv:1701.05517.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

LATENT_DIM = 16  # D in the comments below
HALF_BIN = 0.5 / 16  # levels 0..16 become x = 0, 1/16, ..., 1; the bin of x reaches from x - HALF_BIN to x + HALF_BIN
FLOOR = 1e-3  # the least scale: a pixel that is white in every picture pulls its scale to 0, and we divide by it


def load_data() -> list[Tensor]:
    """Digits of 8 x 8 pixels with 17 levels, as x in [0, 1]: training, validation and test set."""
    x = torch.as_tensor(load_digits(return_X_y=True)[0]).float().view(-1, 1, 8, 8) / 16  # [1797, 1, 8, 8]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the same whatever the run's seed
    return [x[index] for index in (order[360:], order[180:360], order[:180])]


class VAE(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor, latent_dim: int = LATENT_DIM) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.GELU(),  # [B, 1, 8, 8] -> [B, 32, 4, 4]
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(),  # -> [B, 64, 2, 2]
            nn.Flatten(), nn.Linear(64 * 2 * 2, 256), nn.GELU(),  # -> [B, 256]
        )  # fmt: skip
        self.head = nn.Linear(256, 2 * latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 256), nn.GELU(),  # [N, D] -> [N, 256]
            nn.Linear(256, 64 * 2 * 2), nn.GELU(), nn.Unflatten(1, (64, 2, 2)),  # -> [N, 64, 2, 2]
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.GELU(),  # -> [N, 32, 4, 4]
            nn.ConvTranspose2d(32, 2, 4, stride=2, padding=1, bias=False),  # -> [N, 2, 8, 8]
        )  # fmt: skip
        # Start at each pixel's own mean and spread: a logistic of scale s has standard deviation s pi / sqrt(3).
        self.bias = nn.Parameter(torch.stack([mean, (std.clamp(min=0.05) * 3**0.5 / math.pi).log()]))  # [2, 1, 8, 8]

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.encoder(x)).chunk(2, dim=-1)  # mean and log-variance of q(z|x), [1] eq. (9): twice [B, D]

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        out = self.decoder(z.flatten(0, -2)).unflatten(0, z.shape[:-1])  # [..., D] -> [N, D] -> [..., 2, 8, 8]
        loc, log_scale = (out.unsqueeze(-3) + self.bias).unbind(-4)  # twice [..., 1, 8, 8]
        return loc, torch.sqrt(FLOOR**2 + torch.exp(2 * log_scale))  # loc and scale of p(x|z)


def log_prob(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log of the bins' areas, [3] eq. (2) with one component. The logistic's area left of a is sigmoid(a)."""
    a, b = (x + HALF_BIN - loc) / scale, (x - HALF_BIN - loc) / scale
    # Far from loc, sigmoid(a) - sigmoid(b) would round to 0. It equals sigmoid(a) sigmoid(-b) (1 - exp(b - a)).
    inner = F.logsigmoid(a) + F.logsigmoid(-b) + torch.log(-torch.expm1(-2 * HALF_BIN / scale))
    log_p = torch.where(x == 0, F.logsigmoid(a), torch.where(x == 1, F.logsigmoid(-b), inner))
    return log_p.sum((-3, -2, -1))  # [..., 1, 8, 8] -> [...]: summed over pixels, not averaged


def terms(model: VAE, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In nats: log p(x|z), KL(q(z|x) || p(z)), log p(z)/q(z|x). Takes x [B, 1, 8, 8], noise eps ~ N(0, I) [K, B, D]."""
    loc, log_variance = model.encode(x)
    z = loc + torch.exp(0.5 * log_variance) * eps  # reparameterization, [1] section 2.4: [K, B, D]
    log_px_z = log_prob(x, *model.decode(z))  # [K, B]
    kl = 0.5 * (log_variance.exp() + loc**2 - 1 - log_variance).sum(-1)  # closed form, [1] appendix B: [B]
    log_pz_qz = 0.5 * (eps**2 + log_variance - z**2).sum(-1)  # for the one z that was drawn: [K, B]
    return log_px_z, kl, log_pz_qz


def elbo(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    log_px_z, kl, _ = terms(model, x, eps)
    return log_px_z - kl  # the bound of [1] eq. (3), estimated as in eq. (10), for each draw and picture: [K, B]


def loss(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    return -elbo(model, x, eps).mean()  # what training minimizes; the mean over the batch is the only mean


def log_px(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """L_K of [2] eq. (8): log of the mean of K weights p(x, z)/q(z|x). Below log p(x) on average, closer as K grows."""
    log_px_z, _, log_pz_qz = terms(model, x, eps)
    return (log_px_z + log_pz_qz).logsumexp(0) - math.log(len(eps))  # [B]


def fit(model: VAE, train: Tensor, validation: Tensor, epochs: int, noise: torch.Generator) -> list[list[float]]:
    """Gives the ELBO of 180 training and of the 180 validation pictures after each epoch. The latter chose `epochs`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)  # steps shrink to 0: the end is calm
    eps, history = torch.randn(2, 180, LATENT_DIM, generator=noise), []  # the same noise each epoch
    for epoch in range(1, epochs + 1):
        for x in train[torch.randperm(len(train), generator=noise)].split(64):
            optimizer.zero_grad()
            loss(model, x, torch.randn(len(x), LATENT_DIM, generator=noise)).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            history.append([elbo(model, x, eps).mean().item() for x in (train[:180], validation)])
        print(f"epoch {epoch:2d}: ELBO {history[-1][0]:.2f} nats in training, {history[-1][1]:.2f} in validation")
    return history


def draw(model: VAE, test: Tensor, history: list[list[float]], noise: torch.Generator) -> Figure:
    figure, epochs = Figure(figsize=(11, 6.5), layout="constrained"), len(history)
    pictures, curves = figure.subplots(1, 2)
    loc, scale = model.decode(torch.cat([model.encode(test[:30])[0], torch.randn(30, LATENT_DIM, generator=noise)]))
    drawn = loc + scale * torch.rand(loc.shape, generator=noise).logit()  # logistic, by the inverse of its CDF
    pixels = torch.stack([test[:30], loc[:30], loc[30:], (drawn[30:] * 16).round() / 16]).view(2, 2, 3, 10, 8, 8)
    cells = F.pad(pixels.transpose(1, 2), (0, 1, 0, 1))  # [2, 3, 2, 10, 9, 9]: white lines keep pictures apart
    pictures.imshow(cells.transpose(3, 4).reshape(108, 90), cmap="gray_r", vmin=0, vmax=1)
    pictures.set(title="Reconstruction: z is the mean of q(z|x)\nSample: z from the prior", frame_on=False, xticks=[])
    pictures.set_yticks(range(4, 108, 9), ["test picture", "reconstruction"] * 3 + ["sample: loc", "pixels drawn"] * 3)
    curves.plot(range(1, epochs + 1), history, label=["180 training pictures", "180 validation pictures"])
    curves.set(xlabel="epoch", ylabel="ELBO (nats per picture)", xticks=range(0, epochs + 1, 1 + epochs // 10))
    curves.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a convolutional VAE on digits; print numbers; draw a picture.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", default="conv_vae.png")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, not {args.epochs}")
    torch.set_num_threads(1)  # at this size two threads gain little, and lose much on a busy machine
    noise = torch.manual_seed(args.seed)  # one generator draws the first weights and all noise
    train, validation, test = load_data()
    model = VAE(train.mean(0), train.std(0))
    history = fit(model, train, validation, args.epochs, noise)
    with torch.no_grad():
        eps = torch.randn(100, len(test), LATENT_DIM, generator=noise)
        log_px_z, kl, _ = terms(model, test, eps)
        numbers = {"ELBO": (log_px_z - kl).mean(0), "rate": kl, "distortion": -log_px_z.mean(0)}
        numbers["log p(x), K = 100"] = log_px(model, test, eps)
        numbers["(as bits/pixel)"] = -numbers["log p(x), K = 100"] / (64 * math.log(2))
        print(f"{len(test)} test pictures, nats per picture, mean ± standard error:")
        for name, value in numbers.items():  # value: [180]
            print(f"{name:>18} {value.mean():8.2f} ± {value.std() / len(value) ** 0.5:.2f}")
        draw(model, test, history, noise).savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
