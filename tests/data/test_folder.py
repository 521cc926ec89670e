import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from kdx_analysis.data import load_dataset
from kdx_analysis.data.dataset import channel_statistics
from kdx_analysis.data.folder import FolderImages
from kdx_analysis.errors import KdxError


def write(path, seed, size=(16, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels)


def fill(root, classes=("ant", "bee"), count=4, seed=0, **options):
    for label, name in enumerate(classes):
        for i in range(count):
            write(root / name / f"{i}.png", seed + 100 * label + i, **options)


@pytest.fixture
def parts(tmp_path):
    fill(tmp_path / "train", count=6)
    fill(tmp_path / "test", count=2, seed=1000)
    return tmp_path


def everything(split):
    return split.images.take(torch.arange(len(split)))


def test_folder_images_take_equals_the_pixels_that_were_written(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    pixels = torch.stack([write(path, i, size=(3, 2)) for i, path in enumerate(paths)]).permute(
        0, 3, 1, 2
    )
    store = FolderImages(paths, (2, 3))
    indices = torch.tensor([4, 0, 0, 2])
    assert (len(store), store.shape) == (5, (3, 2, 3))
    assert store.take(indices).equal(pixels[indices])
    assert store.subset(indices).take(torch.tensor([3, 1])).equal(pixels[[2, 0]])
    assert store.to("meta").take(indices).device.type == "meta"


def test_taken_on_demand_equals_decoded(parts):
    decoded, lazy = load_dataset(parts), load_dataset(parts, max_memory=1)
    assert isinstance(lazy.train.images, FolderImages)
    assert not isinstance(decoded.train.images, FolderImages)
    for name in ("train", "val", "test"):
        assert everything(getattr(lazy, name)).equal(everything(getattr(decoded, name)))
    assert (lazy.mean, lazy.std) == (decoded.mean, decoded.std)
    assert lazy.describe() == decoded.describe()


def test_max_memory_is_of_all_splits_together(parts):
    needed = (2 * 6 + 2 * 2) * 3 * 16 * 16
    assert not isinstance(load_dataset(parts, max_memory=needed).train.images, FolderImages)
    assert isinstance(load_dataset(parts, max_memory=needed - 1).train.images, FolderImages)


def test_statistics_are_those_of_the_training_images_alone(parts):
    data = load_dataset(parts)
    pixels = everything(data.train).double() / 255
    torch.testing.assert_close(
        torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0
    )
    deviation = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), deviation, rtol=1e-6, atol=0)
    fill(parts / "test", count=2, seed=5000)
    assert load_dataset(parts).mean == data.mean


def test_statistics_do_not_depend_on_the_chunks(parts, monkeypatch):
    images = load_dataset(parts).train.images
    whole = channel_statistics(images)
    monkeypatch.setattr("kdx_analysis.data.dataset._CHUNK", 3)
    assert channel_statistics(images) == whole


def test_layout_in_parts(parts):
    (parts / "train" / "ant" / "notes.txt").write_text("no image")
    (parts / "train" / ".cache").mkdir()
    data = load_dataset(str(parts))
    assert data.classes == ("ant", "bee")
    assert (len(data.train), len(data.val), len(data.test)) == (10, 2, 4)
    assert sorted(data.train.ids.tolist() + data.val.ids.tolist()) == list(range(12))
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert (data.pad, data.flip, data.superclasses) == (2, True, None)


def test_a_val_of_its_own_is_kept(parts):
    fill(parts / "val", count=1, seed=2000)
    data = load_dataset(parts, per_class=3)
    assert (len(data.train), len(data.val)) == (6, 2)
    assert data.val.ids.tolist() == [12, 13]
    assert everything(data.val)[0].equal(write(parts / "other.png", 2000).permute(2, 0, 1))


def test_layout_in_one_piece_even_if_a_class_is_called_train(tmp_path):
    fill(tmp_path, classes=("bus", "train"), count=10)
    data = load_dataset(tmp_path)
    assert data.classes == ("bus", "train")
    assert data.test.labels.bincount().tolist() == [2, 2]
    ids = torch.cat([data.train.ids, data.val.ids, data.test.ids])
    assert ids.sort().values.tolist() == list(range(20))
    assert load_dataset(tmp_path, split_seed=1).test.ids.equal(data.test.ids)


