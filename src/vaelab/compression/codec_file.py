"""`codec.safetensors` in a run folder: the model in whole numbers, made once and kept.

It holds each tensor once, and in its metadata the structure that they belong to. Weights are whole numbers; tables hold
what another mathematical library might round otherwise, so they are kept and not computed again.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vaelab.compression import integers, ladder, latents, logistic, pixels
from vaelab.compression.quantize import CodecModel, quantize
from vaelab.errors import InputError
from vaelab.files import replacing
from vaelab.runs import Run, load

NAME = "codec.safetensors"
FORMAT = 1
WEIGHTS = (integers.Dense, integers.Convolution, integers.TransposedConvolution, integers.Shift)
"""What holds trained numbers; the tensors of all others are tables."""


def _kinds(*modules: ModuleType) -> Iterator[type]:
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__:
                yield value


KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (CodecModel, *_kinds(integers, ladder, latents, logistic, pixels))
}


@dataclass(frozen=True)
class Codec:
    """A model in whole numbers, and what its files are known by.

    Attributes:
        model: the model.
        model_hash: SHA-256 of its structure and weights.
        tables_hash: SHA-256 of its tables.
    """

    model: CodecModel
    model_hash: bytes
    tables_hash: bytes


class _Packed:
    """A structure as JSON beside its tensors, each of them once."""

    def __init__(self, model: CodecModel) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[bytes, str] = {}
        self._weights, self._tables = hashlib.sha256(), hashlib.sha256()
        self.structure = json.dumps(self._pack(model, self._tables), sort_keys=True)
        self._weights.update(self.structure.encode())

    @property
    def hashes(self) -> tuple[bytes, bytes]:
        return self._weights.digest(), self._tables.digest()

    def _pack(self, value: Any, digest: Any) -> Any:
        if isinstance(value, Tensor):
            return {"tensor": self._name(value, digest)}
        if isinstance(value, tuple):
            return [self._pack(one, digest) for one in value]
        if type(value) in KINDS.values():
            digest = self._weights if isinstance(value, WEIGHTS) else self._tables
            parts = {field.name: self._pack(getattr(value, field.name), digest) for field in fields(value)}
            return {"kind": type(value).__name__, **parts}
        return value

    def _name(self, tensor: Tensor, digest: Any) -> str:
        whole = tensor.to(torch.int32)
        kept = whole if torch.equal(whole.double(), tensor.double()) else tensor.double()
        array = kept.contiguous().numpy()
        content = f"{array.dtype}{array.shape}".encode() + array.astype(array.dtype.newbyteorder("<")).tobytes()
        digest.update(content)
        name = self._names.setdefault(hashlib.sha256(content).digest(), f"t{len(self._names)}")
        self.tensors[name] = kept.contiguous()
        return name


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_unpack(one, tensors) for one in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].double()
    parts = {name: _unpack(part, tensors) for name, part in value.items() if name != "kind"}
    return KINDS[value["kind"]](**parts)


def codec_of(model: CodecModel) -> Codec:
    """A model beside its hashes."""
    return Codec(model, *_Packed(model).hashes)


def open_codec(run: Run) -> Codec:
    """The codec of a run: the one that is kept in its folder, or else one that is made now, and kept.

    Raises:
        InputError: the run's model has no codec, or its codec file is damaged.
    """
    path, weights = run.path / NAME, run.path / "model.safetensors"
    made_from = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    if path.is_file():
        codec, was_made_from = read_codec(path)
        if made_from in (None, was_made_from):
            return codec
    packed = _Packed(model := quantize(load(run)))
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(_file(packed, str(made_from)))
    except OSError:
        pass  # a folder that cannot be written to: the next one makes it again
    return Codec(model, *packed.hashes)


def _file(packed: _Packed, made_from: str) -> bytes:
    metadata = {
        "format": str(FORMAT),
        "structure": packed.structure,
        "made_from": made_from,
        "hashes": b"".join(packed.hashes).hex(),
    }
    return save(packed.tensors, metadata)


def file_size(codec: Codec) -> int:
    """How many bytes a codec takes as a file."""
    return len(_file(_Packed(codec.model), codec.model_hash.hex()))  # a hash in the place of the weights' own


def read_codec(path: Path) -> tuple[Codec, str]:
    """A codec from its file, and the SHA-256 of the weights that it was made from.

    Raises:
        InputError: the file is damaged, or from a newer version.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dictionary
        if (found := metadata["format"]) != str(FORMAT):
            raise InputError(f"{path}: format {found}, this vaelab reads {FORMAT}; upgrade it")
        codec = codec_of(_unpack(json.loads(metadata["structure"]), tensors))
        # A weight that is wrong would compress what no other copy of the model decompresses.
        if metadata["hashes"] != (codec.model_hash + codec.tables_hash).hex():
            raise ValueError
        return codec, metadata["made_from"]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged; delete it, and it is made anew from the weights") from None
