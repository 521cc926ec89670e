"""Named data sets: how each is read from disk, before a validation split is held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdx_analysis import _compat  # noqa: F401
from kdx_analysis.data.dataset import Split, TensorImages
from kdx_analysis.data.splits import stratified_indices
from kdx_analysis.errors import KdxError
from kdx_analysis.registry import Registry

# A source in one piece is cut here, once and for all, so that every study tests on the same images.
_TEST_FRACTION, _TEST_SEED = 0.2, 0


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its makers cut it: the fields of Dataset, before validation is held out.

    ``val`` is None where train must give it, ``mean`` and ``std`` where they must be computed from
    train.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    pad: int
    flip: bool
    source: str
    superclasses: Mapping[str, tuple[str, ...]] | None = None
    val: Split | None = None


DATASETS: Registry[Callable[[Path], Source]] = Registry(
    "data set", rooms=("kdx_analysis.data.sources",)
)


def hold_out_test(whole: Split) -> tuple[Split, Split]:
    """(train, test) of a source in one piece: a fixed stratified test split of 20 %.

    Ids stay those of ``whole``.
    """
    rest, held_out = stratified_indices(whole.labels, _TEST_FRACTION, _TEST_SEED)
    return (
        Split("train", whole.images.subset(rest), whole.labels[rest], whole.ids[rest]),
        Split("test", whole.images.subset(held_out), whole.labels[held_out], whole.ids[held_out]),
    )


@DATASETS.register("digits")
def _digits(data_dir: Path) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images)  # 0 … 16
    images = (pixels * 255 / 16).round().to(torch.uint8)[:, None]
    train, test = hold_out_test(_split("digits", images, digits.target))
    return Source(
        name="digits",
        train=train,
        test=test,
        classes=tuple("0123456789"),
        mean=(0.3060,),
        std=(0.3763,),
        pad=1,
        flip=False,
        source="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; as in "
        "scikit-learn",
    )


@DATASETS.register("cifar10")
def _cifar10(data_dir: Path) -> Source:
    train, test, classes = _cifar(
        "CIFAR10", "cifar10", data_dir, "cifar-10-python.tar.gz", "cifar-10-batches-py"
    )
    return Source(
        name="cifar10",
        train=train,
        test=test,
        classes=classes,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        pad=4,
        flip=True,
        source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images (CIFAR-10)",
    )


@DATASETS.register("cifar100")
def _cifar100(data_dir: Path) -> Source:
    train, test, classes = _cifar(
        "CIFAR100", "cifar100", data_dir, "cifar-100-python.tar.gz", "cifar-100-python"
    )
    return Source(
        name="cifar100",
        train=train,
        test=test,
        classes=classes,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        pad=4,
        flip=True,
        superclasses=CIFAR100_SUPERCLASSES,
        source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images (CIFAR-100)",
    )


@DATASETS.register("fashion_mnist")
def _fashion_mnist(data_dir: Path) -> Source:
    train, test = _torchvision(
        "FashionMNIST",
        data_dir,
        f"fashion_mnist is not whole in {data_dir}: download the four .gz files from "
        "https://github.com/zalandoresearch/fashion-mnist, unpack them into FashionMNIST/raw "
        "there, or point --data-dir / KDX_DATA to the folder that holds FashionMNIST",
    )
    return Source(
        name="fashion_mnist",
        train=_split("train", train.data[:, None], train.targets),
        test=_split("test", test.data[:, None], test.targets),
        classes=tuple(train.classes),
        mean=(0.2860,),
        std=(0.3530,),
        pad=2,
        flip=True,  # a class is a kind of garment, and none differs from its mirror image
        source="Xiao, Rasul & Vollgraf 2017, Fashion-MNIST, arXiv 1708.07747",
    )


def _cifar(
    kind: str, name: str, data_dir: Path, archive: str, folder: str
) -> tuple[Split, Split, tuple[str, ...]]:
    train, test = _torchvision(
        kind,
        data_dir,
        f"{name} is not whole in {data_dir}: download {archive} from "
        "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it there, or point --data-dir / "
        f"KDX_DATA to the folder that holds {folder}",
    )
    splits = [
        _split(split, torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), part.targets)
        for split, part in (("train", train), ("test", test))
    ]
    return splits[0], splits[1], tuple(train.classes)


def _torchvision(kind: str, data_dir: Path, remedy: str) -> tuple[Any, Any]:
    """(train, test) of a class of torchvision.datasets.

    Raises KdxError with the ``remedy`` if a file fails.
    """
    from torchvision import datasets

    build = getattr(datasets, kind)
    try:
        return build(data_dir, train=True), build(data_dir, train=False)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise KdxError(remedy) from error


def _split(name: str, images: Tensor, labels: Any) -> Split:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return Split(name, TensorImages(images), labels, torch.arange(len(labels)))


CIFAR100_SUPERCLASSES: Mapping[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
