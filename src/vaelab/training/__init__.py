"""Training."""

from vaelab.training.interrupt import Interrupted
from vaelab.training.loop import train

__all__ = ["Interrupted", "train"]
