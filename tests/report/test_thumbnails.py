"""Test images as pictures in a page."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdx_analysis.data import load_dataset
from kdx_analysis.io import write_json
from kdx_analysis.report.thumbnails import thumbnails
from kdx_analysis.runs import Run
from kdx_analysis.runs.run import FORMAT

DATA = {"name": "digits"}


def run_on(folder: Path, fingerprint: str, data: object = DATA) -> Run:
    folder.mkdir()
    info = {"format": FORMAT, "id": "made", "config": {"data": data}}
    write_json(folder / "run.json", {**info, "data": {"fingerprint": fingerprint}})
    return Run.load(folder)


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return str(load_dataset("digits").describe()["fingerprint"])


def test_images_of_the_very_data_set_are_shown(tmp_path: Path, fingerprint: str) -> None:
    test = load_dataset("digits").test
    ids = test.ids.tolist()
    shown = thumbnails(run_on(tmp_path / "run", fingerprint), [ids[7], ids[2], 10**9])
    assert list(shown) == [ids[7], ids[2]]
    kind, _, content = shown[ids[2]].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as image:
        pixels = np.asarray(image)
    wanted = test.images.take(test.ids.new_tensor([2]))[0].squeeze(0)
    np.testing.assert_array_equal(pixels, wanted.numpy())


def test_images_of_other_data_are_not_shown(tmp_path: Path, fingerprint: str) -> None:
    assert thumbnails(run_on(tmp_path / "other", "f00d"), [1]) == {}
    unknown = run_on(tmp_path / "unknown", fingerprint, {"name": "no such data"})
    assert thumbnails(unknown, [1]) == {}
    imported = run_on(tmp_path / "imported", fingerprint, {"wrong": 1})
    assert thumbnails(imported, [1]) == {}


def test_no_image_is_asked_for(tmp_path: Path, fingerprint: str) -> None:
    assert thumbnails(run_on(tmp_path / "run", fingerprint), []) == {}
