"""Where x comes from: named sets, folders, arrays and the Hub; divided, binarized, in memory or read when needed."""

from vaelab.data.dataset import Dataset, Split
from vaelab.data.prefetch import prefetch
from vaelab.data.sources import load, settled, sources, takes_size
from vaelab.data.spec import DataSpec, Factor
from vaelab.data.stream import Rows

__all__ = ["DataSpec", "Dataset", "Factor", "Rows", "Split", "load", "prefetch", "settled", "sources", "takes_size"]
