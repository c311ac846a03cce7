"""Compare two architectures and two latent sizes on held-out digits.

    python examples/compare.py

The better model has the larger ELBO (nats per picture). ± is one standard error over the test pictures; the rows share
these pictures, so a difference between two rows is known better than that. The runs go into `compare/` here.
"""

import argparse
from pathlib import Path

import vaelab

parser = argparse.ArgumentParser(description="Compare architectures and latent sizes.")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", type=Path, default=Path("compare"), help="a new folder for the runs")
given = parser.parse_args()

architectures = {
    "mlp": {"network.name": "mlp", "network.hidden": [256]},
    "conv": {"network.name": "conv", "network.channels": [16, 32], "network.hidden": 128},
}
rows: list[str] = []
for name, network in architectures.items():
    for latent_dim in (2, 16):
        keys = {**network, "model.latent_dim": latent_dim, "training.batch_size": 64, "training.learning_rate": 3e-3}
        out = given.out / f"{name}-{latent_dim}"
        run = vaelab.train("vae", data="digits", epochs=given.epochs, out=out, overrides=keys, progress=False)
        found = vaelab.evaluate(run)
        elbo = f"{found.elbo:8.2f} ± {found.elbo_stderr:.2f}"
        rows.append(f"{name:12}  {latent_dim:7}  {elbo:>16}  {found.active_units:12}")

print(f"{'architecture':12}  {'latents':>7}  {'test ELBO (nats)':>16}  {'active units':>12}")
print("\n".join(rows))
