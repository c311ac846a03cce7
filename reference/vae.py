"""A variational autoencoder (VAE), whole, in one file: python reference/vae.py.

The model says how a picture x of 64 black or white pixels comes about. First eight hidden numbers z are drawn from the
prior p(z) = N(0, I). Then the decoder turns z into 64 probabilities, and each pixel is drawn from its own: p(x|z).
Which z made a given x? The exact answer p(z|x) is out of reach. The encoder gives an approximation q(z|x), a Gaussian.
How good is the model? log p(x) is out of reach too, but a lower bound of it is not: the evidence lower bound, or ELBO,

    log p(x)  >=  ELBO  =  E_q[log p(x|z)] - KL(q(z|x) || p(z))  =  -(distortion + rate).

Distortion: the nats it costs to describe x when z is known. Rate: the nats it costs to describe z. (1 nat = 1.44 bits.)
Training maximizes the ELBO. [1] is Kingma & Welling 2013, arXiv:1312.6114; [2] is Burda et al. 2015, arXiv:1509.00519.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from matplotlib import color_sequences
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

LATENT_DIM, HIDDEN = 8, 256  # D and H in the comments below


def load_data() -> tuple[Tensor, ...]:
    """Digits of 8 x 8 pixels with levels 0..16, made binary: training, validation and test set, and the test labels."""
    levels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    x = (levels > 8).float()  # [1797, 64]
    # The division has a seed of its own, so that runs with different seeds are tested on the same pictures.
    test, validation, train = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split([180, 180, 1437])
    return x[train], x[validation], x[test], labels[test]


class VAE(nn.Module):
    def __init__(self, pixel_mean: Tensor, latent_dim: int = LATENT_DIM, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, hidden), nn.GELU())
        self.head = nn.Linear(hidden, 2 * latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.GELU(), nn.Linear(hidden, 64, bias=False))
        # Start at the mean picture, so that no epoch is spent on learning that corners are white.
        self.bias = nn.Parameter(pixel_mean.clamp(0.01, 0.99).logit())

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Mean and log-variance of q(z|x), a Gaussian with independent coordinates: [1] eq. (9)."""
        return self.head(self.encoder(x)).chunk(2, dim=-1)  # [B, 64] -> [B, H] -> [B, 2D] -> twice [B, D]

    def decode(self, z: Tensor) -> Tensor:
        """Logits of p(x|z): sigmoid(logit) is the probability that a pixel is black."""
        return self.decoder(z) + self.bias  # [..., D] -> [..., H] -> [..., 64]


