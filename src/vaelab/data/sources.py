"""From the name of a source to its data."""

from collections.abc import Callable
from pathlib import Path

import torch

from vaelab.config import DataConfig, nearest
from vaelab.data import freyfaces, hub, mnist, shapes
from vaelab.data.arrays import load_array
from vaelab.data.dataset import Dataset
from vaelab.data.division import divide_randomly
from vaelab.data.folder import load_folder
from vaelab.data.prepare import Examples, prepare
from vaelab.data.sprites import load_sprites
from vaelab.errors import InputError


def load_digits(config: DataConfig) -> Examples:
    """scikit-learn's 1,797 handwritten digits as uint8 `[1797, 1, 8, 8]` of 17 levels, divided at random."""
    from sklearn.datasets import load_digits as load_bunch

    values, labels = load_bunch(return_X_y=True)
    raw = torch.from_numpy(values.reshape(-1, 1, 8, 8).astype("uint8"))
    return Examples(
        raw=raw,
        levels=17,
        division=divide_randomly(len(raw), config),
        labels=torch.from_numpy(labels.astype("int64")),
        label_names=tuple("0123456789"),
    )


_NAMED: dict[str, Callable[[DataConfig], Examples]] = {
    "digits": load_digits,
    "sprites": load_sprites,
    "mnist": mnist.load_mnist,
    "freyfaces": freyfaces.load_freyfaces,
    "dsprites": shapes.load_dsprites,
    "3dshapes": shapes.load_3dshapes,
}
_ON_DISK = ("dsprites", "3dshapes")  # always read batch by batch


def load(config: DataConfig) -> Dataset:
    """The data set that `config.source` names: a named set, a folder, a `.npy` or `.npz` file, or `hf:owner/name`.

    A name goes before a folder of the same name; `./digits` is the folder.

    Raises:
        InputError: no such source, or a source that is no data.
        VaelabError: a download fails.
    """
    source = config.source
    if source.startswith(hub.PREFIX):
        return prepare(hub.load_hub(source, config), config)
    path = Path(source).expanduser()
    if source not in _NAMED and path.is_dir():
        return prepare(load_folder(path, config), config)
    if config.size is not None and (source in _NAMED or path.exists()):
        raise InputError(f"data.size={config.size}: only a folder of pictures is resized; leave it out for {source}")
    if source in _NAMED and source not in _ON_DISK and config.stream is True:
        raise InputError(f"data.stream=true: {source} is always in memory; leave data.stream out")
    if source in _NAMED:
        return prepare(_NAMED[source](config), config)
    if path.is_file():
        if path.suffix.lower() not in (".npy", ".npz"):
            raise InputError(f"{source}: not a kind of data file; use .npy, .npz or a folder of pictures")
        return prepare(load_array(path, config), config)
    if len(path.parts) > 1 or path.suffix.lower() in (".npy", ".npz"):
        raise InputError(f"{source}: no such file or folder")
    raise InputError(
        f"unknown data source {source}; {nearest(source, _NAMED)} A folder, .npy, .npz or hf:owner/name will do, too"
    )


def sources() -> list[tuple[str, str, str]]:
    """What there is, for a listing: name, description and status."""
    later = "to download"
    dsprites = "found" if shapes.dsprites_file().is_file() else later
    return [
        ("digits", "1,797 grey digits, 8 x 8, 17 levels, labels", "built in"),
        ("sprites", "26,880 colored shapes, 32 x 32, six factors", "built in"),
        ("mnist", "70,000 grey digits, 28 x 28, 256 levels, labels", "found" if mnist.is_present() else later),
        ("freyfaces", "1,965 frames of a face, 28 x 20, 256 levels", "found" if freyfaces.is_present() else later),
        ("dsprites", "737,280 white shapes, 64 x 64, five factors", dsprites),
        ("3dshapes", "480,000 shapes in rooms, 64 x 64, six factors", shapes.shapes_status()),
        ("FOLDER", "your pictures, any format and size: data.size=64", "yours"),
        ("FILE.npy", "your array [N, D], [N, H, W(, C)] or [N, C, H, W]", "yours"),
        ("FILE.npz", "the same as array x; integer labels as y", "yours"),
        ("hf:OWNER/NAME", "a data set of the Hugging Face Hub", hub.status()),
        ("hf:FOLDER", "what its save_to_disk writes, or parquet files", hub.status()),
    ]


def takes_size(source: str) -> bool:
    """Whether the pictures of a source may be brought to one size (`data.size`)."""
    return source.startswith(hub.PREFIX) or (source not in _NAMED and Path(source).expanduser().is_dir())


def settled(config: DataConfig, dataset: Dataset) -> DataConfig:
    """The configuration that reads these data again from anywhere: an absolute path, the levels that were found."""
    path = Path(config.source).expanduser()
    source = str(path.resolve()) if config.source not in _NAMED and path.exists() else hub.absolute(config.source)
    return config.model_copy(update={"source": source, "levels": dataset.levels})
