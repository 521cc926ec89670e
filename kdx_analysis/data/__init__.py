"""Data sets as tensors with class names and splits: named ones, and image folders."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from kdx_analysis.data.augmentation import augment
from kdx_analysis.data.dataset import Dataset, Split, TensorImages, channel_statistics
from kdx_analysis.data.folder import decoded_within, read_folder
from kdx_analysis.data.resizing import check_size, resized
from kdx_analysis.data.sources import DATASETS, Source, hold_out_test
from kdx_analysis.data.splits import stratified_indices, take_per_class
from kdx_analysis.errors import KdxError

# Fixed, so that studies which test on as many images test on the same ones, and those which test
# on fewer on some of them.
_TEST_SEED = 0

__all__ = [
    "DATASETS",
    "Dataset",
    "Source",
    "Split",
    "TensorImages",
    "augment",
    "hold_out_test",
    "load_dataset",
]


def load_dataset(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    per_class: int | None = None,
    test_per_class: int | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    size: int | None = None,
    max_memory: int = 2 * 2**30,
) -> Dataset:
    """The data set of that ``name``, or the image folder at that path.

    Validation is held out of train. A Path is a folder; so is a string that is not registered and
    has a path separator or names a directory.

    - ``data_dir``: where named data sets lie; by default $KDX_DATA, else ./data.
    - ``per_class``: so many training images of each class, drawn before validation is held out of
      them; the test split stays whole.
    - ``test_per_class``: so many test images of each class, the same ones in every study; by
      default all.
    - ``val_fraction``: the share of each class's training images for validation, in (0, 1); a
      folder with a val of its own keeps that.
    - ``split_seed``: what both are drawn with.
    - ``size``: resize and centre-crop the images to this many pixels a side, larger or smaller than
      they are. Those of a named set are resized once, antialiased; its mean and std are then those
      of the training images as they have become, since averaging pixels takes contrast away, and a
      folder's always are.
    - ``max_memory``: a folder whose decoded images would take more bytes is decoded as images are
      taken.

    Raises KdxError for an unknown name, missing or unusable files, an option out of its range, and
    whatever :class:`Dataset` refuses.
    """
    if not 0 < val_fraction < 1:
        raise KdxError(
            f"val_fraction is {val_fraction}: it must lie between 0 and 1, both excluded"
        )
    if size is not None:
        check_size(size)
    from_folder = _is_folder(name)
    source = _source(name, from_folder, data_dir, size, test_per_class)
    train = source.train
    if per_class is not None:
        train = _take(train, source, per_class, split_seed, "per_class")
    val = source.val
    if val is None:
        rest, held_out = stratified_indices(train.labels, val_fraction, split_seed)
        train, val = train.subset(rest), replace(train.subset(held_out), name="val")
    test = source.test
    if from_folder:
        train, val, test = decoded_within([train, val, test], max_memory)
    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = channel_statistics(train.images)
    return Dataset(
        name=source.name,
        train=train,
        val=val,
        test=test,
        classes=source.classes,
        mean=mean,
        std=std,
        pad=source.pad,
        flip=source.flip,
        superclasses=source.superclasses,
        source=source.source,
        test_per_class=test_per_class,
    )


def _source(
    name: str | Path,
    from_folder: bool,
    data_dir: str | Path | None,
    size: int | None,
    test_per_class: int | None,
) -> Source:
    """The data set before validation is held out, resized, with as many test images as asked."""
    if from_folder:
        return _fewer_tested(read_folder(Path(name).expanduser(), size), test_per_class)
    folder = Path(data_dir or os.environ.get("KDX_DATA") or "data").expanduser()
    source = _fewer_tested(DATASETS[str(name)](folder), test_per_class)
    return source if size is None else resized(source, size)


def _is_folder(name: str | Path) -> bool:
    if isinstance(name, Path):
        return True
    return name not in DATASETS and ("/" in name or os.sep in name or Path(name).is_dir())


def _fewer_tested(source: Source, per_class: int | None) -> Source:
    if per_class is None:
        return source
    test = _take(source.test, source, per_class, _TEST_SEED, "test_per_class")
    return replace(source, test=test)


def _take(split: Split, source: Source, per_class: int, seed: int, key: str) -> Split:
    """``per_class`` images of every class; ``key`` is what asked for them."""
    if per_class < 1:
        raise KdxError(f"{key} is {per_class}: it must be at least 1")
    counts = split.labels.bincount(minlength=len(source.classes))
    if per_class > counts.min():
        fewest = int(counts.argmin())
        kind = "test" if split is source.test else "training"
        raise KdxError(
            f"{key} is {per_class}, but class {source.classes[fewest]!r} of {source.name} has "
            f"only {int(counts[fewest])} {kind} images: lower {key}"
        )
    return split.subset(take_per_class(split.labels, per_class, seed))
