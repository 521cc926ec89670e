import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdx_analysis.data import DATASETS, Source, Split, TensorImages, load_dataset
from kdx_analysis.data.dataset import channel_statistics
from kdx_analysis.data.resizing import resized
from kdx_analysis.data.sources import CIFAR100_SUPERCLASSES
from kdx_analysis.errors import KdxError

REAL = os.environ.get("KDX_DATA")


def needs(folder):
    there = REAL is not None and (Path(REAL) / folder).is_dir()
    return pytest.mark.skipif(
        not there, reason=f"KDX_DATA is not set to a folder that holds {folder}"
    )


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_digits(digits):
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1295, 143, 359)
    assert digits.shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert (digits.pad, digits.flip) == (1, False)


def test_digits_pixels_are_sixteenths_of_255(digits):
    from sklearn.datasets import load_digits

    place = torch.tensor([7])
    raw = load_digits().images[digits.train.ids[7]]
    assert (
        digits.train.images.take(place)[0, 0].tolist()
        == np.round(raw * 255 / 16).astype(int).tolist()
    )


def test_declared_statistics_of_digits_are_those_of_its_training_part():
    source = DATASETS["digits"](Path())
    mean, std = channel_statistics(source.train.images)
    assert (source.mean, source.std) == (
        pytest.approx(mean, abs=1e-4),
        pytest.approx(std, abs=1e-4),
    )


def test_splits_never_overlap(digits):
    ids = torch.cat([digits.train.ids, digits.val.ids, digits.test.ids])
    assert ids.sort().values.tolist() == list(range(1797))


def test_splits_are_stratified(digits):
    whole = (
        torch.cat([split.labels for split in (digits.train, digits.val, digits.test)]).bincount()
        / 1797
    )
    for split in (digits.train, digits.val, digits.test):
        torch.testing.assert_close(split.labels.bincount() / len(split), whole, rtol=0, atol=0.005)


def test_the_split_follows_its_seed_and_the_test_split_does_not(digits):
    again, other = load_dataset("digits"), load_dataset("digits", split_seed=1)
    assert again.describe() == digits.describe()
    assert not other.val.ids.equal(digits.val.ids)
    assert other.test.ids.equal(digits.test.ids)


def test_per_class_counts_validation_and_leaves_test_whole(digits):
    small = load_dataset("digits", per_class=20, val_fraction=0.25)
    assert small.train.labels.bincount().tolist() == [15] * 10
    assert small.val.labels.bincount().tolist() == [5] * 10
    assert small.test.ids.equal(digits.test.ids)
    assert (small.mean, small.std) == (digits.mean, digits.std)


def test_test_images_of_every_class_are_the_same_ones_in_every_study(digits):
    few = load_dataset("digits", per_class=20, test_per_class=5, split_seed=3)
    more = load_dataset("digits", test_per_class=12, size=4)
    assert few.test.labels.bincount().tolist() == [5] * 10
    assert more.test.labels.bincount().tolist() == [12] * 10
    assert set(few.test.ids.tolist()) < set(more.test.ids.tolist()) < set(digits.test.ids.tolist())
    assert few.describe()["test_per_class"] == 5
    whole = load_dataset("digits", per_class=20, split_seed=3).describe()
    assert "test_per_class" not in whole
    assert whole["fingerprint"] != few.describe()["fingerprint"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"test_per_class": 50}, "test_per_class is 50, but class '2' .* 35 test images"),
        ("digits", {"test_per_class": 0}, "test_per_class is 0"),
        ("cifr10", {}, "unknown data set 'cifr10'; did you mean 'cifar10'"),
        ("digits", {"per_class": 1000}, r"per_class is 1000, but class '8' of digits has only 139"),
        ("digits", {"per_class": 0}, "per_class is 0"),
        ("digits", {"per_class": 1}, r"fewer validation samples than classes \(0 for 10\)"),
        ("digits", {"val_fraction": 0.0}, "val_fraction is 0.0"),
        ("digits", {"val_fraction": 1.0}, "val_fraction is 1.0"),
        ("digits", {"val_fraction": float("nan")}, "val_fraction is nan"),
        ("digits", {"size": 0}, "size is 0 pixels: it must be at least 1"),
        ("no/such/folder", {}, "is no folder"),
    ],
)
def test_what_load_dataset_refuses(name, options, message):
    with pytest.raises(KdxError, match=message):
        load_dataset(name, **options)


