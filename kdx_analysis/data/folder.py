"""Image folders: ROOT/train/CLASS/*, ROOT/test/CLASS/* (and val), or ROOT/CLASS/* alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from kdx_analysis import io
from kdx_analysis.data.dataset import Split, TensorImages
from kdx_analysis.data.sources import Source, hold_out_test
from kdx_analysis.errors import KdxError

# Only formats that Pillow decodes itself: a file that is called .png cannot start another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_GREY = ("1", "L")
_WHOLE = ["."]  # the parts of a folder that is in one piece

T = TypeVar("T")


class FolderImages:
    """An image store of files that are decoded when they are taken.

    ``size`` is a side or (H, W): an image of another size is resized to cover it, then
    centre-cropped. ``channels`` is 1 (grey) or 3 (RGB). Raises KdxError for a file that is no
    image.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int | tuple[int, int],
        channels: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self._paths = tuple(paths)
        self._size = (size, size) if isinstance(size, int) else size
        self._channels = channels
        self._device = torch.device(device)

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._channels, *self._size

    def take(self, indices: Tensor) -> Tensor:
        H, W = self._size
        images = np.empty((len(indices), H, W, self._channels), dtype=np.uint8)

        def decode(place: int, index: int) -> None:
            images[place] = self._decode(self._paths[index])

        _in_threads(decode, range(len(indices)), indices.tolist())
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self._device)

    def subset(self, indices: Tensor) -> FolderImages:
        paths = [self._paths[index] for index in indices.tolist()]
        return FolderImages(paths, self._size, self._channels, self._device)

    def to(self, device: torch.device | str) -> FolderImages:
        return FolderImages(self._paths, self._size, self._channels, device)

    def _decode(self, path: Path) -> np.ndarray:
        H, W = self._size

        def pixels(image: Image.Image) -> np.ndarray:
            decoded = image.convert("L" if self._channels == 1 else "RGB")
            return np.asarray(ImageOps.fit(decoded, (W, H), Image.Resampling.BICUBIC))

        return _open(path, pixels).reshape(H, W, self._channels)


def read_folder(root: Path, size: int | None) -> Source:
    """The image folder at ``root``, its images not decoded yet.

    Classes are its folders, in order of name. Ids number the files by class, then by name: those of
    train and then of val together, those of test apart; in a folder in one piece all together.
    Images of one colour channel only make a data set of one channel.

    Raises KdxError if the folder is missing or has no such layout, a file is no image of 8 bits,
    images differ in size and ``size`` is not given, or superclasses.json does not map each class to
    a superclass.
    """
    parts, classes = _layout(root)
    listings = {part: _listing(root / part, classes) for part in parts}
    height, width, channels = _common_shape(
        [path for paths, _ in listings.values() for path in paths], size
    )
    splits = {
        part: Split(
            part, FolderImages(paths, (height, width), channels), labels, torch.arange(len(labels))
        )
        for part, (paths, labels) in listings.items()
    }
    if parts == _WHOLE:
        (train, test), val = hold_out_test(splits["."]), None
    else:
        train, val, test = splits["train"], splits.get("val"), splits["test"]
    return Source(
        name=root.resolve().name,
        train=train,
        val=None if val is None else replace(val, ids=val.ids + len(train)),
        test=test,
        classes=classes,
        mean=None,
        std=None,
        pad=min(height, width) // 8,  # as usual for CIFAR: 4 of 32
        flip=True,  # right for photographs; replace() it where classes differ in left and right
        superclasses=_superclasses(root / "superclasses.json", classes),
        source=f"image folder {root.resolve().name}",
    )


def _layout(root: Path) -> tuple[list[str], tuple[str, ...]]:
    """The parts of an image folder, _WHOLE where it has none, and the names of its classes."""
    if not root.is_dir():
        raise KdxError(
            f"{root} is no folder: give an image folder with CLASS/* or train/CLASS/* and "
            "test/CLASS/*"
        )
    parts = [part for part in ("train", "val", "test") if _folders(root / part)]
    if "train" not in parts:
        parts = _WHOLE
    elif "test" not in parts:
        raise KdxError(f"{root} has train/CLASS but no test/CLASS folders: add test images")
    classes = tuple(folder.name for folder in _folders(root / parts[0]))
    if len(classes) < 2:
        raise KdxError(
            f"{root} holds {len(classes)} class folder(s): put each of at least 2 classes in its "
            "own"
        )
    return parts, classes


def decoded_within(splits: Sequence[Split], max_memory: int) -> list[Split]:
    """The splits, their images decoded if that takes no more than ``max_memory`` bytes in all."""
    needed = sum(len(split) * int(np.prod(split.images.shape)) for split in splits)
    if needed > max_memory:
        return list(splits)
    return [
        replace(split, images=TensorImages(split.images.take(torch.arange(len(split)))))
        for split in splits
    ]


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _listing(root: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """The image files of each class's folder, by class, then by name, and their labels."""
    paths, labels = [], []
    for folder in _folders(root):
        if folder.name not in classes:
            raise KdxError(f"{folder} is no class of the training images: rename or remove it")
        files = sorted(path for path in folder.iterdir() if _is_image(path))
        paths += files
        labels += [classes.index(folder.name)] * len(files)
    return paths, torch.tensor(labels, dtype=torch.int64)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _common_shape(paths: Sequence[Path], size: int | None) -> tuple[int, int, int]:
    """(H, W, C) that all images are to have, from their headers."""
    if not paths:
        raise KdxError(
            f"the class folders hold no image; these are read: {', '.join(sorted(_SUFFIXES))}"
        )
    headers = _in_threads(lambda path: _open(path, lambda image: (image.size, image.mode)), paths)
    (width, height), _ = headers[0]
    for path, ((w, h), mode) in zip(paths, headers, strict=True):
        if mode.startswith(("I", "F")):
            raise KdxError(f"{path} has pixels of mode {mode}: convert it to 8 bits a channel")
        if size is None and (w, h) != (width, height):
            raise KdxError(
                f"{path} is {w}×{h} pixels but {paths[0]} is {width}×{height}: give size to crop "
                "all alike"
            )
    channels = 1 if all(mode in _GREY for _, mode in headers) else 3
    return (height, width, channels) if size is None else (size, size, channels)


def _superclasses(path: Path, classes: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
    if not path.exists():
        return None
    try:
        filed = io.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise KdxError(
            f"{path} is no JSON ({error}): write a map of each class to its superclass"
        ) from error
    if not (isinstance(filed, dict) and all(isinstance(value, str) for value in filed.values())):
        raise KdxError(f"{path} must be a map of each class to the name of its superclass")
    wrong = sorted(set(filed) ^ set(classes))
    if wrong:
        place = "is no class folder" if wrong[0] in filed else "has no superclass"
        raise KdxError(f"{wrong[0]!r} in {path} {place}: it must name each class, and nothing else")
    members: dict[str, list[str]] = {name: [] for name in sorted(set(filed.values()))}
    for name in classes:
        members[filed[name]].append(name)
    return {superclass: tuple(names) for superclass, names in members.items()}


def _open(path: Path, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return read(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise KdxError(
            f"{path} cannot be read as an image ({error}): replace or remove it"
        ) from error


def _in_threads(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # WeasyPrint's import sets it
    try:
        # Pillow decodes without the interpreter's lock, so threads do it side by side.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(function, *arguments))
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
