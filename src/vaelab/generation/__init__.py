"""What a trained run makes: samples, reconstructions, paths in latent space, and the latents of examples.

Each function returns tensors on the model's scale (`vaelab.data.DataSpec`), float32, and writes them to `out` if it
is given, by its ending:

    .png   a sheet with a caption: pictures; a heat map where examples are vectors
    .gif   an animation (pictures only)
    .npz   the arrays, under the names of the fields of what the function returns

In an .npz, `x` and `original` are on the data's own scale. For data of L levels, means of p(x|z) are float32 on
0 … L − 1, draws and originals are integers 0 … L − 1; binary data have L = 2. Real data and latents are as they are.

`run` is a run folder or a `Run`. The same seed gives the same result, and latents and examples do not depend on `draw`.
"""

from vaelab.generation.encoding import Encoding, encode
from vaelab.generation.latent_paths import Interpolation, Traversal, interpolate, traverse
from vaelab.generation.sampling import Reconstructions, Samples, reconstruct, sample

__all__ = [
    "Encoding",
    "Interpolation",
    "Reconstructions",
    "Samples",
    "Traversal",
    "encode",
    "interpolate",
    "reconstruct",
    "sample",
    "traverse",
]
