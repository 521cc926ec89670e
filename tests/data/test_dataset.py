import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdx_analysis.data.dataset import Dataset, Split, TensorImages
from kdx_analysis.errors import KdxError


def split(name, labels, first_id=0, shape=(3, 4, 4)):
    images = (
        torch.arange(len(labels), dtype=torch.uint8)
        .view(-1, 1, 1, 1)
        .expand(-1, *shape)
        .contiguous()
    )
    ids = torch.arange(first_id, first_id + len(labels))
    return Split(name, TensorImages(images), torch.tensor(labels, dtype=torch.int64), ids)


def dataset(**changes):
    fields = {
        "name": "toy",
        "train": split("train", [2, 1, 0, 2, 1, 0, 0]),
        "val": split("val", [0, 1, 2], first_id=7),
        "test": split("test", [0, 1]),
        "classes": ("ant", "bee", "cat"),
        "mean": (0.5, 0.25, 0.0),
        "std": (0.5, 0.25, 1.0),
        "pad": 1,
        "flip": True,
        "superclasses": {"insects": ("ant", "bee"), "mammals": ("cat",)},
        "source": "made up",
    }
    return Dataset(**(fields | changes))


def test_shape_and_number_of_classes():
    assert (dataset().shape, dataset().num_classes) == ((3, 4, 4), 3)


def test_normalise_by_hand():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    normalised = dataset().normalise(pixels)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.flatten(), torch.tensor([-1.0, -0.2, 1.0]))
    assert pixels.flatten().tolist() == [0, 51, 255]


def test_a_subset_keeps_images_labels_and_ids_together():
    part = dataset().train.subset(torch.tensor([3, 0]))
    assert (part.labels.tolist(), part.ids.tolist(), len(part)) == ([2, 2], [3, 0], 2)
    assert part.images.take(torch.tensor([0, 1]))[:, 0, 0, 0].tolist() == [3, 0]


def test_to_moves_every_tensor():
    moved = dataset().train.to("meta")
    taken = moved.images.take(torch.tensor([0]))
    assert {tensor.device.type for tensor in (moved.labels, moved.ids, taken)} == {"meta"}


def test_probe_set_is_balanced_and_ordered_by_class_then_id():
    shuffled = dataset().train.subset(torch.tensor([6, 4, 0, 5, 1, 3, 2]))
    probes = dataset(train=shuffled).probe_set("train", 2, seed=3)
    assert probes.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert probes.ids[2:].tolist() == [1, 4, 0, 3]
    assert probes.ids[0] < probes.ids[1]
    assert probes.images.take(torch.arange(6))[:, 0, 0, 0].tolist() == probes.ids.tolist()


def test_probe_set_depends_on_the_seed_and_not_on_the_order_of_the_split():
    toy = dataset()
    reversed_train = toy.train.subset(torch.arange(6, -1, -1))
    draws = {tuple(toy.probe_set("train", 2, seed).ids.tolist()) for seed in range(9)}
    again = {
        tuple(dataset(train=reversed_train).probe_set("train", 2, seed).ids.tolist())
        for seed in range(9)
    }
    assert draws == again
    assert len(draws) == 3  # two of the three ants


def test_probe_set_takes_what_is_there():
    assert dataset().probe_set("train", 9).labels.tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_probe_set_refuses_an_absent_class_the_test_split_and_no_images():
    with pytest.raises(KdxError, match="val split of toy has no sample of class 'cat'"):
        dataset(val=split("val", [0, 1, 1])).probe_set("val", 1)
    with pytest.raises(KdxError, match="unknown split of a probe set 'test'"):
        dataset().probe_set("test", 1)
    with pytest.raises(KdxError, match="at least 1"):
        dataset().probe_set("train", 0)


