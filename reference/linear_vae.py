"""A linear VAE, whole, in one file (read vae.py first), and its exact answer beside it: python reference/linear_vae.py.

Decoder and encoder are matrices, W and V. All pixels share one noise variance sigma^2, all pictures one diagonal s^2:

    p(z) = N(0, I),        p(x|z) = N(W z + mu, sigma^2 I),        q(z|x) = N(V (x - mu), diag(s^2)).
So p(x) = N(mu, W W' + sigma^2 I). This is probabilistic PCA [1], whose best weights are known. Let lambda_1 >= lambda_2
>= ... be the eigenvalues of the data's covariance and u_i its eigenvectors. The best W has the columns
w_i = sqrt(lambda_i - sigma^2) u_i where lambda_i > sigma^2. Elsewhere w_i = 0: that latent says nothing, it collapses.
With this W the exact posterior has independent coordinates, so q can be equal to it. Then the ELBO is not merely a
bound: it is log p(x) itself [2], and training can be held to the number that PCA gives.
[1] is Tipping & Bishop 1999, Probabilistic Principal Component Analysis; [2] is Lucas et al. 2019, arXiv:1911.02469.
"""

import argparse
import math

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

LEVEL = 0.02  # the fixed sigma^2 of the second model, in squared gray levels (white is 0, black is 1)


def load_data() -> list[Tensor]:
    """Digits of 8 x 8 pixels, levels 0..16 divided by 16: training and test set."""
    x = torch.as_tensor(load_digits(return_X_y=True)[0]).float() / 16  # [1797, 64]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the same whatever the run's seed
    return [x[order[180:]], x[order[:180]]]


class LinearVAE(nn.Module):
    def __init__(self, x: Tensor, latent_dim: int, variance: float | None = None) -> None:
        """With `variance`, sigma^2 is fixed. Without, it is learned, and starts at the mean variance of a pixel."""
        super().__init__()
        self.encoder = nn.Linear(64, latent_dim, bias=False)  # its weight is V [D, 64]
        self.decoder = nn.Linear(latent_dim, 64, bias=False)  # its weight is W [64, D]
        self.mu = nn.Parameter(x.mean(0))
        self.log_variance = nn.Parameter(torch.zeros(latent_dim))  # log s^2
        start = x.var(0).mean() if variance is None else torch.tensor(variance)
        self.log_noise = nn.Parameter(start.log(), requires_grad=variance is None)  # log sigma^2

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x - self.mu)  # mean of q(z|x): [..., 64] -> [..., D]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z) + self.mu  # mean of p(x|z): [..., D] -> [..., 64]


def terms(model: LinearVAE, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """In nats: log p(x|z) and each latent's KL; then |x - W z - mu|^2. With noise eps [K, B, D]: of K draws of z."""
    loc, variance = model.encode(x), model.log_variance.exp()  # [B, D], [D]
    if eps is None:
        # A linear decoder turns the variance s_i^2 of a latent into a variance |w_i|^2 s_i^2 of pixels. Thus the mean
        # of the squared error under q has a closed form, and training needs no noise.
        squares = (x - model.decode(loc)).square().sum(-1) + (model.decoder.weight.square() * variance).sum()  # [B]
    else:
        squares = (x - model.decode(loc + variance.sqrt() * eps)).square().sum(-1)  # [K, B]
    # A squared error is a log-density only together with its sigma^2 and its constant.
    log_px_z = -0.5 * (squares / model.log_noise.exp() + 64 * (model.log_noise + math.log(2 * math.pi)))
    kl = 0.5 * (variance + loc**2 - 1 - model.log_variance)  # [B, D]
    return log_px_z, kl, squares


def elbo(model: LinearVAE, x: Tensor, eps: Tensor | None = None) -> Tensor:
    log_px_z, kl, _ = terms(model, x, eps)
    return log_px_z - kl.sum(-1)  # [B], or with noise [K, B]


def log_px(model: LinearVAE, x: Tensor) -> Tensor:
    """Exact, [B]: the sum of the independent Gaussians W z and noise is a Gaussian, p(x) = N(mu, W W' + sigma^2 I)."""
    covariance = model.decoder.weight @ model.decoder.weight.T + model.log_noise.exp().expand(64).diag()
    return torch.distributions.MultivariateNormal(model.mu, covariance).log_prob(x)


def fit(model: LinearVAE, x: Tensor, epochs: int, noise: torch.Generator) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)  # steps shrink to 0: the end is calm
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x), generator=noise)].split(512):
            optimizer.zero_grad()
            (-elbo(model, batch).mean()).backward()  # the mean over the batch is the only mean
            optimizer.step()
        schedule.step()


