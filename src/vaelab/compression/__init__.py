"""Lossless compression: a trained model becomes a codec."""

from vaelab.compression.lossless import Compressed, compress, decompress
from vaelab.compression.measure import Measured, measure
from vaelab.compression.quantize import CodecModel, quantize

__all__ = ["CodecModel", "Compressed", "Measured", "compress", "decompress", "measure", "quantize"]