@pytest.mark.parametrize("size", [4, 5, 12])
def test_a_named_set_is_resized_as_pillow_resizes(digits, size):
    """Antialiased, rounded; Pillow counts in fixed point, so it may be one level off."""
    data = load_dataset("digits", size=size)
    assert data.shape == (1, size, size)
    for split in ("train", "val", "test"):
        old, new = getattr(digits, split), getattr(data, split)
        assert new.ids.equal(old.ids)
        assert new.labels.equal(old.labels)
        first = Image.fromarray(old.images.take(torch.arange(1))[0, 0].numpy())
        expected = np.asarray(first.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        given = new.images.take(torch.arange(1))[0, 0].numpy().astype(int)
        assert np.abs(given - expected).max() <= 1


def test_a_resized_set_is_normalised_by_what_its_images_have_become(digits):
    data = load_dataset("digits", size=4)
    pixels = data.train.images.take(torch.arange(len(data.train))).double() / 255
    assert data.mean == pytest.approx((float(pixels.mean()),))
    assert data.std == pytest.approx((float(pixels.std(correction=0)),))
    assert data.std < digits.std
    assert (data.pad, load_dataset("digits", size=16).pad) == (1, 2)


def test_the_size_that_a_named_set_has_changes_nothing(digits):
    assert load_dataset("digits", size=8).describe() == digits.describe()


def test_a_resized_image_that_is_no_square_is_cropped_in_its_middle():
    wide = torch.zeros(2, 1, 4, 8, dtype=torch.uint8)
    wide[..., 2:6] = 200
    split = Split("train", TensorImages(wide), torch.arange(2), torch.arange(2))
    source = Source("wide", split, split, ("a", "b"), (0.5,), (0.2,), 0, False, "made up")
    square = resized(source, 4)
    assert square.train.images.take(torch.arange(2)).unique().tolist() == [200]
    assert (square.mean, square.std, square.pad) == (None, None, 0)


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
        ("fashion_mnist", "github.com/zalandoresearch/fashion-mnist", "FashionMNIST"),
    ],
)
def test_a_missing_data_set_says_what_to_download_and_where_to_put_it(
    name, file, folder, tmp_path, monkeypatch
):
    with pytest.raises(
        KdxError, match=rf"(?s){name} is not whole in .*{file}.*--data-dir / KDX_DATA .*{folder}"
    ):
        load_dataset(name, data_dir=tmp_path)
    monkeypatch.setenv("KDX_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(KdxError, match="elsewhere"):
        load_dataset(name)
    monkeypatch.delenv("KDX_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdxError, match="not whole in data:"):
        load_dataset(name)


def test_a_damaged_file_is_not_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(KdxError, match="cifar100 is not whole"):
        load_dataset("cifar100", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_cifar100_has_twenty_superclasses_of_five():
    assert len(CIFAR100_SUPERCLASSES) == 20
    assert {len(members) for members in CIFAR100_SUPERCLASSES.values()} == {5}
    assert len({name for members in CIFAR100_SUPERCLASSES.values() for name in members}) == 100


@needs("cifar100_subset")
def test_cifar100_superclasses_are_those_of_the_subset():
    data = load_dataset(f"{REAL}/cifar100_subset", per_class=10, size=8)
    assert data.superclasses == CIFAR100_SUPERCLASSES
    assert len(data.test) == 2000


@needs("cifar-10-batches-py")
def test_cifar10():
    data = load_dataset("cifar10", data_dir=REAL)
    assert (len(data.train), len(data.val), len(data.test), data.shape) == (
        45000,
        5000,
        10000,
        (3, 32, 32),
    )
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert data.val.labels.bincount().tolist() == [500] * 10
    assert data.normalise(data.train.images.take(torch.arange(2000))).mean().abs() < 0.05


@needs("FashionMNIST")
def test_fashion_mnist():
    data = load_dataset("fashion_mnist", data_dir=REAL)
    assert (len(data.train), len(data.val), len(data.test), data.shape) == (
        54000,
        6000,
        10000,
        (1, 28, 28),
    )
    assert (data.classes[0], data.classes[9], data.pad) == ("T-shirt/top", "Ankle boot", 2)
    mean, std = channel_statistics(data.train.images)
    assert (mean, std) == (pytest.approx(data.mean, abs=1e-3), pytest.approx(data.std, abs=1e-3))