def spectrum(x: Tensor) -> Tensor:
    """Eigenvalues [64] of the covariance of x [N, 64] (divided by N), largest first."""
    return torch.linalg.eigvalsh(x.double().T.cov(correction=0)).flip(0).clamp(min=0)


def exact(eigenvalues: Tensor, latent_dim: int, variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """What `terms` gives at the best weights, as means over the data: Shannon's reverse water-filling at sigma^2."""
    kept, rest = eigenvalues[:latent_dim], eigenvalues[latent_dim:]
    # Above the water level sigma^2, a latent costs 1/2 ln(lambda_i / sigma^2) nats and leaves an error of sigma^2.
    # Below it, or without a latent, a direction costs nothing and leaves an error of all its variance, lambda_i.
    kl = 0.5 * (kept / variance).clamp(min=1).log()
    squares = kept.clamp(max=variance).sum() + rest.sum()
    # At the best sigma^2, rest.mean() by [1] eq. (8), log_px_z - kl.sum() is the log-likelihood of [1] eq. (4).
    log_px_z = -0.5 * (squares / variance + 64 * math.log(2 * math.pi * variance))
    return log_px_z, kl, squares


def draw(weight: Tensor, kl: Tensor, eigenvalues: Tensor) -> Figure:
    figure, i = Figure(figsize=(11, 4.5), layout="constrained"), range(1, len(kl) + 1)
    left, right = figure.subplots(1, 2)
    kl, order = kl.sort(descending=True)  # the latent with the largest KL first, as PCA has it
    left.plot(i, eigenvalues[: len(kl)], "k", label=r"PCA: eigenvalue $\lambda_i$")
    left.plot(i, weight.square().sum(0)[order] + LEVEL, "o", c="#D55E00", label=r"trained: $|w_i|^2 + \sigma^2$")
    left.axhline(LEVEL, c="#0072B2", ls="--", label=rf"water level $\sigma^2$ = {LEVEL}")
    left.set(title="Above the water a latent takes a direction", xlabel="latent i", ylabel="variance", yscale="log")
    right.plot(i, exact(eigenvalues, len(kl), LEVEL)[1], "k", label=r"PCA: ½ ln($\lambda_i/\sigma^2$), at least 0")
    right.plot(i, kl, "o", c="#D55E00", label="trained: KL")
    right.set(title="Below it, the latent collapses", xlabel="latent i", ylabel="KL (nats per picture)")
    left.legend()
    right.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Train linear VAEs on digits; print PCA's exact answers; draw both.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1500)
    parser.add_argument("--out", default="linear_vae.png")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, not {args.epochs}")
    torch.set_num_threads(1)  # at this size two threads gain little, and lose much on a busy machine
    noise = torch.manual_seed(args.seed)  # one generator draws the first weights and all noise
    train, test = load_data()
    eigenvalues = spectrum(train)
    for latent_dim, level in ((10, None), (40, LEVEL)):
        model = LinearVAE(train, latent_dim, level)
        fit(model, train, args.epochs, noise)
        best = exact(eigenvalues, latent_dim, level or eigenvalues[latent_dim:].mean().item())
        with torch.no_grad():
            trained = [value.mean(0) for value in terms(model, train)]
            drawn = elbo(model, test, torch.randn(100, len(test), latent_dim, generator=noise)).mean(0)
            numbers = {"ELBO": elbo(model, test), "ELBO, 100 draws": drawn, "log p(x), exact": log_px(model, test)}
        print(f"{latent_dim} latents, sigma^2 = {model.log_noise.exp():.5f}; {len(train)} training pictures, in nats:")
        for name, (log_px_z, kl, squares) in {"PCA": best, "trained": trained}.items():
            print(f"{name:>9}: ELBO {log_px_z - kl.sum():.3f}, rate {kl.sum():.3f}, squared error {squares:.5f}")
        print(f"{len(test)} test pictures, mean ± standard error:")
        for name, value in numbers.items():  # value: [180]
            print(f"{name:>18} {value.mean():8.2f} ± {value.std() / len(value) ** 0.5:.2f}")
    draw(model.decoder.weight.detach(), trained[1], eigenvalues).savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
