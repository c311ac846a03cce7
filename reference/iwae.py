"""An importance-weighted autoencoder (IWAE), whole, in one file (read vae.py first): python reference/iwae.py.

Model and encoder are those of vae.py. What is new is the bound. Draw K times z_k ~ q(z|x), and weigh each draw by
w_k = p(x, z_k) / q(z_k|x). The mean of the weights estimates p(x) without bias, so the log of that mean is a bound:

    L_K  =  E[log (w_1 + ... + w_K) / K],        ELBO  =  L_1  <=  L_2  <=  ...  <=  L_K  <=  log p(x).

With K = 1 every draw has to explain x. With K = 20 it is enough that one of 20 does. So q may spread wider, and more
latents stay in use. This file trains one network on L_1 and one on L_20, and measures both by L_1, L_5, L_50, L_500.
[1] is Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519; [2] is Kingma & Welling 2013, arXiv:1312.6114.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

LATENT_DIM, HIDDEN = 20, 256  # D and H in the comments below
KS = (1, 5, 10, 50, 100, 500)  # the K at which bounds are measured; each divides the next, see `bounds`


def load_data() -> list[Tensor]:
    """Digits of 8 x 8 pixels with levels 0..16, made binary: training, validation and test set."""
    x = (torch.as_tensor(load_digits(return_X_y=True)[0]) > 8).float()  # [1797, 64]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the same whatever the run's seed
    return [x[index] for index in (order[360:], order[180:360], order[:180])]


class VAE(nn.Module):
    def __init__(self, pixel_mean: Tensor, latent_dim: int = LATENT_DIM, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, hidden), nn.GELU())
        self.head = nn.Linear(hidden, 2 * latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.GELU(), nn.Linear(hidden, 64, bias=False))
        self.bias = nn.Parameter(pixel_mean.clamp(0.01, 0.99).logit())  # start at the mean picture

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.encoder(x)).chunk(2, dim=-1)  # mean and log-variance of q(z|x), [2] eq. (9): twice [B, D]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z) + self.bias  # logits of p(x|z), [2] eq. (11): [..., D] -> [..., 64]


def log_weights(model: VAE, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Log w = log p(x|z) + log p(z) - log q(z|x) [K, B], and z. Takes x [B, 64] and noise eps ~ N(0, I) [K, B, D]."""
    loc, log_variance = model.encode(x)
    z = loc + torch.exp(0.5 * log_variance) * eps  # reparameterization, [1] section 3: [K, B, D]
    logits = model.decode(z)  # [K, B, 64]
    log_px_z = (x * logits - F.softplus(logits)).sum(-1)  # Bernoulli, summed over pixels: [K, B]
    # A weight belongs to the one z that was drawn, so the KL's closed form is of no use. -D/2 log(2 pi) cancels.
    log_pz_qz = 0.5 * (eps**2 + log_variance - z**2).sum(-1)  # [K, B]
    return log_px_z + log_pz_qz, z


def bound(log_w: Tensor) -> Tensor:
    """The K-draw bound L_K, [1] eq. (8), from log-weights [K, ...]."""
    # The mean is over the weights, not over their logs. `logsumexp` takes it without leaving the range of floats.
    return log_w.logsumexp(0) - math.log(len(log_w))


def surrogate(log_w: Tensor) -> Tensor:
    """A number whose gradient is [1] eq. (14): that of log w_k, weighted by w~_k = w_k / (w_1 + ... + w_K)."""
    # Its value is no bound. It exceeds L_K by KL(w~ || equal weights), and may exceed log p(x).
    return (log_w.detach().softmax(0) * log_w).sum(0)


