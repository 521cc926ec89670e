"""A data set: images as uint8, class names and three splits; validated when it is built."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdx_analysis.data.splits import stratified_indices, take_per_class
from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown

# Images whose statistics are counted at once: 150 MB of pixels at 224×224, where a whole data set
# may not fit into memory.
_CHUNK = 1024
Pairs = tuple[Tensor | np.ndarray, Tensor | np.ndarray]


class ImageStore(Protocol):
    """N images of one shape that can be taken by index."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

    def take(self, indices: Tensor) -> Tensor:
        """The images at the int64 ``indices`` (B,): uint8 B×C×H×W on the store's device."""
        ...

    def subset(self, indices: Tensor) -> ImageStore:
        """A store of the images at the int64 ``indices`` only, in that order."""
        ...

    def to(self, device: torch.device | str) -> ImageStore:
        """The same images, taken onto ``device``."""
        ...


class TensorImages:
    """An image store that holds its ``images``, uint8 N×C×H×W, decoded."""

    def __init__(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 N×C×H×W, got {images.dtype} {tuple(images.shape)}"
            )
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        C, H, W = self._images.shape[1:]
        return C, H, W

    def take(self, indices: Tensor) -> Tensor:
        """The images at the int64 ``indices`` (B,): uint8 B×C×H×W, on the device of all."""
        return self._images[indices.to(self._images.device)]

    def subset(self, indices: Tensor) -> TensorImages:
        """A store of the images at the int64 ``indices`` only, in that order."""
        return TensorImages(self.take(indices))

    def to(self, device: torch.device | str) -> TensorImages:
        """The same images on ``device``."""
        return TensorImages(self._images.to(device))


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels, int64 (N,) in [0, K), and ids, int64 (N,).

    An id is the sample's index in the file or listing of its source that the split was drawn from:
    train and val share one, so their ids never meet.
    """

    name: str
    images: ImageStore
    labels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        sizes = (len(self.images), len(self.labels), len(self.ids))
        if len(set(sizes)) > 1:
            raise ValueError(f"{self.name}: {sizes} images, labels and ids must be equally many")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same split with all its tensors on ``device``."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            ids=self.ids.to(device),
        )

    def subset(self, indices: Tensor) -> Split:
        """The samples at the int64 ``indices``, positions in this split and not ids, in order."""
        indices = indices.to(self.labels.device)
        return replace(
            self,
            images=self.images.subset(indices),
            labels=self.labels[indices],
            ids=self.ids[indices],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits over the same K classes, with how to normalise and augment their images.

    ``mean`` and ``std`` are per channel, of pixels scaled to [0, 1]; ``pad`` is in pixels.
    ``superclasses`` maps a superclass to its classes and holds each class once. ``test_per_class``
    says that the test split is so many images of every class, drawn from a larger one. Change a
    field with ``dataclasses.replace``.

    Raises KdxError if a label is no class, a class has no training sample, val has fewer samples
    than there are classes, test is empty, images, mean and std disagree on the channels, or a std
    is not positive.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    superclasses: Mapping[str, tuple[str, ...]] | None
    source: str
    test_per_class: int | None = None

    def __post_init__(self) -> None:
        for split in self._splits:
            self._validate_split(split)
        self._validate_counts()
        self._validate_channels()
        if self.superclasses is not None:
            self._validate_superclasses(self.superclasses)

    @classmethod
    def from_tensors(
        cls,
        train: Pairs,
        test: Pairs,
        *,
        classes: Sequence[str] | None = None,
        name: str = "tensors",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pad: int = 0,
        flip: bool = False,
    ) -> Dataset:
        """Images that are in memory already, with validation held out of train.

        Args:
            train, test: (images, labels) each, tensors or arrays: uint8 N×C×H×W and integers N in
                [0, K).
            classes: names of the K classes; by default the labels' numbers.
            name: of the data set.
            val_fraction: the share of each class's training images for validation, in (0, 1).
            split_seed: what validation is drawn with.
            mean, std: per channel, of pixels scaled to [0, 1], as a teacher of yours was trained
                with; by default those of the training images.
            pad: pixels of zero padding from which training images are cropped; 0: none.
            flip: training images are mirrored at random.

        Raises:
            KdxError: images that are no uint8 N×C×H×W, with what to do about it; labels that are
                not one integer an image; a ``val_fraction`` out of its range; whatever the class
                refuses.
        """
        if not 0 < val_fraction < 1:
            raise KdxError(
                f"val_fraction is {val_fraction}: it must lie between 0 and 1, both excluded"
            )
        whole, held_out = _split_of("train", *train), _split_of("test", *test)
        rest, for_validation = stratified_indices(whole.labels, val_fraction, split_seed)
        images = whole.subset(rest)
        measured = channel_statistics(images.images)
        if classes is None:
            classes = [str(k) for k in range(int(whole.labels.max()) + 1)]
        return cls(
            name=name,
            train=images,
            val=replace(whole.subset(for_validation), name="val"),
            test=held_out,
            classes=tuple(classes),
            mean=measured[0] if mean is None else tuple(mean),
            std=measured[1] if std is None else tuple(std),
            pad=pad,
            flip=flip,
            superclasses=None,
            source="tensors given by the user",
        )

    @property
    def _splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.val, self.test

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.train.images.shape

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with all its tensors on ``device``."""
        train, val, test = (split.to(device) for split in self._splits)
        return replace(self, train=train, val=val, test=test)

    def normalise(self, images: Tensor) -> Tensor:
        """(x/255 - mean)/std per channel: uint8 to float32, B×C×H×W, on the images' device."""
        mean, std = (
            torch.tensor(values).view(-1, 1, 1).to(images.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return images.float().div_(255).sub_(mean).div_(std)

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON-able values; ``test_per_class`` where the test split was drawn.

        Equal fingerprints mean the same samples in the same splits.
        """
        drawn = self.test_per_class
        return {
            "name": self.name,
            "source": self.source,
            "sizes": {split.name: len(split) for split in self._splits},
            "shape": list(self.shape),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "fingerprint": self._fingerprint(),
            **({} if drawn is None else {"test_per_class": drawn}),
        }

    def probe_set(self, split: str, per_class: int, seed: int = 0) -> Split:
        """A class-balanced, un-augmented subset of ``split`` ('train' or 'val').

        It is ordered by class, then by id. Drawn without replacement with a generator of its own; a
        class with fewer than ``per_class`` samples gives all of them. Raises KdxError if a class
        has none, or for any other split: probes that choose between models must not see the test
        split.
        """
        if split not in ("train", "val"):
            raise unknown("split of a probe set", split, ("train", "val"))
        if per_class < 1:
            raise KdxError(
                f"a probe set of {per_class} images a class is empty: ask for at least 1"
            )
        whole = self.train if split == "train" else self.val
        counts = whole.labels.bincount(minlength=self.num_classes)
        if not counts.all():
            lacking = self.classes[int(counts.argmin())]
            raise KdxError(
                f"the {split} split of {self.name} has no sample of class {lacking!r} for a probe "
                "set: raise data.val_fraction or per_class"
            )
        by_id = whole.ids.argsort()
        ordered = by_id[whole.labels[by_id].argsort(stable=True)]
        taken = take_per_class(whole.labels[ordered], per_class, seed)
        return whole.subset(ordered[taken.to(ordered.device)])

    def probe_images(self, split: str, per_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Images of :meth:`probe_set` as models take them, B×C×H×W, and their labels, B.

        ``split`` is train or val, and ``per_class`` images of every class are drawn from it.
        """
        chosen = self.probe_set(split, per_class, seed)
        return self.normalise(chosen.images.take(torch.arange(len(chosen)))), chosen.labels

    def _validate_split(self, split: Split) -> None:
        K = self.num_classes
        wrong = split.labels[(split.labels < 0) | (split.labels >= K)]
        if len(wrong):
            raise KdxError(
                f"label {int(wrong[0])} in the {split.name} split of {self.name} is no class: "
                f"the {K} classes are labelled 0 to {K - 1}"
            )
        if split.images.shape != self.shape:
            raise KdxError(
                f"{self.name}: {split.name} images are {split.images.shape} (C, H, W), train "
                f"images are {self.shape}: all splits must share one shape"
            )

    def _validate_counts(self) -> None:
        K = self.num_classes
        counts = self.train.labels.bincount(minlength=K)
        if not counts.all():
            raise KdxError(
                f"class {self.classes[int(counts.argmin())]!r} of {self.name} has no training "
                "sample: add images of it or remove the class"
            )
        if len(self.val) < K:
            raise KdxError(
                f"{self.name} has fewer validation samples than classes ({len(self.val)} for {K}): "
                "raise data.val_fraction or per_class"
            )
        if not len(self.test):
            raise KdxError(f"the test split of {self.name} is empty: add test images")

    def _validate_channels(self) -> None:
        C = self.shape[0]
        if not C == len(self.mean) == len(self.std):
            raise KdxError(
                f"{self.name}: images have {C} channels, mean has {len(self.mean)} and std "
                f"{len(self.std)}: give one value a channel"
            )
        for channel, std in enumerate(self.std):
            if not (math.isfinite(std) and std > 0):
                raise KdxError(
                    f"{self.name}: the std of channel {channel} is {std}: it must be positive, so "
                    "the training images must not all be one colour there"
                )

    def _validate_superclasses(self, superclasses: Mapping[str, tuple[str, ...]]) -> None:
        filed = Counter(name for members in superclasses.values() for name in members)
        for name in (*self.classes, *filed):
            if filed[name] != 1 or name not in self.classes:
                raise KdxError(
                    f"superclasses of {self.name}: {name!r} stands in {filed[name]} of them and is "
                    f"{'' if name in self.classes else 'not '}a class: each class must stand in "
                    "exactly one"
                )

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in self._splits:
            ends = torch.tensor([0, len(split) - 1])
            digest.update(f"{split.name} {len(split)} {self.shape}\n".encode())
            for tensor in (split.labels, split.ids, split.images.take(ends)):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def channel_statistics(images: ImageStore) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel over all pixels of ``images``, scaled to [0, 1].

    They are exact, since they are computed from counts.
    """
    C = images.shape[0]
    counts = torch.zeros(C, 256, dtype=torch.float64)  # float32 stops counting at 2²⁴
    for indices in torch.arange(len(images)).split(_CHUNK):
        pixels = images.take(indices).transpose(0, 1).flatten(1)
        counts += torch.stack([channel.bincount(minlength=256) for channel in pixels]).cpu()
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ values
    std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _split_of(name: str, images: Any, labels: Any) -> Split:
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    shape = tuple(images.shape)
    if images.ndim == 3:
        raise KdxError(f"{name} images are {shape}: give N×C×H×W, for one channel images[:, None]")
    if images.ndim == 4 and shape[-1] in (1, 3) and shape[1] not in (1, 3):
        raise KdxError(
            f"{name} images are {shape}, channels last: give N×C×H×W, "
            "torch.as_tensor(images).permute(0, 3, 1, 2)"
        )
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise KdxError(
            f"{name} images are {images.dtype} {shape}: give uint8 N×C×H×W; of floats in [0, 1] "
            "(images * 255).round().to(torch.uint8), before any normalising"
        )
    if (
        labels.ndim != 1
        or len(labels) != len(images)
        or labels.is_floating_point()
        or labels.dtype == torch.bool
    ):
        raise KdxError(
            f"{name} labels are {labels.dtype} {tuple(labels.shape)} for {len(images)} images: "
            "give one class number for each, an integer from 0"
        )
    return Split(name, TensorImages(images), labels.long(), torch.arange(len(labels)))