def terms(model: VAE, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In nats: log p(x|z), KL(q(z|x) || p(z)), log p(z)/q(z|x). Takes x [B, 64] and noise eps ~ N(0, I) [K, B, D]."""
    loc, log_variance = model.encode(x)
    # Reparameterization, [1] section 2.4: all chance is in eps, so gradients can reach loc and log_variance.
    z = loc + torch.exp(0.5 * log_variance) * eps  # [K, B, D]
    logits = model.decode(z)  # [K, B, 64]
    # Bernoulli, [1] eq. (11): x log p + (1 - x) log(1 - p) with p = sigmoid(logit), in a form that never takes log 0.
    # Pixels are summed. With their mean instead, the rate would count 64-fold.
    log_px_z = (x * logits - F.softplus(logits)).sum(-1)  # [K, B]
    # The KL of two Gaussians has a closed form, [1] appendix B. No chance enters it.
    kl = 0.5 * (log_variance.exp() + loc**2 - 1 - log_variance).sum(-1)  # [B]
    # For the one z that was drawn: log p(z) - log q(z|x). Both hold -D/2 log(2 pi), which cancels.
    log_pz_qz = 0.5 * (eps**2 + log_variance - z**2).sum(-1)  # [K, B]
    return log_px_z, kl, log_pz_qz


def elbo(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The bound of [1] eq. (3), estimated as in eq. (10). One value for each draw and picture: [K, B]."""
    log_px_z, kl, _ = terms(model, x, eps)
    return log_px_z - kl


def loss(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """What training minimizes. The mean over the batch is the only mean, and it is taken here."""
    return -elbo(model, x, eps).mean()


def log_px(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """L_K of [2] eq. (8): log of the mean of K weights p(x, z)/q(z|x). Below log p(x) on average, closer as K grows."""
    log_px_z, _, log_pz_qz = terms(model, x, eps)
    return (log_px_z + log_pz_qz).logsumexp(0) - math.log(len(eps))  # [B]


def fit(model: VAE, train: Tensor, validation: Tensor, epochs: int, noise: torch.Generator) -> None:
    """Ends at the weights whose ELBO on the validation set was best, so that the test set chooses nothing."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    eps = torch.randn(20, len(validation), LATENT_DIM, generator=noise)  # drawn once: no epoch wins by luck
    best_value, best_weights = -math.inf, model.state_dict()
    for epoch in range(1, epochs + 1):
        for x in train[torch.randperm(len(train), generator=noise)].split(64):
            optimizer.zero_grad()
            loss(model, x, torch.randn(len(x), LATENT_DIM, generator=noise)).backward()
            optimizer.step()
        with torch.no_grad():
            value = elbo(model, validation, eps).mean().item()
        if value > best_value:
            best_value, best_weights = value, {name: w.clone() for name, w in model.state_dict().items()}
        if epoch % 10 == 0:
            print(f"epoch {epoch:3d}: validation ELBO {value:.2f} nats")
    model.load_state_dict(best_weights)


def draw(model: VAE, test: Tensor, labels: Tensor, noise: torch.Generator) -> Figure:
    figure = Figure(figsize=(11.5, 6), layout="constrained")
    pictures, latents = figure.subplots(1, 2, width_ratios=[5, 6])
    loc, _ = model.encode(test)
    z = torch.cat([loc[:30], torch.randn(60, LATENT_DIM, generator=noise)])
    decoded = model.decode(z).sigmoid()  # [90, 64]
    pairs = torch.stack([test[:30].view(3, 10, 64), decoded[:30].view(3, 10, 64)], dim=1)  # [3, 2, 10, 64]
    rows = torch.cat([pairs.view(6, 10, 8, 8), decoded[30:].view(6, 10, 8, 8)])
    cells = F.pad(rows, (0, 1, 0, 1)).transpose(1, 2)  # [12, 9, 10, 9]: white lines keep pictures apart
    pictures.imshow(cells.reshape(108, 90), cmap="gray_r", vmin=0, vmax=1)
    pictures.set(title="The darker a pixel, the likelier it is black", frame_on=False, xticks=[])
    pictures.set_yticks(range(4, 108, 9), ["test picture", "reconstruction"] * 3 + ["samples"] * 6)
    u, s, _ = torch.linalg.svd(loc - loc.mean(0), full_matrices=False)  # u * s: coordinates along the widest directions
    for digit, color in enumerate(color_sequences["petroff10"]):  # told apart by shape as well as by color
        latents.scatter(*(u * s)[labels == digit, :2].T, marker=f"${digit}$", s=60, color=color)
    latents.set_title("180 test pictures, each at the mean of its q(z|x)")
    latents.set(xlabel="first principal component", ylabel="second principal component")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a VAE on digits; print its held-out numbers; draw one picture.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", default="vae.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # at this size two threads gain little, and lose much on a busy machine
    noise = torch.manual_seed(args.seed)  # one generator draws the first weights and all noise
    train, validation, test, labels = load_data()
    model = VAE(train.mean(0))
    fit(model, train, validation, args.epochs, noise)
    with torch.no_grad():
        eps = torch.randn(500, len(test), LATENT_DIM, generator=noise)
        log_px_z, kl, _ = terms(model, test, eps)
        numbers = {"ELBO": (log_px_z - kl).mean(0), "rate": kl, "distortion": -log_px_z.mean(0)}
        numbers["log p(x), K = 500"] = log_px(model, test, eps)
        print(f"{len(test)} test pictures, nats per picture, mean ± standard error:")
        for name, value in numbers.items():  # value: [180]
            print(f"{name:>18} {value.mean():8.2f} ± {value.std() / len(value) ** 0.5:.2f}")
        draw(model, test, labels, noise).savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
