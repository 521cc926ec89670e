"""The pipeline of images on the device, against torch's DataLoader with two workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from kdx_analysis.bench.common import made_up
from kdx_analysis.bench.contract import Contest, Contestant, Run, Setting, bench
from kdx_analysis.data import Dataset, augment

_IMAGES, _BATCH, _WORKERS = 2000, 128, 2


class PlainImages(TorchDataset[tuple[Tensor, int]]):
    """Training images one by one: padded, cropped and mirrored at random, normalised.

    Args:
        data: whose training images they are.
        augmented: whether anything is drawn.
    """

    def __init__(self, data: Dataset, *, augmented: bool = True) -> None:
        self.images = data.train.images.take(torch.arange(len(data.train)))
        self.labels = data.train.labels
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
        self.pad, self.augmented = data.pad, augmented

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.augmented:
            height, width = image.shape[1:]
            down, across = torch.randint(2 * self.pad + 1, (2,)).tolist()
            image = F.pad(image, (self.pad,) * 4)[:, down : down + height, across : across + width]
            if torch.rand(()) < 0.5:
                image = image.flip(2)
        normalised = (image.float() / 255 - self.mean) / self.std
        return normalised, int(self.labels[index])


def batches(
    data: Dataset, order: Tensor, generator: torch.Generator, *, augmented: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ours: every batch is taken, augmented and normalised at once, where the data are."""
    for indices in order.split(_BATCH):
        images = data.train.images.take(indices)
        if augmented:
            images = augment(images, data.pad, data.flip, generator)
        yield data.normalise(images), data.train.labels[indices.to(data.train.labels.device)]


def contest(data: Callable[[], Dataset], device: torch.device) -> Contest:
    """An epoch of batches; what is compared are images that are not augmented."""

    def make_plain() -> Run:
        loader = DataLoader(
            PlainImages(data()),
            batch_size=_BATCH,
            shuffle=True,
            num_workers=_WORKERS,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )

        def run() -> None:
            for images, labels in loader:
                images.to(device, non_blocking=True)
                labels.to(device, non_blocking=True)

        return run

    def make_ours() -> Run:
        given = data().to(device)
        generator = torch.Generator().manual_seed(0)

        def run() -> None:
            order = torch.randperm(len(given.train), generator=generator)
            for _ in batches(given, order, generator):
                pass

        return run

    def plain() -> Mapping[str, Tensor]:
        loaded = DataLoader(PlainImages(data(), augmented=False), batch_size=_BATCH)
        return {"images": torch.cat([images for images, _ in loaded])}

    def ours() -> Mapping[str, Tensor]:
        given = data().to(device)
        order = torch.arange(len(given.train))
        made = batches(given, order, torch.Generator(), augmented=False)
        return {"images": torch.cat([images for images, _ in made])}

    given = data()
    values = len(given.train) * given.train.images.take(torch.arange(1)).numel()
    moved = values * (1 + 4)  # bytes that are read, and floats that are written
    none = partial(float, 0)
    return Contest(
        "",
        Contestant(f"DataLoader, {_WORKERS} workers", make_plain, plain, none, moved),
        (Contestant("batches at once", make_ours, ours, none, moved),),
        rounds=7,
    )


@bench(
    "pipeline",
    title="an epoch of 1,800 augmented images of 32×32",
    against="torch's DataLoader with two workers, image by image",
    target=15,
)
def pipeline(setting: Setting) -> Iterator[Contest]:
    """Without any model."""
    yield contest(partial(made_up, 10, _IMAGES, 10, (3, 32, 32)), setting.device)
