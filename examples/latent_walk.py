"""Walk through the latent space of digits, and show the way as an animation.

    python examples/latent_walk.py

The walk leads from a 0 to a 1, a 2, ..., a 9 and back. Each stop is where the encoder puts a held-out digit. Between
two stops the latents change evenly, and the decoder shows what lies there. The file is walk.gif, written here.
"""

import argparse

import torch
from PIL import Image

import vaelab

FRAMES = 6  # from one stop to the next

parser = argparse.ArgumentParser(description="Walk the latent space into a GIF.")
parser.add_argument("--epochs", type=int, default=40)
given = parser.parse_args()

keys = {"model.latent_dim": 8, "training.batch_size": 64, "training.learning_rate": 3e-3}
run = vaelab.train("vae", data="digits", epochs=given.epochs, overrides=keys)
model = vaelab.load(run)

found = vaelab.encode(run, split="test")
assert found.labels is not None
stops = torch.stack([found.mean[found.labels == digit][0] for digit in range(10)])  # [10, D]: one example a digit
steps = torch.linspace(0, 1, FRAMES + 1)[:-1, None, None]
z = torch.lerp(stops, stops.roll(-1, 0), steps).transpose(0, 1)  # [10, FRAMES, D]: from each stop to the next
pixels = (255 * model.show(z).flatten(0, 2)).round().byte()  # [10 * FRAMES, 8, 8], the mean of p(x|z)

frames = [Image.fromarray(picture.numpy()).resize((160, 160), Image.Resampling.NEAREST) for picture in pixels]
frames[0].save("walk.gif", save_all=True, append_images=frames[1:], duration=80, loop=0, optimize=False)
print(f"wrote walk.gif: {len(frames)} frames")