def loss(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """What training minimizes: -L_K, where K is the number of draws in eps [K, B, D]."""
    # Autograd goes through `logsumexp`, whose derivative is w~. So this gradient is that of `surrogate`.
    return -bound(log_weights(model, x, eps)[0]).mean()


def bounds(log_w: Tensor, k: int) -> Tensor:
    """L_k of each picture, [B], averaged over groups of k draws out of log-weights [N, B]."""
    # A group of 50 is ten groups of 5. The log of a mean is at least the mean of the logs (Jensen), so L_1 <= L_5 <=
    # L_50 holds here for each picture, and not only on average.
    return bound(log_w.unflatten(0, (-1, k)).transpose(0, 1)).mean(0)


def fit(model: VAE, train: Tensor, validation: Tensor, k: int, epochs: int, noise: torch.Generator) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)  # steps shrink to 0: the end is calm
    eps = torch.randn(50, len(validation), LATENT_DIM, generator=noise)
    for epoch in range(1, epochs + 1):
        for x in train[torch.randperm(len(train), generator=noise)].split(64):
            optimizer.zero_grad()
            loss(model, x, torch.randn(k, len(x), LATENT_DIM, generator=noise)).backward()
            optimizer.step()
        schedule.step()
        if epoch % 20 == 0:  # the validation set chose sizes, steps and epochs; the test set chose nothing
            with torch.no_grad():
                print(f"trained on L_{k}, epoch {epoch:3d}: validation L_50 {-loss(model, validation, eps):.2f} nats")


def draw(curves: list[list[float]], spreads: list[Tensor], x: Tensor, decoded: Tensor, shares: Tensor) -> Figure:
    """x: 6 pictures [6, 64]; decoded: 7 draws for each [7, 6, 64]; shares: of all 20 draws' weight, [7, 6]."""
    figure = Figure(figsize=(11.5, 6.5), layout="constrained")
    pictures, over_k, latents = figure.subplot_mosaic("ab;ac", width_ratios=[6, 5]).values()
    cells = F.pad(torch.cat([x[None], decoded]).view(8, 6, 8, 8), (1, 1, 0, 4)).permute(1, 2, 0, 3)  # [6, 12, 8, 10]
    pictures.imshow(cells.reshape(72, 80), cmap="gray_r", vmin=0, vmax=1)
    pictures.set(title="Test picture; heaviest 7 of 20 draws; share of weight", frame_on=False, xticks=[], yticks=[])
    for i in range(42):
        pictures.text(10 * (i % 7) + 14.5, 12 * (i // 7) + 9, f"{100 * shares[i % 7, i // 7]:.0f} %", ha="center")
    for k, style, curve, spread in zip((1, 20), ("o-", "s--"), curves, spreads, strict=True):
        over_k.plot(KS, curve, style, label=f"trained on L_{k}")
        latents.semilogy(range(1, LATENT_DIM + 1), spread.sort(descending=True)[0], style)
    over_k.set(title="More draws, a tighter bound", xscale="log", xlabel="K", ylabel="test L_K (nats per picture)")
    latents.axhline(0.01, color="black", linestyle=":")
    latents.set(title="Active latents: above 0.01", xlabel="latent", ylabel="variance of q's mean", xticks=(1, 10, 20))
    over_k.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a VAE and an IWAE on digits; compare their bounds; draw both.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", default="iwae.png")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, not {args.epochs}")
    torch.set_num_threads(1)  # at this size two threads gain little, and lose much on a busy machine
    train, validation, test = load_data()
    curves, spreads = list[list[float]](), list[Tensor]()
    for k in (1, 20):
        noise = torch.manual_seed(args.seed)  # both start at the same weights
        model = VAE(train.mean(0))
        fit(model, train, validation, k, args.epochs, noise)
        with torch.no_grad():
            log_w, z = log_weights(model, test, torch.randn(KS[-1], len(test), LATENT_DIM, generator=noise))
            shares, order = log_w[:20, :6].softmax(0).sort(0, descending=True)  # [20, 6]
            decoded = model.decode(z[order[:7], range(6)]).sigmoid()  # [7, 6, 64]
            # [1] section 5.2: a latent is active if the mean of its q varies by more than 0.01 over the pictures.
            spreads.append(model.encode(test)[0].var(0, correction=0))  # [D]
        print(f"{len(test)} test pictures, nats per picture, mean ± standard error, trained on L_{k}:")
        numbers = {f"L_{k}": bounds(log_w, k) for k in KS}  # [180] each
        curves.append([value.mean().item() for value in numbers.values()])
        numbers["surrogate, no bound"] = surrogate(log_w[:50])
        for name in ("L_1", "L_5", "L_50", "L_500", "surrogate, no bound"):
            print(f"{name:>20} {numbers[name].mean():8.2f} ± {numbers[name].std() / len(test) ** 0.5:.2f}")
        print(f"{'active latents':>20} {(spreads[-1] > 0.01).sum():5d} of {LATENT_DIM}")
    draw(curves, spreads, test[:6], decoded, shares).savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