def test_grey_images_have_one_channel_unless_one_has_colour(tmp_path):
    fill(tmp_path, mode="L")
    assert load_dataset(tmp_path, val_fraction=0.3).shape == (1, 16, 16)
    write(tmp_path / "ant" / "0.png", 0)
    assert load_dataset(tmp_path, val_fraction=0.3).shape == (3, 16, 16)


def test_size_resizes_to_cover_and_crops_the_centre(tmp_path):
    stripes = np.zeros((8, 32), dtype=np.uint8)
    stripes[:, 4:28] = 200  # plain in the centre square and as far around it as the filter reaches
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    taken = FolderImages([tmp_path / "wide.png"], 4, channels=1).take(torch.tensor([0]))
    assert taken.unique().tolist() == [200]
    assert taken.shape == (1, 1, 4, 4)


def test_images_need_not_be_square(tmp_path):
    fill(tmp_path, size=(24, 16))
    data = load_dataset(tmp_path)
    assert (data.shape, data.pad) == ((3, 16, 24), 2)


def test_sizes_that_differ_need_size(parts):
    write(parts / "test" / "bee" / "1.png", 0, size=(20, 16))
    with pytest.raises(KdxError, match=r"bee.1\.png is 20×16 pixels .* give size"):
        load_dataset(parts)
    assert load_dataset(parts, size=8).shape == (3, 8, 8)


def test_superclasses_are_read(parts):
    (parts / "superclasses.json").write_text(json.dumps({"bee": "insects", "ant": "insects"}))
    assert load_dataset(parts).superclasses == {"insects": ("ant", "bee")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ('["insects"]', "must be a map"),
        ('{"ant": 1, "bee": 2}', "must be a map"),
        ('{"ant": "insects"}', "'bee' .* has no superclass"),
        ('{"ant": "i", "bee": "i", "cow": "m"}', "'cow' .* is no class folder"),
    ],
)
def test_superclasses_that_do_not_fit(parts, text, message):
    (parts / "superclasses.json").write_text(text)
    with pytest.raises(KdxError, match=message):
        load_dataset(parts)


def test_a_class_of_test_that_train_lacks(parts):
    write(parts / "test" / "cow" / "0.png", 0)
    with pytest.raises(KdxError, match="cow is no class of the training images"):
        load_dataset(parts)


def test_a_class_without_training_images(parts):
    (parts / "train" / "cow").mkdir()
    with pytest.raises(KdxError, match=r"class 'cow' .* has no training sample"):
        load_dataset(parts)


def test_files_that_are_no_image(parts, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as WeasyPrint leaves it
    path = parts / "train" / "ant" / "0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KdxError, match=r"ant.0\.png cannot be read as an image"):
        load_dataset(parts)


def test_a_program_in_postscript_is_not_run(parts):
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    (parts / "train" / "ant" / "0.png").write_text(program)
    with pytest.raises(KdxError, match=r"ant.0\.png cannot be read as an image \(cannot identify"):
        load_dataset(parts)


def test_sixteen_bits_are_refused(parts):
    Image.fromarray(np.full((16, 16), 40000, dtype=np.uint16)).save(
        parts / "train" / "ant" / "0.png"
    )
    with pytest.raises(KdxError, match="mode I;16: convert it to 8 bits"):
        load_dataset(parts)


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(KdxError, match="is no folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(KdxError, match="holds 0 class folder"):
        load_dataset(tmp_path)
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    with pytest.raises(KdxError, match="hold no image"):
        load_dataset(tmp_path)
    with pytest.raises(KdxError, match="size is 0"):
        load_dataset(tmp_path, size=0)
    fill(tmp_path / "parts" / "train")
    with pytest.raises(KdxError, match=r"no test/CLASS"):
        load_dataset(tmp_path / "parts")


def test_the_source_names_the_folder_and_not_where_it_lies(parts):
    assert load_dataset(parts).source == f"image folder {parts.name}"
