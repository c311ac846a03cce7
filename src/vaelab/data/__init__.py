"""Where x comes from: built-in sets, folders of pictures and arrays, divided, binarized and held in memory."""

from vaelab.data.dataset import Dataset, Split
from vaelab.data.sources import load, settled, sources
from vaelab.data.spec import DataSpec

__all__ = ["DataSpec", "Dataset", "Split", "load", "settled", "sources"]