def test_describe_is_json_and_its_fingerprint_tells_splits_apart():
    told = dataset().describe()
    assert json.loads(json.dumps(told)) == told
    assert told["sizes"] == {"train": 7, "val": 3, "test": 2}
    assert told["fingerprint"] == dataset().describe()["fingerprint"]
    for changed in (
        dataset(val=split("val", [0, 1, 2], first_id=8)),
        dataset(test=split("test", [1, 1])),
        dataset(train=split("train", [2, 1, 0, 2, 1, 0, 0], first_id=1)),
    ):
        assert changed.describe()["fingerprint"] != told["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": split("test", [0, 3])}, "label 3 in the test split of toy .* 0 to 2"),
        ({"val": split("val", [0, -1, 2])}, "label -1 in the val split"),
        ({"train": split("train", [0, 2])}, "class 'bee' of toy has no training sample"),
        (
            {"val": split("val", [0, 1])},
            r"fewer validation samples than classes \(2 for 3\).*val_fraction or per_class",
        ),
        ({"test": split("test", [])}, "test split of toy is empty"),
        ({"mean": (0.5,)}, "images have 3 channels, mean has 1 and std 3"),
        ({"std": (0.5, 0.0, 1.0)}, "std of channel 1 is 0.0"),
        ({"test": split("test", [0], shape=(3, 5, 4))}, r"test images are \(3, 5, 4\)"),
        ({"superclasses": {"insects": ("ant", "bee")}}, "'cat' stands in 0"),
        ({"superclasses": {"a": ("ant", "bee"), "b": ("cat", "ant")}}, "'ant' stands in 2"),
        ({"superclasses": {"a": ("ant", "bee", "cat", "dog")}}, "'dog' .* not a class"),
    ],
)
def test_what_a_dataset_refuses(changes, message):
    with pytest.raises(KdxError, match=message):
        dataset(**changes)


def test_images_labels_and_ids_must_be_equally_many():
    with pytest.raises(ValueError, match="equally many"):
        replace(dataset().train, ids=torch.arange(3))


def test_images_must_be_uint8():
    with pytest.raises(ValueError, match=r"float32 \(1, 3, 2, 2\)"):
        TensorImages(torch.zeros(1, 3, 2, 2))


def pairs(per_class=10, K=3):
    """(images, labels), the images of class k with every pixel 51k."""
    labels = torch.arange(K).repeat(per_class)
    return (labels * 51).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), labels


def test_from_tensors_holds_out_validation_and_measures_train():
    data = Dataset.from_tensors(pairs(), pairs(2), val_fraction=0.2, name="mine")
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 6)
    assert not set(data.train.ids.tolist()) & set(data.val.ids.tolist())
    assert (data.name, data.classes, data.val.name) == ("mine", ("0", "1", "2"), "val")
    # a third of the pixels each at 0, 51/255 and 102/255: mean 0.2, variance (0.2² + 0 + 0.2²)/3
    assert data.mean == pytest.approx((0.2,))
    assert data.std == pytest.approx((0.2 * (2 / 3) ** 0.5,))
    chosen = data.val.images.take(torch.arange(6))[:, 0, 0, 0]
    assert torch.equal(chosen.long(), 51 * data.val.labels)


def test_from_tensors_normalises_as_the_teacher_is_used_to():
    data = Dataset.from_tensors(pairs(), pairs(), mean=[0.5], std=[0.25])
    assert (data.mean, data.std) == ((0.5,), (0.25,))
    with pytest.raises(KdxError, match="images have 1 channels, mean has 3"):
        Dataset.from_tensors(pairs(), pairs(), mean=[0.5, 0.4, 0.3], std=[0.25])


def test_from_tensors_takes_arrays_as_they_come():
    images, labels = pairs()
    arrays = images.numpy(), labels.numpy().astype(np.uint8)
    data = Dataset.from_tensors(arrays, arrays, classes=["ant", "bee", "cat"])
    same = Dataset.from_tensors((images, labels), (images, labels), classes=["ant", "bee", "cat"])
    assert data.describe() == same.describe()


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        (lambda x, y: (x[:, 0], y), r"images\[:, None\]"),
        (lambda x, y: (x.expand(-1, 3, 4, 4).permute(0, 2, 3, 1), y), r"permute\(0, 3, 1, 2\)"),
        (lambda x, y: (x / 255, y), r"\(images \* 255\).round\(\).to\(torch.uint8\)"),
        (lambda x, y: (x, y[:-1]), "29.* for 30 images"),
        (lambda x, y: (x, y.float()), "class number"),
    ],
)
def test_from_tensors_says_what_to_do(changed, advice):
    with pytest.raises(KdxError, match=advice):
        Dataset.from_tensors(changed(*pairs()), pairs())
    with pytest.raises(KdxError, match=advice):
        Dataset.from_tensors(pairs(), changed(*pairs()))


def test_from_tensors_refuses_a_share_that_leaves_no_split():
    with pytest.raises(KdxError, match="val_fraction is 1"):
        Dataset.from_tensors(pairs(), pairs(), val_fraction=1)
