"""What a compressed file knows of its input beside the examples: names, sizes, types. Whoever reads it trusts nothing.

A description is a JSON object of one of two forms. `array` is one array, of a file or of a named source:

    file         "npy" or "npz"
    name         of the array in the .npz; null for an .npy
    dtype        NumPy's name of the type, byte order first: "|u1", ">i4"
    shape        of the array
    axes         what its axes are: "ND", "NHW", "NCHW" or "NHWC"
    labels       of an .npz: {"dtype", "data"}, data being their bytes, deflated (zlib), in base64; or null

`folder` is a folder of pictures, each list with an entry for each of them:

    names        paths under the folder, with "/", ending in ".png"
    modes        "1" (black and white), "L" (grey) or "RGB"
    orientations how the picture is to be turned to be upright, as EXIF counts it; 1 is upright
    sizes        [height, width]; null where all have that of an example
    binary       whether the examples' 1 is white, 255

Both have `event` (the shape of an example), `tiled` (whether pictures were cut into tiles of that size) and `note`
(what to tell whoever gets the data back).
"""

import base64
import re
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, product
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from vaelab.errors import CorruptFile, InputError

DTYPES = frozenset(
    np.dtype(f"{order}{kind}{size}").str
    for order, (kind, sizes) in product("<>", {"b": "1", "u": "1248", "i": "1248", "f": "248"}.items())
    for size in sizes
)
"""Types that arrays of whole levels come in."""

_Count = Annotated[int, Field(ge=0, le=2**40)]
_Side = Annotated[int, Field(ge=1, le=2**24)]
_Orientation = Annotated[int, Field(ge=1, le=8)]
_LONGEST_NAME, _LONGEST_PATH, _DEEPEST = 255, 1000, 64  # in bytes, as file systems have it; in characters; in folders
_DRIVE = re.compile("[A-Za-z]:")


def contradiction(what: str) -> CorruptFile:
    """The error for a file whose parts do not fit each other."""
    return CorruptFile(f"the compressed file contradicts itself: {what}; copy it again, or compress the data again")


