"""Tiny data and models whose answers are known; at module level, so that other processes can be
handed them.
"""

import torch
from torch import nn

from kdx_analysis.data.dataset import Dataset, Split, TensorImages
from kdx_analysis.models.zoo import StagedNet, plain_stage

CLASSES = ("ant", "bee", "cat")
SECTIONS = {
    "explainer": {"experts": 2},
    "training": {"epochs": 2, "batch_size": 16, "warmup_epochs": 0},
    "probes": {"per_class": 2, "checkpoints": 1, "null_draws": 19, "permutations": 19},
}


def split(name: str, per_class: int, first_id: int = 0, seed: int = 0) -> Split:
    """1×8×8 images of noise in [0, 160), the rows of the class (0–1, 2–3, 4–5) brighter by 60."""
    labels = torch.arange(len(CLASSES)).repeat(per_class)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(160, (len(labels), 1, 8, 8), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label : 2 * label + 2] += 60
    return Split(
        name, TensorImages(images.to(torch.uint8)), labels, first_id + torch.arange(len(labels))
    )


def dataset(**changes) -> Dataset:
    fields = {
        "name": "toy",
        "train": split("train", 16, seed=1),
        "val": split("val", 8, first_id=48, seed=2),
        "test": split("test", 8, seed=3),
        "classes": CLASSES,
        "mean": (0.4,),
        "std": (0.25,),
        "pad": 1,
        "flip": True,
        "superclasses": None,
        "source": "made up",
    }
    return Dataset(**(fields | changes))


class RowTeacher(nn.Module):
    """Logit k is ``scale`` times the mean of rows 2k and 2k + 1: right on nearly every image of
    ``dataset``.
    """

    def __init__(self, scale: float = 8.0, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.norm = nn.BatchNorm2d(
            1, affine=False
        )  # running statistics 0 and 1: in eval mode the identity
        self.order = order

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = self.norm(images).mean(dim=(1, 3)).unflatten(1, (4, 2)).mean(dim=2)
        return self.scale * rows[:, list(self.order)]


def staged_net() -> StagedNet:
    """Three stages of 4 channels for the images of ``dataset``."""
    stages = [plain_stage(1 if i == 0 else 4, 4) for i in range(3)]
    return StagedNet(nn.Identity(), stages, 4, len(CLASSES), pool=4)
