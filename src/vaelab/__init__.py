"""vaelab: learn variational autoencoders, and use them.

    import vaelab
    run = vaelab.train("vae", data="digits")
    model = vaelab.load(run)
    pictures = model.sample(16)

Names are imported when they are first used, so `import vaelab` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vaelab.comparison import compare as compare
    from vaelab.comparison import compare_grid as compare_grid
    from vaelab.compression import compress as compress
    from vaelab.compression import decompress as decompress
    from vaelab.data import DataSpec as DataSpec
    from vaelab.diagnosis import doctor as doctor
    from vaelab.errors import InputError as InputError
    from vaelab.errors import VaelabError as VaelabError
    from vaelab.evaluation import evaluate as evaluate
    from vaelab.generation import encode as encode
    from vaelab.generation import interpolate as interpolate
    from vaelab.generation import reconstruct as reconstruct
    from vaelab.generation import sample as sample
    from vaelab.generation import traverse as traverse
    from vaelab.model import VAE as VAE
    from vaelab.model import Terms as Terms
    from vaelab.runs import Run as Run
    from vaelab.runs import load as load
    from vaelab.training import train as train

_HOME = {
    "DataSpec": "data",
    "InputError": "errors",
    "Run": "runs",
    "Terms": "model",
    "VAE": "model",
    "VaelabError": "errors",
    "compare": "comparison",
    "compare_grid": "comparison",
    "compress": "compression",
    "decompress": "compression",
    "doctor": "diagnosis",
    "encode": "generation",
    "evaluate": "evaluation",
    "interpolate": "generation",
    "load": "runs",
    "reconstruct": "generation",
    "sample": "generation",
    "train": "training",
    "traverse": "generation",
}
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"vaelab.{_HOME[name]}"), name)
    raise AttributeError(f"module 'vaelab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