def fault_of(name: str) -> str | None:
    """Why a path cannot be that of a file under a folder, on this system or another; None if it can."""
    if len(name) > _LONGEST_PATH:
        return "is too long"
    parts = name.split("/")
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "has control characters"
    if "\\" in name:
        return "has a backslash"
    if _DRIVE.match(name):
        return "begins like a drive of Windows"
    if any(part.startswith(".") for part in parts):
        return "is hidden, or leads out of the folder"
    if "" in parts:
        return "begins or ends with a slash, or has two in a row"
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "is not in UTF-8"
    if longest > _LONGEST_NAME:
        return "is too long"
    return "lies too deep" if len(parts) > _DEEPEST else None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Description(_Strict):
    """What both forms have."""

    event: Annotated[list[_Side], Field(min_length=1, max_length=3)]
    tiled: bool
    note: Annotated[str, Field(max_length=200)]

    @property
    @abstractmethod
    def pictures(self) -> int:
        """How many pictures or rows there are."""

    @abstractmethod
    def tiles(self, position: int) -> range:
        """Which examples picture `position` is made of."""

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return self.tiles(self.pictures - 1).stop if self.pictures else 0

    def check_only(self, only: Sequence[int]) -> None:
        """Refuse positions that are not there, or told twice.

        Raises:
            InputError: one line.
        """
        known: set[int] = set()
        for position in only:
            if not 0 <= position < self.pictures:
                raise InputError(
                    f"only {position}: there are {self.pictures:,} pictures or rows, counted from 0; leave it out"
                )
            if position in known:
                raise InputError(f"only {position}: is named twice; name it once")
            known.add(position)

    def _per_picture(self, height: int, width: int) -> int:
        """Examples that a picture is made of."""
        if not self.tiled:
            return 1
        return -(-height // self.event[1]) * -(-width // self.event[2])

    @model_validator(mode="after")
    def _check(self) -> "Description":
        if len(self.event) == 2 or (len(self.event) == 1 and self.tiled):
            raise ValueError("examples are vectors, or pictures with channels; only pictures are tiled")
        if not self.note.isprintable():
            raise ValueError("its note is not one line of text")
        return self


# -- arrays --------------------------------------------------------------------------------------------------------

AXES = {2: ("ND",), 3: ("NHW",), 4: ("NCHW", "NHWC")}
"""What the axes of an array can be, by their number: N examples, D dimensions, C channels, height and width."""


def fits(axes: str, shape: Sequence[int], event: Sequence[int], tiled: bool) -> bool:
    """Whether an array holds examples of the shape `event`, grey ones of color, or what can be cut into such tiles."""
    sides = dict(zip(axes, shape, strict=True))
    if "D" in sides:
        return [sides["D"]] == list(event)
    if len(event) != 3:
        return False
    channels, *size = sides.get("C", 1), sides["H"], sides["W"]
    return (
        (tiled or size == list(event[1:]))
        and 0 not in size
        and (channels == event[0] or (channels, event[0]) == (1, 3))
    )


class Labels(_Strict):
    """The labels of an .npz, one an example, of any type in `DTYPES`."""

    dtype: str
    data: str

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Labels":
        """Pack labels [N]."""
        packed = zlib.compress(np.ascontiguousarray(values).tobytes(), level=9)
        return cls(dtype=values.dtype.str, data=base64.b64encode(packed).decode())

    def values(self, n: int) -> NDArray[Any]:
        """Unpack n labels.

        Raises:
            CorruptFile: other bytes than those of n labels.
        """
        dtype = np.dtype(self.dtype)
        unpacking = zlib.decompressobj()
        try:
            found = unpacking.decompress(base64.b64decode(self.data, validate=True), n * dtype.itemsize + 1)
        except (ValueError, zlib.error):
            found = None
        if found is None or len(found) != n * dtype.itemsize or not unpacking.eof or unpacking.unused_data:
            raise contradiction(f"its labels are not those of {n:,} examples")
        if dtype.kind == "b" and n and max(found) > 1:
            raise contradiction("its labels are neither true nor false")
        return np.frombuffer(found, dtype)

    @model_validator(mode="after")
    def _check(self) -> "Labels":
        if self.dtype not in DTYPES:
            raise ValueError("its labels have another type than numbers")
        return self


class ArrayDescription(Description):
    """One array; the file's docstring tells the fields."""

    form: Literal["array"] = "array"
    file: Literal["npy", "npz"]
    name: str | None
    dtype: str
    shape: Annotated[list[_Count], Field(min_length=2, max_length=4)]
    axes: Literal["ND", "NHW", "NCHW", "NHWC"]
    labels: Labels | None

    @property
    def pictures(self) -> int:
        return self.shape[0]

    @property
    def channels_first(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        sides = dict(zip(self.axes, self.shape, strict=True))
        return sides.get("C", 1), sides["H"], sides["W"]

    def tiles(self, position: int) -> range:
        each = self._per_picture(*self.channels_first[1:]) if self.tiled else 1
        return range(position * each, (position + 1) * each)

    @model_validator(mode="after")
    def _check_array(self) -> "ArrayDescription":
        if self.dtype not in DTYPES:
            raise ValueError("its array has another type than numbers")
        if self.axes not in AXES[len(self.shape)]:
            raise ValueError("its array has another number of axes than it says")
        if not all(1 <= side <= 2**24 for side in self.shape[1:]):
            raise ValueError("its array has an axis of no length, or of more than 16,777,216")
        if not fits(self.axes, self.shape, self.event, self.tiled):
            raise ValueError("its array has another shape than its examples")
        if self.file == "npy" and (self.name is not None or self.labels is not None):
            raise ValueError("an .npy holds one array without a name")
        if self.file == "npz" and (self.name is None or self.name == "y" or fault_of(self.name) is not None):
            raise ValueError("its array has no name that an .npz can give it")
        return self


# -- folders -------------------------------------------------------------------------------------------------------


class FolderDescription(Description):
    """A folder of pictures; the file's docstring tells the fields."""

    form: Literal["folder"] = "folder"
    names: Annotated[list[str], Field(min_length=1)]
    modes: list[Literal["1", "L", "RGB"]]
    orientations: list[_Orientation]
    sizes: list[Annotated[list[_Side], Field(min_length=2, max_length=2)]] | None
    binary: bool

    @property
    def pictures(self) -> int:
        return len(self.names)

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of a picture."""
        height, width = self.event[1:] if self.sizes is None else self.sizes[position]
        return height, width

    def tiles(self, position: int) -> range:
        return range(self._starts[position], self._starts[position + 1])

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((self._per_picture(*self.size(i)) for i in range(self.pictures)), initial=0))

    @model_validator(mode="after")
    def _check_folder(self) -> "FolderDescription":
        if len(self.event) != 3 or self.event[0] not in (1, 3):
            raise ValueError("its examples are no pictures")
        if (self.sizes is not None) != self.tiled:
            raise ValueError("pictures have sizes of their own where they are tiled, and there alone")
        lists = [self.modes, self.orientations, self.names if self.sizes is None else self.sizes]
        if any(len(one) != len(self.names) for one in lists):
            raise ValueError("its lists of pictures differ in length")
        check_names(self.names)
        return self


def check_names(names: list[str]) -> None:
    """Refuse names that cannot all be files under one folder.

    Raises:
        ValueError: one line.
    """
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        if fault := fault_of(name):
            raise ValueError(f"{name!r} {fault}")
        if not name.endswith(".png"):
            raise ValueError(f"{name!r} does not end in .png")
        if name in files:
            raise ValueError(f"two pictures are called {name!r}")
        files.add(name)
        folders.add(name.rpartition("/")[0])
    for folder in folders:
        for parent in accumulate(folder.split("/"), "{}/{}".format):
            if parent in files:
                raise ValueError(f"{parent!r} is a picture and a folder")


# -- building and reading ------------------------------------------------------------------------------------------

Form = TypeVar("Form", bound=Description)
_ADAPTER: TypeAdapter[ArrayDescription | FolderDescription] = TypeAdapter(
    Annotated[ArrayDescription | FolderDescription, Field(discriminator="form")]
)


def describe(form: type[Form], where: str, **fields: Any) -> Form:
    """Describe an input that was read.

    Raises:
        InputError: what could not be given back.
    """
    try:
        return form(**fields)
    except ValidationError as error:
        raise InputError(f"{where}: {_reason(error)}; it could not be given back") from None


def parse(description: dict[str, Any]) -> ArrayDescription | FolderDescription:
    """Read a description that may be damaged or forged.

    Raises:
        CorruptFile: one line.
    """
    try:
        return _ADAPTER.validate_python(description)
    except ValidationError as error:
        raise contradiction(_reason(error)) from None


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"].startswith("union_tag"):  # whose message quotes the input
        return "its description has no known form"
    return first["msg"].removeprefix("Value error, ")
