"""Train on a folder of your own pictures; then write reconstructions and new pictures.

    python examples/own_pictures.py path/to/pictures --size 64

All files are written into the current directory. Without a folder, the script first makes one, `pictures/`, from
scikit-learn's digits. Pictures may have any size and color mode: they are scaled and cropped to --size.
"""

import argparse
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import vaelab


def make_folder(folder: Path) -> Path:
    images, labels = load_digits().images, load_digits().target  # type: ignore
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / str(label) / f"{number:04d}.png"  # a subfolder for each label
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image / 16 * 255).astype("uint8")).save(file)
    return folder


parser = argparse.ArgumentParser(description="Train a VAE on a folder of pictures.")
parser.add_argument("folder", type=Path, nargs="?", help="default: make one from scikit-learn's digits")
parser.add_argument("--size", type=int, default=16, help="height and width in pixels")
parser.add_argument("--epochs", type=int, default=10)
given = parser.parse_args()

folder = given.folder or make_folder(Path("pictures"))
keys = {"data.size": given.size, "training.batch_size": 64, "training.learning_rate": 3e-3}
run = vaelab.train("conv-vae", data=str(folder.resolve()), epochs=given.epochs, overrides=keys)
vaelab.reconstruct(run, 16, out="reconstructions.png")
vaelab.sample(run, 64, out="samples.png")
print(f"wrote {run}, reconstructions.png and samples.png")
