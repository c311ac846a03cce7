"""The two contestants beside vaelab, each with the network 784-H-D (GELU), Adam and float32.

python contestants.py example --train train.npy --epochs 3     the loop of the usual example script
python contestants.py pythae --train train.npy --epochs 3      pythae's own TrainingPipeline

`example` is what most tutorials show: a Dataset that makes a PIL picture of each example and turns it into a tensor,
a DataLoader without workers, binary cross-entropy and KL summed over the batch. `pythae` gets the pictures as one
float32 array, and keeps its pipeline's defaults but for batch size, learning rate and loss.

Prints one JSON object: `seconds` of training for each epoch, `images` per epoch, `threads`. With `--validation` the
pictures are binarized at every read, and `elbo` has the validation ELBO after each epoch; the clock stands still then.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from quality import Weights, elbo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

PIXELS = 784
AfterEpoch = Callable[[float, "MLP"], None]


class MLP(nn.Module):
    """Both networks: encoder 784-H-2D, decoder D-H-784, GELU between."""

    def __init__(self, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, hidden), nn.GELU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, PIXELS))

    def weights(self) -> Weights:
        """(W, b) of the four layers, from x to x."""
        layers = [layer for layer in (*self.encoder, *self.decoder) if isinstance(layer, nn.Linear)]
        return [(layer.weight.detach(), layer.bias.detach()) for layer in layers]


# -- the usual example script --------------------------------------------------------------------------------------


class PerImage(Dataset[Tensor]):
    """One picture at a time: array -> PIL -> array -> tensor [1, 28, 28] in [0, 1]."""

    def __init__(self, pictures: NDArray[np.uint8], binarize: bool) -> None:
        self.pictures = pictures
        self.binarize = binarize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        picture = Image.fromarray(self.pictures[index])
        levels = torch.from_numpy(np.array(picture, copy=True))[:, :, None]
        x = levels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return torch.bernoulli(x) if self.binarize else x


def train_example(pictures: NDArray[np.uint8], chosen: argparse.Namespace, after_epoch: AfterEpoch) -> None:
    """The training loop of the usual example script."""
    model = MLP(chosen.hidden, chosen.latent)
    loader = DataLoader(PerImage(pictures, chosen.validation is not None), batch_size=chosen.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=chosen.learning_rate)
    for epoch in range(chosen.epochs):
        began = time.perf_counter()
        model.train()
        total = 0.0
        for batch, x in enumerate(loader):
            optimizer.zero_grad()
            mean, log_variance = model.encoder(x.view(-1, PIXELS)).chunk(2, dim=1)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(log_variance)
            probabilities = torch.sigmoid(model.decoder(z))
            distortion = F.binary_cross_entropy(probabilities, x.view(-1, PIXELS), reduction="sum")
            rate = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
            loss = distortion + rate
            loss.backward()
            total += loss.item()
            optimizer.step()
            if batch % 100 == 0:
                print(f"epoch {epoch + 1} batch {batch}: loss {loss.item() / len(x):.2f}", file=sys.stderr)
        print(f"epoch {epoch + 1}: mean loss {total / len(pictures):.2f}", file=sys.stderr)
        after_epoch(time.perf_counter() - began, model)


# -- pythae --------------------------------------------------------------------------------------------------------


def train_pythae(pictures: NDArray[np.uint8], chosen: argparse.Namespace, after_epoch: AfterEpoch) -> None:
    """Train with pythae's TrainingPipeline. An epoch is timed between the pipeline's own callbacks."""
    # Imported by name: pythae has no types, and is an extra.
    models: Any = import_module("pythae.models")
    nets: Any = import_module("pythae.models.nn")
    output: Any = import_module("pythae.models.base.base_utils").ModelOutput
    callbacks: Any = import_module("pythae.trainers.training_callbacks")
    network = MLP(chosen.hidden, chosen.latent)

    class Encoder(nets.BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network.encoder

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.layers(x.flatten(1)).chunk(2, dim=1)
            return output(embedding=mean, log_covariance=log_variance)

    class Decoder(nets.BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network.decoder

        def forward(self, z: Tensor) -> Any:
            return output(reconstruction=torch.sigmoid(self.layers(z)).view(-1, 1, 28, 28))

    class Clock(callbacks.TrainingCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            after_epoch(time.perf_counter() - self.began, network)

    config = models.VAEConfig(input_dim=(1, 28, 28), latent_dim=chosen.latent, reconstruction_loss="bce")
    training = import_module("pythae.trainers").BaseTrainerConfig(
        output_dir="pythae",
        num_epochs=chosen.epochs,
        per_device_train_batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        no_cuda=True,
    )
    pipeline = import_module("pythae.pipelines").TrainingPipeline(
        model=models.VAE(config, encoder=Encoder(), decoder=Decoder()), training_config=training
    )
    x = pictures[:, None].astype(np.float32) / np.float32(255)
    pipeline(train_data=x if chosen.validation is None else binarizing(x), callbacks=[Clock()])


def binarizing(x: NDArray[np.float32]) -> Dataset[Any]:
    """Give pythae its own data set, with a binary picture drawn at every read."""
    sets: Any = import_module("pythae.data.datasets")

    class Binarizing(sets.BaseDataset):
        def __getitem__(self, index: int) -> Any:
            return sets.DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])

    return Binarizing(torch.from_numpy(x), torch.ones(len(x)))


# -- the command ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Train one contestant and print its seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=["example", "pythae"])
    parser.add_argument("--train", type=Path, required=True, help=".npy, uint8 [N, 28, 28]")
    parser.add_argument("--validation", type=Path, help=".npy, uint8 [M, 28, 28], 0 or 1")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--latent", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    pictures: NDArray[np.uint8] = np.load(chosen.train, allow_pickle=False)
    held_out = None
    if chosen.validation is not None:
        held_out = torch.from_numpy(np.load(chosen.validation, allow_pickle=False)).flatten(1).float()
    seconds: list[float] = []
    elbos: list[float] = []

    def after_epoch(elapsed: float, model: MLP) -> None:
        seconds.append(elapsed)
        if held_out is not None:
            elbos.append(elbo(model.weights(), held_out))

    (train_example if chosen.contestant == "example" else train_pythae)(pictures, chosen, after_epoch)
    result = {"seconds": seconds, "images": len(pictures), "threads": torch.get_num_threads(), "elbo": elbos}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
