"""Lossless compression: a trained model becomes a codec."""

from vaelab.compression.chain import decode, encode
from vaelab.compression.classical import Classical
from vaelab.compression.codecs import (
    Bisected,
    Bits,
    Categorical,
    Codec,
    Frequencies,
    Message,
    Uniform,
    pseudo_random_words,
)
from vaelab.compression.container import Chunk, Container, Reader, Stream
from vaelab.compression.lossless import Compressed, compress, decompress
from vaelab.compression.measure import Measured, measure
from vaelab.compression.quantize import CodecModel, quantize

__all__ = [
    "Bisected",
    "Bits",
    "Categorical",
    "Chunk",
    "Classical",
    "Codec",
    "CodecModel",
    "Compressed",
    "Container",
    "Frequencies",
    "Measured",
    "Message",
    "Reader",
    "Stream",
    "Uniform",
    "compress",
    "decode",
    "decompress",
    "encode",
    "measure",
    "pseudo_random_words",
    "quantize",
]
